"""Linear merges and soups of checkpoints, streamed tensor by tensor."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from smollm3.checkpoint.weights import Weights, write_weights
from smollm3.errors import UserError
from smollm3.files import disk_errors

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def merge(parents: Mapping[Path, float], out: Path) -> None:
    """Write to `out` the mean of the parents' tensors, weighted by `parents`.

    Each tensor is sum(w * t) / sum(w), computed in float32 and written in the dtype of the first
    parent, which also gives the config and the tokenizer (Wortsman et al. 2022, arXiv:2203.05482;
    SmolLM3 is 0.9 x a soup of preference checkpoints + 0.1 x a long-context one). Raises UserError
    for a weight that is not above 0, or parents that differ in a tensor's name or shape.
    """
    if not parents:
        raise UserError("merge: no parents given")
    for folder, weight in parents.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"merge: the weight of {folder} is {weight}; it must be above 0")
    total = math.fsum(parents.values())
    sources = [(Weights(folder), weight / total) for folder, weight in parents.items()]
    folders = list(parents)
    first = sources[0][0]
    for folder, (other, _) in zip(folders[1:], sources[1:], strict=True):
        _check_alike(folders[0], first, folder, other)

    def merged(name: str) -> Tensor:
        mean = torch.zeros(first.shapes[name])
        for tensors, share in sources:
            mean.add_(tensors[name], alpha=share)
        return mean.to(getattr(torch, first.dtypes[name]))

    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for file in COPIED:
            if (folders[0] / file).exists():
                shutil.copyfile(folders[0] / file, out / file)
    sizes = {
        name: math.prod(first.shapes[name]) * getattr(torch, first.dtypes[name]).itemsize
        for name in first
    }
    write_weights(out, sizes, merged)


def _check_alike(first: Path, ours: Weights, second: Path, theirs: Weights) -> None:
    odd = min(ours.keys() ^ theirs.keys(), default=None)
    if odd is not None:
        has, lacks = (first, second) if odd in ours else (second, first)
        raise UserError(f"merge: {odd} is in {has} but not in {lacks}")
    for name, shape in ours.shapes.items():
        other = theirs.shapes[name]
        if shape != other:
            raise UserError(
                f"merge: {name} is {list(shape)} in {first} but {list(other)} in {second}"
            )
