"""How large the pool of keys and values may be."""

from __future__ import annotations

from pathlib import Path

import torch

from smollm3.infer.backends import BLOCK
from smollm3.model import ModelConfig
from smollm3.portable import available_memory

# On a CPU memory is shared with everything else; a prefix is worth keeping, but not for ever.
CPU_BYTES = 4 << 30
ROWS = 128  # contexts, beyond which more blocks serve nothing


def pool_blocks(config: ModelConfig, block_bytes: int, device: torch.device) -> int:
    """Blocks for a device: from the memory that is free, and never below one full context where
    that fits; at least enough for a short request."""
    free = free_bytes(device)
    share = min(free // 4, CPU_BYTES) if device.type == "cpu" else free * 8 // 10
    context = -(-config.context // BLOCK)
    wanted = min(max(share // block_bytes, context), ROWS * context)
    return max(min(wanted, free * 8 // 10 // block_bytes), 1)


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return min(available_memory(), _group_bytes())


def _group_bytes(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container leaves, where this runs in one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = (folder / "memory.current").read_text().strip()
    except OSError:
        limit = "max"
    return 1 << 62 if limit == "max" else max(int(limit) - int(used), 0)
