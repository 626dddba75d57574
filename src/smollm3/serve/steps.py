"""An answer that goes on when the server has run the Python that it asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

from pydantic_core import from_json

from smollm3.chat import ToolCall
from smollm3.chat.tags import PYTHON
from smollm3.serve.answering import Answering, Ran, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.errors import ApiError
from smollm3.turn import AnswerBlock, AnswerBlocks, End, Part, ToolLoop, ToolResult, Usage

Json = dict[str, Any]


class RunsPython(Protocol):
    """Makes calls of Python, until it is closed."""

    async def __call__(self, call: ToolCall) -> ToolResult: ...
    def close(self) -> None: ...


class Steps(Answering):
    """The one answer of a request, of several steps, whose tokens count together."""

    def __init__(
        self, first: Answering, again: Callable[[Ask], Awaitable[Answering]], run: RunsPython
    ) -> None:
        [request] = first.ask.requests
        self.ask = first.ask
        self.replies = first.replies
        self.usage = Usage()
        self.blocks = AnswerBlocks()
        self.end = None
        self._loop = ToolLoop(
            request,
            ours=lambda call: call.name == PYTHON,
            tokens=None if request.fit else request.sampling.max_tokens,
        )
        self._now = first
        self._again = again
        self._run = run
        self._failed: ApiError | None = None

    def abort(self, error: ApiError) -> None:
        self._failed = error
        self._now.abort(error)

    def close(self) -> None:
        self._now.close()
        self._run.close()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        while True:
            first = len(self.blocks.all)
            async for event in self._now:
                if isinstance(event, Part):
                    self.blocks.feed(event.events, event.step)
                if not isinstance(event, End):
                    yield event
            self.usage += self._now.usage
            [reply] = self._now.replies
            calls, results = self._loop.feed(reply), []
            places = (i for i, b in enumerate(self.blocks.all) if i >= first and b.kind == "call")
            for place, call in zip(places, calls, strict=False):
                if call.name == PYTHON:
                    yield Ran(place)
                    results.append(await self._run(call))
                    self.blocks.made(place, results[-1])
                    yield Ran(place, results[-1])
            self._loop.results(results)
            if self._failed:
                raise self._failed
            request = self._loop.request
            if request is None:
                assert reply.end is not None
                self.end = replace(reply.end, usage=self.usage)
                if self._loop.reason == "length":
                    self.end = End(0, "length", None, self.usage)
                yield self.end
                return
            self._now.close()
            self._now = await self._again(replace(self.ask, requests=[request]))


def messages_of(blocks: Iterable[tuple[AnswerBlock, str]]) -> list[Json]:
    """An answer as templates know it, from its blocks, each with the id of its call: a message for
    each step, after it the results of those calls that the server has run."""
    told: list[Json] = []
    for _, step in groupby(blocks, lambda pair: pair[0].step):
        texts = {"reasoning": "", "content": ""}
        calls, results = [], []
        for block, name in step:
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
    """The arguments in this text. Of a call that was cut off: what there is, as clients read it."""
    try:
        given = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
