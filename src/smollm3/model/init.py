"""Initial weights as a function of (seed, name): any part of any tensor can be drawn alone."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from smollm3.model.config import ModelConfig

# Weights drawn from one seed, in whole rows: a rank that holds 1/384 of a 3B model draws about
# 1/16 of it, and a tensor of up to 1,048,576 weights is one draw.
DRAW = 2**20


def initial_weight(
    config: ModelConfig,
    seed: int,
    name: str,
    shape: tuple[int, ...],
    part: tuple[slice, ...] | None = None,
) -> Tensor:
    """The published initialisation of tensor `name`, or `part` of it (a slice per dimension).

    Normal, std `init_std`; attention.o and ffn.down scaled by 1/sqrt(2L); norms 1. Runs of rows
    draw from (seed, name, run), so neither the order of tensors nor the number of ranks changes
    a weight.
    """
    rows, *columns = part or tuple(slice(0, size) for size in shape)
    if len(shape) == 1:
        return torch.ones(shape)[rows]
    residual = name.endswith(("attention.o.weight", "ffn.down.weight"))
    std = config.init_std / (math.sqrt(2 * config.layers) if residual else 1)
    run = max(1, DRAW // shape[1])
    pieces = [torch.empty(0, shape[1])]
    for i in range(rows.start // run, -(-rows.stop // run) if rows.stop > rows.start else 0):
        first, last = i * run, min((i + 1) * run, shape[0])
        drawn = torch.empty(last - first, shape[1])
        drawn.normal_(0.0, std, generator=_generator(f"{seed}/{name}" + (f"/{i}" if i else "")))
        pieces.append(drawn[max(rows.start - first, 0) : rows.stop - first])
    return torch.cat(pieces)[:, columns[0]]


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
