"""AdamW with the published groups, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.checkpoint.weights import Weights
from smollm3.errors import UserError
from smollm3.model import Transformer
from smollm3.tensors import read_tensors
from smollm3.train.adapters import trained
from smollm3.train.parts import fill, local
from smollm3.train.spec import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def adamw(model: Transformer, spec: Optimizer) -> torch.optim.AdamW:
    """Weight decay on everything, norms too, but not on the token embedding.

    The rule is by the embedding's name (nanotron's `.*token_embedding.*`), so a tied output
    head goes without decay and an untied one has it.
    """
    named = trained(model)
    embedding = named.pop("embed.weight", None)
    groups: list[dict[str, Any]] = [
        {"params": list(named.values()), "weight_decay": spec.weight_decay}
    ]
    if embedding is not None:
        groups.append({"params": [embedding], "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, eps=spec.eps, fused=True)


def tensors_of(optimizer: torch.optim.AdamW, model: Transformer) -> dict[str, Tensor]:
    """`exp_avg/<parameter>`, `exp_avg_sq/<parameter>`, and `step`, alike for all parameters.

    Empty before the first update.
    """
    tensors = {}
    for name, parameter in trained(model).items():
        state = optimizer.state[parameter]
        for moment in MOMENTS:
            if moment in state:
                tensors[f"{moment}/{name}"] = state[moment]
        if STEP in state:
            tensors[STEP] = state[STEP]
    return tensors


def set_tensors(
    optimizer: torch.optim.AdamW, model: Transformer, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Go on from what `tensors_of` gave; UserError naming `source` if it is another model's.

    tensors: whole, of which a sharded model takes its parts, or sharded as the model is.
    """
    if not tensors:
        return
    named = trained(model)
    expected = {STEP, *(f"{moment}/{name}" for name in named for moment in MOMENTS)}
    for name in sorted(expected ^ set(tensors)):
        raise _other(source, name)
    step = tensors[STEP].clone()

    def read(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise _other(source, name)
        return local(tensor) if local(tensor) is not tensor else tensor[part]

    for name, parameter in named.items():
        moments = {moment: torch.empty_like(parameter) for moment in MOMENTS}
        fill({f"{moment}/{name}": tensor for moment, tensor in moments.items()}, read)
        optimizer.state[parameter] = {STEP: step.to(local(parameter).device, copy=True)} | moments


def _other(source: Path, name: str) -> UserError:
    return UserError(
        f"{source}: {name}: not the optimizer state of this model; drop `optimizer` from carry"
    )


def empty_tensors(model: Transformer) -> dict[str, Tensor]:
    """Room for what `tensors_of` gives, in the shapes and shards of `model`."""
    tensors = {STEP: torch.zeros(())}
    for name, parameter in trained(model).items():
        tensors |= {f"{moment}/{name}": torch.empty_like(parameter) for moment in MOMENTS}
    return tensors


def load(optimizer: torch.optim.AdamW, model: Transformer, path: Path) -> None:
    """Go on from a file of `tensors_of`, or the shards that are there in its place."""
    if path.exists():
        set_tensors(optimizer, model, read_tensors(path), path)
    else:
        set_tensors(optimizer, model, Weights(path.parent, path.stem), path)
