"""Before GPUs train together: how fast each multiplies, how fast they add up, and which is slow.

One slow or sick card makes all others wait in every step, and nothing else says which it is.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

SLOW = 0.8  # of the median: cards of one kind differ by some 5%
SIDE = 8192  # of the matrices: 1.1 TFLOP a product
REDUCED_BYTES = 256 * 2**20
ROUNDS = 5  # the best counts: the first ones load kernels


@dataclass(frozen=True)
class RankSpeed:
    """tflops: of matrix products in bfloat16. gbps: bus bandwidth of an all-reduce, gigabytes/s,
    2 (n - 1) / n x bytes / seconds, as nccl-tests count it."""

    rank: int
    host: str
    device: int
    tflops: float
    gbps: float


def measure(rank: int, size: int, device: torch.device, side: int, reduced: int) -> RankSpeed:
    """Every rank calls this at the same time."""
    a = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    buffer = torch.zeros(reduced // 4, device=device)
    products = min(_seconds(lambda: torch.matmul(a, a), device) for _ in range(ROUNDS))
    sums = min(_seconds(lambda: dist.all_reduce(buffer), device) for _ in range(ROUNDS))
    bus = 2 * (size - 1) / size * buffer.nbytes
    tflops = 2 * side**3 / products / 1e12
    return RankSpeed(rank, socket.gethostname(), device.index or 0, tflops, bus / sums / 1e9)


def report(speeds: Sequence[RankSpeed]) -> list[str]:
    """A line of what is usual, then one for each rank far below it."""
    tflops = statistics.median(speed.tflops for speed in speeds)
    gbps = statistics.median(speed.gbps for speed in speeds)
    lines = [f"{len(speeds)} ranks: {tflops:.3g} TFLOPS each, all-reduce {gbps:.3g} GB/s"]
    for speed in speeds:
        if speed.tflops < SLOW * tflops:
            lines.append(
                f"rank {speed.rank} (GPU {speed.device} of {speed.host}) is slow: "
                f"{speed.tflops:.3g} TFLOPS, the others {tflops:.3g}; all wait for it"
            )
    return lines


def preflight(
    rank: int, size: int, device: torch.device, side: int = SIDE, reduced: int = REDUCED_BYTES
) -> list[str]:
    """`report` of all ranks, on every rank."""
    speeds: list[RankSpeed] = [None] * size  # type: ignore[list-item]
    dist.all_gather_object(speeds, measure(rank, size, device, side, reduced))
    return report(speeds)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
