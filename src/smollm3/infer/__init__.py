"""The engine: prompts to tokens, conversations to messages, texts to log-probabilities.

The names below load their modules when first used, so that the command line can ask for the
settings of sampling without loading PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3.infer.backends.torch import TorchBackend
    from smollm3.infer.constrain.masks import Choice, Grammar, Json, Regex, Tools
    from smollm3.infer.engine import Engine
    from smollm3.infer.generation import Completion, Generation, Step
    from smollm3.infer.load import load_engine
    from smollm3.infer.params import SamplingParams

__all__ = [
    "Choice",
    "Completion",
    "Engine",
    "Generation",
    "Grammar",
    "Json",
    "Regex",
    "SamplingParams",
    "Step",
    "Tools",
    "TorchBackend",
    "load_engine",
]

_HOMES = {
    "TorchBackend": "backends.torch",
    **dict.fromkeys(("Choice", "Grammar", "Json", "Regex", "Tools"), "constrain.masks"),
    "Engine": "engine",
    **dict.fromkeys(("Completion", "Generation", "Step"), "generation"),
    "load_engine": "load",
    "SamplingParams": "params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'smollm3.infer' has no attribute {name!r}")
    return getattr(import_module(f"smollm3.infer.{_HOMES[name]}"), name)
