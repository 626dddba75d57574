"""Two recipes, field by field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from smollm3.recipe.schema import Recipe
from smollm3.train.spec import TrainStage

# Why a recipe of ours says something else than the file it was made from.
REASONS = {
    "save_every": "decides nothing of the result; steps there differ in length by 16 times",
    "recompute": "left to the planner, which knows the GPU's memory",
    "tokens": "the published counts say how long a stage is before its data are there",
    "epochs": "the published counts say how long a stage is before its data are there",
    "steps": "pairs are counted as published, once",
    "lr.warmup": "the published share, of the steps that these counts give",
    "packing": "the file leaves it to trl; the report says that rows were cut from one stream",
}


@dataclass(frozen=True)
class Difference:
    """One field: what was imported, what the other recipe has, and why, where that is known."""

    field: str
    imported: Any
    other: Any
    reason: str | None


def differences(imported: Recipe, other: Recipe) -> list[Difference]:
    """Fields in which the network and the train stages differ; stages are matched by their order.

    Sources are compared by name and weight, as shares of their mixture.
    """
    found = list(_fields("model", _dump(imported.model), _dump(other.model)))
    ours, theirs = _train_stages(imported), _train_stages(other)
    for (_, mine), (name, stage) in zip(ours, theirs, strict=False):
        found += _fields(f"stages.{name}", _dump(mine), _dump(stage))
    for name, _ in ours[len(theirs) :]:
        found.append(Difference(f"stages.{name}", name, None, "only imported"))
    for name, _ in theirs[len(ours) :]:
        found.append(Difference(f"stages.{name}", None, name, f"only in {other.name}"))
    return found


def _train_stages(recipe: Recipe) -> list[tuple[str, TrainStage]]:
    return [(n, stage) for n, stage in recipe.stages.items() if isinstance(stage, TrainStage)]


def _dump(model: Any) -> dict[str, Any]:
    return {} if model is None else dict(model.model_dump(exclude={"from_"}))


def _fields(at: str, mine: dict[str, Any], other: dict[str, Any]) -> Iterator[Difference]:
    for key in dict.fromkeys([*mine, *other]):
        a, b = mine.get(key), other.get(key)
        if key == "mixture":
            a, b = _shares(a or {}), _shares(b or {})
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _fields(f"{at}.{key}", a, b)
        elif not _same(a, b):
            field = f"{at}.{key}"
            yield Difference(field, a, b, _reason(field))


def _shares(mixture: dict[str, float]) -> dict[str, float]:
    total = sum(mixture.values())
    return {name: weight / total for name, weight in mixture.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, int | float):
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))
    return bool(a == b)


def _reason(field: str) -> str | None:
    stage_field = field.split(".", 2)[-1] if field.startswith("stages.") else field
    known = (reason for key, reason in REASONS.items() if f"{stage_field}.".startswith(f"{key}."))
    return next(known, None)
