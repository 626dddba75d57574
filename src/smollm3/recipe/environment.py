"""What the bits and the times of a run depend on, beside the recipe."""

from __future__ import annotations

from typing import Any

from smollm3.machine import machine
from smollm3.recipe.schema import Recipe


def environment(recipe: Recipe) -> dict[str, Any]:
    """The machine and versions, for stage.json and the report."""
    return {**machine(), "processes": recipe.ranks(recipe.parallel), "threads": recipe.threads}
