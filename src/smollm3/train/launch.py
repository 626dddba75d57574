"""How a run was started, told from the environment; what cannot work is one clear line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from smollm3.errors import UserError


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def check_launch(
    processes: int,
    environment: Mapping[str, str] = os.environ,
    gpus: Callable[[], int] = gpu_count,
) -> None:
    """UserError where several copies know nothing of each other, or GPUs would stay unused.

    processes: that the recipe asks to start on this machine.
    """
    if "WORLD_SIZE" in environment:  # torchrun, or who sets what it sets
        return
    tasks = int(environment.get("SLURM_NTASKS") or 1)
    if tasks > 1 and "SLURM_PROCID" in environment:
        raise UserError(
            f"srun started {tasks} copies of this program that know nothing of each other; start "
            "one torchrun on each node (docs/training.md), or `smollm3 run RECIPE --slurm`"
        )
    if processes > 1 and (found := gpus()):
        raise UserError(
            f"processes: {processes} local processes train on CPUs, and this machine has {found} "
            f"GPUs; start `torchrun --nproc-per-node {found} -m smollm3 run ...`, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
