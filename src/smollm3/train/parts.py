"""Parameters of which this process may hold only a part (DTensors), and plain ones, alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smollm3.model import Transformer

# read(name, shape, part) -> the part of tensor `name`, a slice per dimension.
Read = Callable[[str, tuple[int, ...], tuple[slice, ...]], Tensor]


def local(tensor: Tensor) -> Tensor:
    """What of `tensor` lies on this device: all of it, unless it is sharded."""
    sharded: Any = tensor
    part: Tensor = sharded.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def part_of(tensor: Tensor) -> tuple[slice, ...]:
    """Where `local(tensor)` lies in the whole, a slice per dimension."""
    if not hasattr(tensor, "placements"):
        return tuple(slice(0, size) for size in tensor.shape)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = tensor
    shape, offset = compute_local_shape_and_global_offset(
        sharded.shape, sharded.device_mesh, sharded.placements
    )
    return tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


@torch.no_grad()
def fill(tensors: dict[str, Tensor], read: Read) -> None:
    """Set what of each tensor lies here."""
    for name, tensor in tensors.items():
        here = local(tensor)
        if here.numel():
            here.copy_(read(name, tuple(tensor.shape), part_of(tensor)))


def fill_model(model: Transformer, read: Read) -> Transformer:
    fill(dict(model.named_parameters()), read)
    return model
