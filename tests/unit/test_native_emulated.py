"""The kernels for instruction sets that this machine may lack, under an emulator or with one
instruction replaced: bits that stay, and the values of the portable path."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "kernels" / "src"
FLAGS = ["-std=gnu++20", "-O1", "-ffp-contract=off", "-w", f"-I{SOURCES}"]


def products(tmp_path, table, compiler, flags=(), files=(), run=()) -> np.ndarray:
    """What tests/products.cpp prints on one instruction set."""
    if missing := [name for name in (compiler, *run[:1]) if shutil.which(name) is None]:
        pytest.skip(f"needs {missing[0]}")
    program = tmp_path / table
    sources = [ROOT / "tests" / "products.cpp", SOURCES / "pack.cpp", *(SOURCES / f for f in files)]
    subprocess.run(
        [compiler, *FLAGS, *flags, f"-DTABLE={table}", *sources, "-o", program], check=True
    )
    out = subprocess.run([*run, program], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    return np.array(out.stdout.split(), np.float64)


AVX2 = ["-mavx2", "-mfma", "-mf16c"]
SETS = {
    "avx2": ("isa_avx2", "g++", AVX2, ["isa_avx2.cpp"], ()),
    "avx-vnni": ("isa_avxvnni", "g++", [*AVX2, "-DEMULATE_DPBUSD=1"], [], ()),
    "neon": (
        "isa_neon",
        "aarch64-linux-gnu-g++",
        ["-static", "-march=armv8.2-a+dotprod"],
        ["isa_neon.cpp"],
        ("qemu-aarch64", "-cpu", "max"),
    ),
    "neon-i8mm": (
        "isa_neon_i8mm",
        "aarch64-linux-gnu-g++",
        ["-static", "-march=armv8.2-a+dotprod+i8mm"],
        ["isa_neon_i8mm.cpp"],
        ("qemu-aarch64", "-cpu", "max"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_products_of_every_form(name, tmp_path):
    table, compiler, flags, files, run = SETS[name]
    if "-mavx2" in flags and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    found = products(tmp_path, table, compiler, flags, files, run)
    expected = products(tmp_path, "isa_portable", "g++", files=["isa_portable.cpp"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_products_of_two_rows_by_two_tokens_have_the_bits_of_one_by_one(tmp_path):
    """Sums of whole numbers are exact in any order."""
    neon, i8mm = (products(tmp_path, *SETS[name]) for name in ("neon", "neon-i8mm"))
    np.testing.assert_array_equal(i8mm, neon)
