"""From what a user calls a model to an engine."""

from __future__ import annotations

from pathlib import Path

import torch

from smollm3.checkpoint import digest, load_model, load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer.backends.torch import TorchBackend
from smollm3.infer.engine import Engine
from smollm3.infer.params import model_params

ENGINES = ("auto", "torch")


def load_engine(
    target: str | Path,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    context: int | None = None,
    engine: str = "auto",
) -> Engine:
    """The engine of a model folder, GGUF file, run folder, Hub id or short name.

    dtype: float32, bfloat16 or float16. context: tokens it must hold; more than config.json says
    turns on YaRN.
    """
    if engine not in ENGINES:
        raise UserError(f"engine: {engine!r} is not one of {', '.join(ENGINES)}")
    folder = locate(target)
    model = load_model(folder, dtype or "float32", device or "cpu", context)
    return Engine(
        TorchBackend(model),
        load_tokenizer(folder),
        model_params(folder),
        identity=lambda: digest(folder),
    )
