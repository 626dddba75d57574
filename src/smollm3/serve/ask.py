"""A request in nobody's dialect, and how it is handed to the engine."""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smollm3.chat import StreamParser
from smollm3.errors import UserError
from smollm3.infer import Engine, Generation, SamplingParams
from smollm3.infer.backends import BLOCK
from smollm3.infer.grammars import THINK, Spec, Tools
from smollm3.infer.thinking import reasoning_of
from smollm3.serve.errors import refused
from smollm3.serve.settings import Settings

CALL = "<tool_call>"


@dataclass(frozen=True)
class Prompt:
    """What is answered: messages with what the template is told, or a text, or token ids."""

    messages: Sequence[Any] = ()
    tools: Sequence[Any] = ()
    python_tools: Sequence[Any] = ()
    thinking: bool = True
    instructions: str | None = None
    raw: str | Sequence[int] | None = None

    def ids(self, engine: Engine) -> list[int]:
        """Raises UserError for what the template does not take."""
        tokenizer = engine.tokenizer
        if self.raw is None:
            return tokenizer.render(
                self.messages,
                tools=list(self.tools) or None,
                python_tools=list(self.python_tools) or None,
                enable_thinking=self.thinking,
                custom_instructions=self.instructions,
                date=datetime.date.today(),
            ).ids
        if isinstance(self.raw, str):
            bos = [] if tokenizer.bos is None else [tokenizer.bos]
            return bos + tokenizer.encode(self.raw)
        return list(self.raw)


@dataclass(frozen=True)
class Ask:
    """n answers to each prompt.

    stops: texts that end the content of a conversation's answer; the engine's own `params.stop`
    ends any text. constraint: of what follows the reasoning. optional: where the constraint is no
    more than a help, and is left out if it cannot be had. calls: whether the answer may call tools.
    glass_box: tell everything of each token.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    constraint: Spec | None = None
    optional: bool = False
    thinking_budget: int | None = None
    parallel: bool = True
    calls: bool = False
    python: bool = False
    glass_box: bool = False
    seeded: bool = False
    banned: Sequence[int] = field(default=())

    @property
    def count(self) -> int:
        return len(self.prompts) * self.params.n

    def parser(self) -> StreamParser:
        return StreamParser(xml=self.calls, python=self.python)


@dataclass(frozen=True)
class Started:
    """An answer on its way. opened: the prompt ends inside a block of reasoning."""

    generation: Generation
    prompt: list[int]
    opened: bool


def start(ask: Ask, engine: Engine, settings: Settings, salt: str) -> list[Started]:
    """Hand it to the engine; prompt-major. Raises UserError and ApiError for what is wrong."""
    params = ask.params if ask.seeded else replace(ask.params, seed=secrets.randbits(62))
    if ask.banned:
        bias = {**params.logit_bias, **dict.fromkeys(ask.banned, -1e9)}
        params = replace(params, logit_bias=bias)
    started: list[Started] = []
    try:
        for prompt in ask.prompts:
            ids = prompt.ids(engine)
            room = min(engine.config.context, engine.backend.blocks * BLOCK) - len(ids)
            most = min(settings.max_tokens, max(room, 1))
            limited = replace(params, max_tokens=ask.max_tokens or most)
            opened = prompt.raw is None and reasoning_of(engine.tokenizer, ids) == "open"
            for choice in limited.choices():
                generation = _submit(ask, engine, ids, choice, salt)
                started.append(Started(generation, ids, opened))
    except BaseException:
        for one in started:
            one.generation.cancel()
        raise
    return started


def _submit(
    ask: Ask, engine: Engine, ids: list[int], params: SamplingParams, salt: str
) -> Generation:
    def submit(constraint: Spec | None) -> Generation:
        return engine.submit(
            ids, params, constraint=constraint, thinking_budget=ask.thinking_budget, salt=salt
        )

    try:
        return submit(ask.constraint)
    except UserError as e:
        if not (ask.optional and str(e).startswith(("tools:", "constraints need"))):
            raise
        return submit(None)


def tools_constraint(
    tools: Sequence[Any], choice: Any, parallel: bool, python: bool
) -> Tools | None:
    return Tools(tools, choice, parallel=parallel, python=python) if tools or python else None


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
