"""AdamW with the published groups, and its state as named tensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from smollm3.errors import UserError
from smollm3.model import Transformer
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.job import TrainResult
from smollm3.train.spec import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")
STEP = "step"


def adamw(model: Transformer, spec: Optimizer) -> torch.optim.AdamW:
    """Weight decay on everything, norms too, but not on the token embedding.

    The rule is by the embedding's name (nanotron's `.*token_embedding.*`), so a tied output
    head goes without decay and an untied one has it.
    """
    named = dict(model.named_parameters())
    embedding = named.pop("embed.weight")
    groups = [
        {"params": list(named.values()), "weight_decay": spec.weight_decay},
        {"params": [embedding], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=spec.betas, eps=spec.eps, fused=True)


def tensors_of(optimizer: torch.optim.AdamW, model: Transformer) -> dict[str, Tensor]:
    """`exp_avg/<parameter>`, `exp_avg_sq/<parameter>`, and `step`, alike for all parameters.

    Empty before the first update.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for moment in MOMENTS:
            if moment in state:
                tensors[f"{moment}/{name}"] = state[moment]
        if STEP in state:
            tensors[STEP] = state[STEP]
    return tensors


def set_tensors(
    optimizer: torch.optim.AdamW, model: Transformer, tensors: dict[str, Tensor], source: Path
) -> None:
    """Go on from what `tensors_of` gave; UserError naming `source` if it is another model's."""
    if not tensors:
        return
    named = dict(model.named_parameters())
    shapes = {STEP: torch.Size([])} | {
        f"{moment}/{name}": p.shape for name, p in named.items() for moment in MOMENTS
    }
    for name in shapes.keys() | tensors.keys():
        if name not in shapes or name not in tensors or tensors[name].shape != shapes[name]:
            raise UserError(
                f"{source}: {name}: not the optimizer state of this model; "
                "drop `optimizer` from carry"
            )
    for name, parameter in named.items():
        optimizer.state[parameter] = {STEP: tensors[STEP].to(parameter.device, copy=True)} | {
            moment: tensors[f"{moment}/{name}"].to(parameter.device, copy=True)
            for moment in MOMENTS
        }


def load(optimizer: torch.optim.AdamW, model: Transformer, path: Path) -> None:
    """Go on from a file of `save_optimizer`."""
    set_tensors(optimizer, model, read_tensors(path), path)


def save_optimizer(result: TrainResult, path: Path) -> None:
    """Write the moments that a later stage's `carry: [optimizer]` goes on with."""
    write_tensors(path, result.optimizer)
