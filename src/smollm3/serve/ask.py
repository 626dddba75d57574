"""What one HTTP request asks of the engine, in nobody's dialect."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollm3.chat.tags import THINK
from smollm3.infer import Engine
from smollm3.serve.errors import refused
from smollm3.serve.settings import Settings
from smollm3.turn import Reply, Request, submit


@dataclass(frozen=True)
class Ask:
    """n answers to each of the requests. glass_box: tell everything of each token."""

    requests: Sequence[Request]
    glass_box: bool = False

    @property
    def n(self) -> int:
        return self.requests[0].sampling.n

    @property
    def count(self) -> int:
        return len(self.requests) * self.n

    def start(self, engine: Engine, cache_salt: str) -> list[Reply]:
        """Hand it to the engine. Raises UserError for what is wrong."""
        return submit(engine, [replace(r, cache_salt=cache_salt) for r in self.requests])


def can_think(engine: Engine) -> bool:
    """Whether the model knows reasoning: its template does."""
    return THINK in engine.tokenizer.template


def check_schema(where: str, schema: Any, settings: Settings) -> None:
    """Raises ApiError for one too large or deep to be looked at."""
    if _depth(schema, settings.max_schema_depth) > settings.max_schema_depth:
        raise refused(f"{where}: nested deeper than {settings.max_schema_depth}", where)
    size = len(json.dumps(schema))
    if size > settings.max_schema_bytes:
        raise refused(f"{where}: {size} bytes are more than {settings.max_schema_bytes}", where)


def _depth(value: Any, limit: int) -> int:
    """Levels of lists and objects, counted no further than one beyond the limit."""
    depth, level = 0, [value]
    while level and depth <= limit:
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        depth += 1
    return depth
