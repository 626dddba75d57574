"""AdamW with the published groups, and its state as named tensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.checkpoint.weights import Weights
from smollm3.errors import UserError
from smollm3.model import Transformer
from smollm3.quiet import quiet
from smollm3.tensors import read_tensors
from smollm3.train.adapters import trained
from smollm3.train.parts import fill, local
from smollm3.train.spec import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def adamw(model: Transformer, spec: Optimizer) -> torch.optim.Optimizer:
    """Weight decay on everything, norms too, but not on the token embedding.

    The rule is by the embedding's name (nanotron's `.*token_embedding.*`), so a tied output
    head goes without decay and an untied one has it. UserError for 8-bit moments without torchao.
    """
    named = trained(model)
    embedding = named.pop("embed.weight", None)
    groups: list[dict[str, Any]] = [
        {"params": list(named.values()), "weight_decay": spec.weight_decay}
    ]
    if embedding is not None:
        groups.append({"params": [embedding], "weight_decay": 0.0})
    if spec.moments == "float32":
        return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, eps=spec.eps, fused=True)
    with quiet():
        try:
            torchao = importlib.import_module("torchao.optim")
        except ImportError as e:
            raise UserError(
                f"optimizer: moments: 8bit needs torchao ({e}); pip install 'smollm3[gpu]'"
            ) from None
    in_8_bits: torch.optim.Optimizer = torchao.AdamW8bit(
        groups, lr=0.0, betas=spec.betas, eps=spec.eps
    )
    return in_8_bits


def update(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """One step at this rate, on the gradients as they are."""
    on_cpu = False
    for group in optimizer.param_groups:
        on_cpu = group["params"][0].device.type == "cpu"
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
    # torchao compiles its step, for which a CPU would need a C++ compiler and minutes.
    eager = on_cpu and not isinstance(optimizer, torch.optim.AdamW)
    with torch.compiler.set_stance("force_eager") if eager else nullcontext():
        optimizer.step()


def _empty(optimizer: Any, parameter: Tensor, moment: str) -> Tensor:
    """Room for a moment of a parameter, as the optimizer holds it."""
    if isinstance(optimizer, torch.optim.AdamW):
        return torch.empty_like(parameter)
    room: Tensor = optimizer._new_buffer(
        parameter, moment == MOMENTS[0]
    )  # only the first has signs
    return room


def _parts(name: str, moment: Any) -> dict[str, Tensor]:
    """A moment as plain tensors: itself, or its codes and scales."""
    if not hasattr(moment, "codes"):
        return {name: moment}
    return {f"{name}.codes": moment.codes, f"{name}.scale": moment.scale}


def tensors_of(optimizer: torch.optim.Optimizer, model: Transformer) -> dict[str, Tensor]:
    """`exp_avg/<parameter>`, `exp_avg_sq/<parameter>`, and `step`, alike for all parameters.

    What is held in 8 bits comes as `.codes` and `.scale`. Empty before the first update.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained(model).items():
        state = optimizer.state[parameter]
        for moment in MOMENTS:
            if moment in state:
                tensors |= _parts(f"{moment}/{name}", state[moment])
        if STEP in state:
            tensors[STEP] = state[STEP]
    return tensors


def set_tensors(
    optimizer: torch.optim.Optimizer,
    model: Transformer,
    tensors: Mapping[str, Tensor],
    source: Path,
) -> None:
    """Go on from what `tensors_of` gave; UserError naming `source` if it is another model's.

    tensors: whole, of which a sharded model takes its parts, or sharded as the model is.
    """
    if not tensors:
        return
    named = trained(model)
    rooms = {
        parameter: {moment: _empty(optimizer, parameter, moment) for moment in MOMENTS}
        for parameter in named.values()
    }
    places: dict[str, Tensor] = {}
    for name, parameter in named.items():
        for moment, room in rooms[parameter].items():
            places |= _parts(f"{moment}/{name}", room)
    for name in sorted({STEP, *places} ^ set(tensors)):
        raise _other(source, name)
    step = tensors[STEP].clone()

    def read(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise _other(source, name)
        return local(tensor) if local(tensor) is not tensor else tensor[part]

    fill(places, read)
    for parameter, moments in rooms.items():
        optimizer.state[parameter] = {STEP: step.to(local(parameter).device, copy=True)} | moments


def _other(source: Path, name: str) -> UserError:
    return UserError(
        f"{source}: {name}: not the optimizer state of this model; drop `optimizer` from carry"
    )


def empty_tensors(optimizer: torch.optim.Optimizer, model: Transformer) -> dict[str, Tensor]:
    """Room for what `tensors_of` gives, in the shapes and shards of `model`."""
    tensors = {STEP: torch.zeros(())}
    for name, parameter in trained(model).items():
        for moment in MOMENTS:
            tensors |= _parts(f"{moment}/{name}", _empty(optimizer, parameter, moment))
    return tensors


def load(optimizer: torch.optim.Optimizer, model: Transformer, path: Path) -> None:
    """Go on from a file of `tensors_of`, or the shards that are there in its place."""
    if path.exists():
        set_tensors(optimizer, model, read_tensors(path), path)
    else:
        set_tensors(optimizer, model, Weights(path.parent, path.stem), path)
