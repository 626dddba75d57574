"""The base of everything a recipe can say: unknown keys are refused, values do not change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A strict, frozen part of a recipe. `extra="forbid"` is what makes typing errors visible."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
