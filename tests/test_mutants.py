"""Mutation tests: each mutant of `mutants.py` must be killed by the tests that it names."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import smollm3
from tests.support.kernels import build_kernels

from .mutants import MUTANTS

SOURCE = Path(smollm3.__file__).parent
ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels"


def test_every_mutant_still_applies():
    """Else the list rots: a rename would turn a mutant into nothing."""
    assert len(MUTANTS) >= 20
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
    for mutant in MUTANTS:
        tree, file = place(mutant)
        text = (tree / file).read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: {text.count(mutant.old)} places"
        for test in mutant.tests.split():
            assert (ROOT / test).exists(), f"{mutant.name}: no {test}"


def place(mutant) -> tuple[Path, str]:
    """The tree that is copied, and the file in it."""
    file = mutant.file.removeprefix("kernels/")
    return (SOURCE if file == mutant.file else KERNELS), file


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name.replace(" ", "_"))
def test_mutant_dies(mutant, tmp_path):
    tree, name = place(mutant)
    copy = tmp_path / tree.name
    shutil.copytree(tree, copy, ignore=shutil.ignore_patterns("__pycache__", "build"))
    file = copy / name
    file.write_text(file.read_text().replace(mutant.old, mutant.new))
    if tree == KERNELS:
        build_kernels(copy, tmp_path, tmp_path / "build")
    try:
        process = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *mutant.tests.split()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return  # a suite that hangs is seen as well
    # 1: tests ran and some failed. An import error or an empty selection kills nothing.
    assert process.returncode == 1, f"survived: {mutant}\n{process.stdout[-2000:]}"
    assert "failed" in process.stdout
