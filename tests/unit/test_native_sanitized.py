"""The native backend's own tests under sanitizers: its C++ built again with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.kernels import build_kernels

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "library", "tests"),
    [
        ("address,undefined", "libasan.so", ""),
        ("thread", "libtsan.so", "chunks or long_past or blocks_go or float32"),
    ],
    ids=["address-undefined", "thread"],
)
def test_the_kernels_are_clean(tmp_path, sanitizers, library, tests):
    site = tmp_path / "site"
    build_kernels(ROOT / "kernels", site, tmp_path / "build", sanitizers)
    # The C++ library too, or the sanitizer does not find what throws.
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (library, "libstdc++.so")
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-s",
         "tests/unit/test_native.py", "-k", tests],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(site),
            "LD_PRELOAD": " ".join(preload),
            # Python itself frees little at its end; PyTorch's threads are not instrumented.
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:halt_on_error=1:report_signal_unsafe=0",
        },
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert "Sanitizer" not in run.stdout + run.stderr, (run.stdout + run.stderr)[-4000:]
    assert run.returncode == 0, (run.stdout + run.stderr)[-4000:]
    assert "passed" in run.stdout
