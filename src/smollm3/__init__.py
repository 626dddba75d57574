"""SmolLM3 in one package: train, post-train, run, serve and understand it.

The names below load their modules when first used, so `import smollm3` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smollm3.agent import Agent, tool
    from smollm3.checkpoint import load_model, load_tokenizer, save_model
    from smollm3.infer import Engine, SamplingParams, load_engine

__all__ = [
    "Agent",
    "Engine",
    "SamplingParams",
    "load_engine",
    "load_model",
    "load_tokenizer",
    "save_model",
    "tool",
]

_HOMES = {
    "load_model": "smollm3.checkpoint",
    "load_tokenizer": "smollm3.checkpoint",
    "save_model": "smollm3.checkpoint",
    "load_engine": "smollm3.infer",
    "Engine": "smollm3.infer",
    "SamplingParams": "smollm3.infer",
    "Agent": "smollm3.agent",
    "tool": "smollm3.agent",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("smollm3")
    if name not in _HOMES:
        raise AttributeError(f"module 'smollm3' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
