"""One undisturbed run of the smoke recipe, shared by all end-to-end tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

LIMIT_SECONDS = 400


def cli(*arguments, cwd=None, stdin=None, **environment):
    """Run the command line as a user does; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "smollm3", *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment},
        check=False,
    )


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """Folder of a finished smoke run; made once for all workers."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    out = root / "smoke"
    with FileLock(str(root / "smoke.lock")):
        if not (out / "report.html").exists():
            before = children_seconds()
            process = cli("run", "smoke", "--out", out)
            assert process.returncode == 0, process.stderr + process.stdout
            (root / "smoke.txt").write_text(process.stdout)
            (root / "smoke.seconds").write_text(str(children_seconds() - before))
    return out


def children_seconds() -> float:
    """Of processor time, of every child that has ended."""
    times = os.times()
    return times.children_user + times.children_system
