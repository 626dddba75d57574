"""Killed at any moment, finished later: the same bytes as never disturbed."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from .conftest import cli

pytestmark = pytest.mark.xdist_group("smoke")
# Roughly how long each stage of smoke works; the moment of the kill is drawn from it.
SECONDS = {
    "tokenizer": 1.0,
    "stage1": 4.0,
    "sft": 4.0,
    "apo": 2.0,
    "final": 0.3,
    "card": 3.0,
    "export": 0.5,
}


def kill_in(stage, out, after):
    """Start the run, wait until `stage` begins, then SIGKILL it `after` seconds later."""
    process = subprocess.Popen(
        [sys.executable, "-m", "smollm3", "run", "smoke", "--out", str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    with process:
        for line in process.stdout:
            if line.strip() == f"> {stage}":
                break
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
    return workers_gone(out)


def workers_gone(out):
    """Whether no training process is left behind within a few seconds of its main process's death."""
    for _ in range(100):
        found = subprocess.run(
            ["pgrep", "-f", f"{out}/.rendezvous"], capture_output=True, check=False
        )
        if found.returncode:
            return True
        time.sleep(0.1)
    return False


def check(smoke, out, stages, times):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    for stage in stages:
        for _ in range(times):
            assert kill_in(stage, out, rng.uniform(0, SECONDS[stage])), (
                "a worker outlived its main process"
            )
    process = cli("run", "smoke", "--out", out)
    assert process.returncode == 0, process.stderr
    compared = 0
    for file in smoke.rglob("*"):
        if file.suffix == ".safetensors" or file.name in ("tokenizer.json", "config.json"):
            assert (out / file.relative_to(smoke)).read_bytes() == file.read_bytes(), file
            compared += 1
    assert compared > 20


def test_killed_in_training(smoke, tmp_path):
    check(smoke, tmp_path / "run", ["stage1", "apo"], times=1)


@pytest.mark.slow
def test_killed_twice_in_every_kind_of_stage(smoke, tmp_path):
    check(smoke, tmp_path / "run", SECONDS, times=2)


def test_sigterm_stops_cleanly_and_goes_on(smoke, tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "smollm3", "run", "smoke", "--out", str(out), "--set", "stages.stage1.save_every=1000"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    metrics = out / ".work/stage1/metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None
        time.sleep(0.02)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "run again to resume" in output
    assert list((out / ".work/stage1/checkpoints").glob("step-*"))
