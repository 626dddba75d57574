"""Builds of the kernels beside the installed one."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest


def build_kernels(source, site, work, sanitizers=""):
    """Install the kernels at `source` into the folder `site`, light to compile."""
    if shutil.which("g++") is None or importlib.util.find_spec("scikit_build_core") is None:
        pytest.skip("needs g++ and scikit-build-core")
    build = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation",
         "--target", str(site), "-C", f"cmake.define.SANITIZE={sanitizers}",
         "-C", "cmake.define.LIGHT=ON", "-C", f"build-dir={work}", str(source)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert build.returncode == 0, build.stderr[-3000:]
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('smollm3_kernels').origin)"],
        env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if not found.stdout.startswith(str(site)):
        pytest.fail(
            "the kernels are installed editable, which hides this build: pip install ./kernels"
        )
