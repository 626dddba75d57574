"""How a step's work spreads over more cores than this machine has: the counter that hands it out,
asked by as many virtual threads."""

import shutil
import subprocess
from pathlib import Path

import pytest

from smollm3.bench.shapes import SHAPES

ROOT = Path(__file__).parents[2]
TILE_ROWS, CHUNK_BYTES, Q4_BYTES = 16, 1 << 16, 4.5 / 8


def phases(threads: int) -> list[tuple[int, int, float]]:
    """Units, the least that is handed out, and bytes of a unit, of the products of a token of the
    3B in Q4_0: as Model::multiply and Model::feed_forward plan them."""
    c = SHAPES["smollm3-3b"]
    found = []
    for rows, columns in (
        ((c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden),
        (c.hidden, c.heads * c.head_dim),
        (c.hidden, c.ffn),
    ):
        tiles, size = rows // TILE_ROWS, TILE_ROWS * columns * Q4_BYTES
        chunk = max(1, int(CHUNK_BYTES / size))
        found.append((tiles, min(chunk, max(1, tiles // (4 * threads))), size))
    # Gate and up: units of 128 rows of both, as many as share the scale of what `down` reads.
    found.append((c.ffn // 128, 1, 2 * 128 * c.hidden * Q4_BYTES))
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    out = tmp_path_factory.mktemp("shares") / "shares"
    include = f"-I{ROOT / 'kernels' / 'src'}"
    subprocess.run(
        ["g++", "-std=gnu++20", "-O1", include, ROOT / "tests" / "shares.cpp", "-o", out],
        check=True,
    )
    return out


def shares(program: Path, lines: list[str]) -> list[float]:
    run = subprocess.run(
        [program], input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, "a unit was handed out twice, or not at all"
    return [float(x) for x in run.stdout.split()]


@pytest.mark.parametrize(
    ("threads", "at_least"), [(1, 1.0), (2, 0.99), (8, 0.95), (16, 0.9), (64, 0.7)]
)
def test_a_token_of_the_3b_spreads_over_cores(program, threads, at_least):
    line = f"{threads} " + " ".join(f"{u} {least} {size}" for u, least, size in phases(threads))
    (share,) = shares(program, [line])
    print(f"{threads} threads work {share:.0%} of the time")
    assert at_least <= share <= 1


def test_everything_is_handed_out_once(program):
    lines = [
        f"{threads} {units} {least} 1"
        for threads in (1, 3, 64, 200)
        for units in (1, 2, 63, 64, 65, 1000)
        for least in (1, 3, 50)
    ]
    assert all(0 < share <= 1 for share in shares(program, lines))
