"""Published scores, shipped with their sources; data/published.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from smollm3.errors import UserError

# What a model is called on the command line -> in the published tables.
NAMES = {
    "smollm3-3b": "SmolLM3-3B",
    "smollm3-3b-base": "SmolLM3-3B-Base",
    "smollm2-135m": "SmolLM2-135M-Instruct",
}


@dataclass(frozen=True)
class Published:
    """A table: benchmark scores in percent by model; `suites` have the rows to compare with."""

    name: str
    suites: Sequence[str]
    source: str
    protocol: str
    scores: Mapping[str, Mapping[str, float]]


@cache
def tables() -> tuple[Published, ...]:
    file = resources.files("smollm3.eval").joinpath("data/published.yaml")
    entries = yaml.safe_load(file.read_text(encoding="utf-8"))
    return tuple(Published(name, **entry) for name, entry in entries.items())


def models() -> list[str]:
    return sorted({model for table in tables() for model in table.scores})


def name_of(model: str) -> str | None:
    """What the tables call a MODEL of the command line; None for one that they do not have."""
    plain = model.rstrip("/").rsplit("/", 1)[-1].partition("@")[0]
    if plain.lower() in NAMES:
        return NAMES[plain.lower()]
    return next((name for name in models() if name.lower() == plain.lower()), None)


def need_model(name: str) -> str:
    if name not in models():
        raise UserError(f"--against: {name!r} is not one of {', '.join(models())}")
    return name


def win_rates(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Model -> the share of other models that it beats, over the benchmarks that all have; a tie
    counts a half. Times the number of others it is the average score of the playbook's plot."""
    shared = set.intersection(*(set(row) for row in scores.values())) if scores else set()
    if not shared or len(scores) < 2:
        return {}
    rates = {}
    for model, own in scores.items():
        others = [row for name, row in scores.items() if name != model]
        wins = [
            1.0 if own[b] > row[b] else 0.5 if own[b] == row[b] else 0.0
            for b in shared
            for row in others
        ]
        rates[model] = sum(wins) / len(wins)
    return rates
