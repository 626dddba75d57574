"""`smollm3 data` as people run it: several processes, kills, a training run on what was made."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove")
RECIPE = """
name: parts
model: {{layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 32}}
sources:
  web: {{kind: jsonl, files: ['{0}/*.jsonl'], part: 0.05}}
stages:
  tokenizer: {{kind: tokenizer, vocab: 400, mixture: {{web: 1}}, characters: 2e4}}
  train: {{kind: train, mixture: {{web: 1}}, context: 64, batch: 4, steps: 3, lr: {{peak: 1e-3}}}}
"""


@pytest.fixture
def recipe(tmp_path):
    for i in range(8):
        rows = (json.dumps({"text": f"Row {i}.{j} of the set." * 9}) for j in range(300))
        (tmp_path / f"{i}.jsonl").write_text("\n".join(rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(tmp_path))
    return path


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "smollm3", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def done(*arguments):
    out, err = (process := command(*arguments)).communicate()
    assert process.returncode == 0, err
    return out


def contents(run):
    (folder,) = (p for p in (run / "data").iterdir() if p.name.startswith("web-"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_workers_and_kills_do_not_show(recipe, tmp_path):
    one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
    assert "in 8 parts" in done("data", "prepare", recipe, "--out", one)
    done("data", "prepare", recipe, "--out", two, "--workers", "2")
    assert contents(one) == contents(two)
    for parts in (1, 4):
        process = command("data", "prepare", recipe, "--out", cut, "--workers", "2")
        while process.poll() is None:
            if len(list(cut.glob("data/.web-*/parts/*.json"))) >= parts:
                os.killpg(process.pid, signal.SIGKILL)  # the workers too
                break
            time.sleep(0.01)
        process.communicate()
    done("data", "prepare", recipe, "--out", cut, "--workers", "2")
    assert contents(cut) == contents(one)
    assert "1 sources are whole" in done("data", "verify", cut)
    # The run trains on them as they are.
    made = {p: p.stat().st_mtime_ns for p in one.glob("data/web-*/train/*")}
    done("run", recipe, "--out", one)
    assert made == {p: p.stat().st_mtime_ns for p in one.glob("data/web-*/train/*")}


@pytest.mark.slow
def test_a_killed_worker_is_one_line(recipe, tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os, signal\ndef keep(text):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    steps = "[{kind: function, options: {function: 'dies:keep'}}]"
    os.environ["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    process = command(
        "data", "prepare", recipe, "--out", tmp_path / "out", "--workers", "2",
        "--set", f"sources.web.steps={steps}",
    )  # fmt: skip
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: sources.web: a worker was killed")


@pytest.mark.slow
def test_slurm_is_handed_the_parts_and_what_puts_them_together(recipe, tmp_path, monkeypatch):
    """A stand-in for sbatch runs what it is given at once, as one task after another."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text(
        """#!/bin/bash
for script; do :; done
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for i in $(seq 0 "$tasks"); do SLURM_ARRAY_TASK_ID=$i bash "$script" > /dev/null 2>> "$0.log"; done
echo "Submitted batch job 7"
"""
    )
    (folder / "srun").write_text('#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"\n')
    for name in ("sbatch", "srun"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    out = done(
        "data", "prepare", recipe, "--out", tmp_path / "out", "--executor", "slurm",
        "--workers", "4", "--option", "time=1:00", "--option", "partition=cpu",
    )  # fmt: skip
    assert "web: submitted" in out
    done("data", "prepare", recipe, "--out", tmp_path / "here")
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def test_mistakes_are_one_line(recipe, tmp_path):
    for arguments, message in [
        (("--source", "wbe"), "no source 'wbe'; sources: web"),
        (("--executor", "slurm", "--option", "nothing"), "write it as key=value"),
    ]:
        process = command("data", "prepare", recipe, "--out", tmp_path / "out", *arguments)
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.startswith("error: ")
        assert message in err
        assert len(err.splitlines()) == 1
