"""What one HTTP request asks of the engine, in nobody's dialect."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smollm3.chat.calls import inside
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

    @property
    def characters(self) -> int:
        """Of the longest text that is asked: the prompt with its tools, or what is predicted."""
        prompts = [
            (r.messages, r.prompt, r.prefill, r.instructions, r.tools, r.python_tools, r.variables)
            for r in self.requests
        ]
        return max(characters(prompts), characters([r.prediction for r in self.requests]))

    def start(self, engine: Engine, cache_salt: str) -> list[Reply]:
        """Hand it to the engine. Raises UserError for what is wrong."""
        return submit(engine, [replace(r, cache_salt=cache_salt) for r in self.requests])


def characters(value: Any) -> int:
    """Of all texts in a value, its keys aside."""
    total, left = 0, [value]
    while left:
        match left.pop():
            case str() as text:
                total += len(text)
            case Mapping() as held:
                left += held.values()
            case list() | tuple() as held:
                left += held
    return total


def can_think(engine: Engine) -> bool:
    """Whether the model knows reasoning: its template does."""
    return engine.tokenizer.knows_thinking


def check_schema(where: str, schema: Any, settings: Settings) -> None:
    """Raises ApiError for one too large or deep to be looked at."""
    most = settings.max_schema_bytes
    depth, values = _measured(schema, settings.max_schema_depth, most)
    if depth > settings.max_schema_depth:
        raise refused(f"{where}: nested deeper than {settings.max_schema_depth}", where)
    if values > most or len(json.dumps(schema)) > most:  # a value has at least a byte
        raise refused(f"{where}: more than {most} bytes", where)


def _measured(value: Any, deepest: int, most: int) -> tuple[int, int]:
    """Levels of lists and objects, and values in them, counted hardly beyond their limits."""
    depth, values, level = 0, 0, [value]
    while level and depth <= deepest and values <= most:
        level = inside(level)
        depth += 1
        values += len(level)
    return depth, values
