"""The arithmetic of benchmarks/gpu_check.py, at a shape that a CPU steps in no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_check_gives_its_rows(tmp_path):
    out = tmp_path / "gpu_check.json"
    script = [sys.executable, ROOT / "benchmarks/gpu_check.py", "--shape", "tiny", "--out", out]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row["value"] for row in json.loads(out.read_text())["rows"]}
    assert not [what for what in rows if "failed" in what], done.stdout
    for what in (
        "matrix product, bfloat16",
        "bfloat16, 2 x 32 tokens",
        "1 x 64 tokens, recompute full",
    ):
        assert rows[what] > 0
    assert rows["attention, relative error to float32"] < 1e-5
    assert rows["bfloat16, graphs compiled after step 3"] == 0


@pytest.mark.slow
def test_no_time_is_said(tmp_path):
    out = tmp_path / "gpu_check.json"
    script = [
        sys.executable,
        ROOT / "benchmarks/gpu_check.py",
        "--shape",
        "tiny",
        "--minutes",
        "-1",
    ]
    subprocess.run([*script, "--out", out], check=True, capture_output=True, timeout=120)
    assert all("no time left" in row["what"] for row in json.loads(out.read_text())["rows"])
