"""What the bits and the times of a run depend on, beside the recipe."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from smollm3.recipe.schema import Recipe


def environment(recipe: Recipe) -> dict[str, Any]:
    """The machine and versions, for stage.json and the report."""
    import os

    import torch

    import smollm3

    return {
        "smollm3": smollm3.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "processes": recipe.processes,
        "threads": recipe.threads,
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
