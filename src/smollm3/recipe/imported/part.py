"""What one configuration file gives: stages, sources, and what a recipe has no word for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict


class ForeignModel(BaseModel):
    """The keys that are read of somebody else's file; it may have any others."""

    model_config = ConfigDict(extra="ignore")


@dataclass
class Part:
    """stages: their proposed names and values, in order. sources: name -> values. model: the
    network, where it is trained from nothing. joined: whether its sets are joined whole, so that
    weights must be sizes. notes: what was left out, for a person."""

    stages: list[tuple[str, dict[str, Any]]]
    sources: dict[str, dict[str, Any]]
    seed: int
    model: dict[str, Any] | None = None
    joined: bool = False
    notes: list[str] = field(default_factory=list)
