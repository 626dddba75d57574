"""How a request wants its tokens chosen."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.files import read_json


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy. top_k: of the k likeliest (0: all). top_p: of the likeliest whose
    probabilities first reach p. min_p: of those at least p times as likely as the likeliest.
    None takes the model's own setting. max_tokens: at most so many new tokens. seed: with the
    token's place it fixes the random number that picks it.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        if self.top_p == 0:
            raise UserError("top_p: 0.0 leaves no token; for the likeliest use temperature 0")
        for name, least in (("top_k", 0), ("max_tokens", 1), ("seed", None)):
            value = getattr(self, name)
            if name == "top_k" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise UserError(f"{name}: must be a whole number, not {value!r}")
            if least is not None and value < least:
                raise UserError(f"{name}: must be at least {least}, not {value}")

    def over(self, model: SamplingParams) -> SamplingParams:
        """These settings, and the model's own where they are None."""
        names = ("temperature", "top_k", "top_p", "min_p")
        return replace(self, **{n: getattr(model, n) for n in names if getattr(self, n) is None})


def _check(name: str, value: Any, low: float, high: float) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= min(high, sys.float_info.max):
        limits = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise UserError(f"{name}: must be a number {limits}, not {value!r}")


# As SmolLM3 was published; for a folder that says nothing.
PUBLISHED = SamplingParams(temperature=0.6, top_k=0, top_p=0.95, min_p=0.0)


def model_params(folder: Path) -> SamplingParams:
    """The model's own settings, from its generation_config.json."""
    file = folder / "generation_config.json"
    if not file.exists():
        return PUBLISHED
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: the file is not a JSON object")
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    chosen: dict[str, Any] = {n: v if values.get(n) is None else values[n] for n, v in off.items()}
    if not values.get("do_sample"):
        chosen["temperature"] = 0.0
    try:
        return SamplingParams(**chosen)
    except UserError as e:
        raise UserError(f"{file}: {e}") from None
