"""An answer that goes on when the server has run the Python that it asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

from pydantic_core import from_json

from smollm3.agent import ToolResult
from smollm3.agent.loop import MAX_STEPS, PYTHON
from smollm3.chat import ToolCall
from smollm3.infer.grammars import Tools
from smollm3.serve.ask import Ask
from smollm3.serve.errors import ApiError
from smollm3.serve.events import Answering, Block, Blocks, End, Part, Ran, StreamEvent, Usage

Json = dict[str, Any]


class Run(Protocol):
    """Makes calls of Python, until it is closed."""

    async def __call__(self, call: ToolCall) -> ToolResult: ...
    def close(self) -> None: ...


class Steps(Answering):
    """The one answer of a request, of several steps. Their tokens count together; after the last
    step that may call, it has to do without."""

    def __init__(
        self, first: Answering, again: Callable[[Ask], Awaitable[Answering]], run: Run
    ) -> None:
        self.ask = first.ask
        self.prompts = first.prompts
        self.usage = Usage()
        self._now = first
        self._again = again
        self._run = run
        self._blocks = Blocks()
        self._failed: ApiError | None = None

    def abort(self, error: ApiError) -> None:
        self._failed = error
        self._now.abort(error)

    def close(self) -> None:
        self._now.close()
        self._run.close()

    @property
    def cached(self) -> int:
        return self._now.cached

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        for turn in range(MAX_STEPS):
            end = None
            async for event in self._now:
                if isinstance(event, End):
                    end = event
                    continue
                if isinstance(event, Part):
                    self._blocks.feed(event)
                yield event
            assert end is not None
            self.usage += self._now.usage
            calls = self._calls(turn) if end.reason == "tool_calls" else []
            for place, block in calls:
                if block.name == PYTHON:
                    yield Ran(place)
                    ran = Ran(place, await self._run(ToolCall(PYTHON, arguments_of(block.text))))
                    self._blocks.ran(ran)
                    yield ran
            if self._failed:
                raise self._failed
            if not calls or any(block.result is None for _, block in calls):
                yield replace(end, usage=self.usage)
                return
            if self._room() == 0:
                yield End(0, "length", None, self.usage)
                return
            self._now.close()
            self._now = await self._again(self._next(last=turn == MAX_STEPS - 2))

    def _calls(self, turn: int) -> list[tuple[int, Block]]:
        """Of the step that has just ended, with their places."""
        blocks = enumerate(self._blocks.all)
        return [(i, block) for i, block in blocks if (block.kind, block.turn) == ("call", turn)]

    def _room(self) -> int | None:
        """Tokens that may still be written."""
        most = self.ask.max_tokens
        return None if most is None else max(0, most - self.usage.completion)

    def _next(self, last: bool) -> Ask:
        """What the results are answered with: another call only where the model wants one."""
        ask, [prompt] = self.ask, self.ask.prompts
        named = ((block, f"call{i:05}") for i, block in enumerate(self._blocks.all))
        constraint = ask.constraint
        if isinstance(constraint, Tools):
            constraint = None if last else replace(constraint, choice="auto")
        return replace(
            ask,
            prompts=[replace(prompt, messages=[*prompt.messages, *messages_of(named)])],
            max_tokens=self._room(),
            constraint=constraint,
            calls=ask.calls and not last,
            python=not last,
        )


def messages_of(blocks: Iterable[tuple[Block, str]]) -> list[Json]:
    """An answer as templates know it, from its blocks, each with the id of its call: a message for
    each turn, after it the results of those calls that the server has run."""
    told: list[Json] = []
    for _, turn in groupby(blocks, lambda pair: pair[0].turn):
        texts = {"reasoning": "", "content": ""}
        calls, results = [], []
        for block, name in turn:
            if block.kind != "call":
                texts[block.kind] += block.text
                continue
            function = {"name": block.name, "arguments": block.text}
            calls.append({"id": name, "type": "function", "function": function})
            if block.result is not None:
                content = block.result.text
                results.append({"role": "tool", "tool_call_id": name, "content": content})
        message: Json = {"role": "assistant", "content": texts["content"]}
        if texts["reasoning"]:
            message["reasoning_content"] = texts["reasoning"]
        told += [message | ({"tool_calls": calls} if calls else {}), *results]
    return told


def arguments_of(text: str) -> Json:
    """Of a call that was cut off: what there is, which is what clients make of a stream."""
    try:
        given = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
