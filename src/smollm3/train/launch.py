"""How a run was started, told from the environment; what cannot work is one clear line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping, MutableMapping

from smollm3.errors import UserError

PORTS = 10_000, 50_000  # the first, and how many: one for each job


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def first_host(nodes: str) -> str:
    """The first of a list of nodes as Slurm writes it, such as gpu[01-48]."""
    words = ["scontrol", "show", "hostnames", nodes]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[0]


def adopt_slurm(
    environment: MutableMapping[str, str] = os.environ, first: Callable[[str], str] = first_host
) -> None:
    """Give the tasks of an `srun` the variables that torchrun would have set."""
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS") or 1)
    if tasks == 1 or "WORLD_SIZE" in environment:
        return
    try:
        host = first(environment["SLURM_STEP_NODELIST"])
    except (OSError, KeyError, IndexError, subprocess.SubprocessError) as e:
        raise UserError(
            f"srun started {tasks} tasks, and the first node's name cannot be had ({e}); set "
            "MASTER_ADDR, MASTER_PORT, RANK, WORLD_SIZE and LOCAL_RANK, or start torchrun"
        ) from None
    port = PORTS[0] + int(environment["SLURM_JOB_ID"]) % PORTS[1]
    environment["WORLD_SIZE"] = str(tasks)
    environment["RANK"] = environment["SLURM_PROCID"]
    environment["LOCAL_RANK"] = environment["SLURM_LOCALID"]
    environment.setdefault("MASTER_ADDR", host)
    environment.setdefault("MASTER_PORT", str(port))


def check_launch(
    processes: int,
    environment: Mapping[str, str] = os.environ,
    gpus: Callable[[], int] = gpu_count,
) -> None:
    """UserError where GPUs would stay unused.

    processes: that the recipe asks to start on this machine.
    """
    if "WORLD_SIZE" in environment:  # torchrun, or who sets what it sets
        return
    if processes > 1 and (found := gpus()):
        raise UserError(
            f"processes: {processes} local processes train on CPUs, and this machine has {found} "
            f"GPUs; start `torchrun --nproc-per-node {found} -m smollm3 run ...`, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
