"""The base of all that a file, a command or a request can say."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Unknown keys are refused, which makes typing errors visible; values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
