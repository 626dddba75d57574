"""What is measured before GPUs train together, and which rank is named."""

import os
import subprocess
import sys

import pytest

from smollm3.train.preflight import RankSpeed, report

PROGRAM = """
import sys, torch, torch.distributed as dist
from smollm3.train.preflight import preflight
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
(usual, *slow) = preflight(rank, 2, torch.device("cpu"), side=64, reduced=4096)
print(usual)
dist.destroy_process_group()
"""


def speeds(*tflops):
    return [RankSpeed(i, f"gpu{i // 2:02}", i % 2, t, 100 + i) for i, t in enumerate(tflops)]


@pytest.mark.parametrize(
    ("figures", "named"),
    [
        ((700, 700, 700, 700), []),
        ((700, 690, 670, 710), []),
        ((700, 700, 300, 700), ["rank 2 (GPU 0 of gpu01)"]),
        ((100, 700, 700, 100, 700), ["rank 0 (GPU 0 of gpu00)", "rank 3 (GPU 1 of gpu01)"]),
    ],
)
def test_a_slow_rank_is_named(figures, named):
    usual, *slow = report(speeds(*figures))
    assert usual.startswith(f"{len(figures)} ranks: 700 TFLOPS each") or len(set(figures)) > 2
    assert [line.partition(" is slow")[0] for line in slow] == named


def test_ranks_tell_each_other(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "meet")],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    first, second = (rank.communicate(timeout=120)[0] for rank in ranks)
    assert first == second  # the same figures everywhere
    assert first.startswith("2 ranks: ")
