"""The report's tables as lists of tasks; data/suites.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from smollm3.errors import UserError
from smollm3.eval.target import Settings


@dataclass(frozen=True)
class Row:
    """One benchmark of a table, in one language.

    benchmark: as the report names it. task: of the harness, or ours. metric: "metric,filter" that
    is compared. shots: examples. form: "cloze" (options' texts), "letters" or "generate".
    same: whether the report's own protocol is this one; else why not.
    """

    benchmark: str
    task: str
    metric: str
    shots: int
    form: str
    language: str = "en"
    same: bool = True
    why: str = ""


@dataclass(frozen=True)
class Suite:
    """Rows, and how a model is asked in all of them."""

    name: str
    rows: tuple[Row, ...]
    settings: Settings

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(row.task for row in self.rows))


@cache
def _suites() -> dict[str, Any]:
    text = resources.files("smollm3.eval").joinpath("data/suites.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def names() -> list[str]:
    return list(_suites())


def suite_of(name: str) -> Suite:
    if name not in _suites():
        raise UserError(f"--suite: {name!r} is not one of {', '.join(names())}")
    entry = _suites()[name]
    rows = tuple(Row(**row) for row in entry["rows"])
    return Suite(name, rows, Settings(**entry.get("settings", {})))


def rows() -> list[Row]:
    """Those of all suites."""
    return [row for name in names() for row in suite_of(name).rows]
