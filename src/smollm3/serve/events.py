"""One stream of events from the engine, that every dialect tells in its own words.

What a request's answers are is decided here and nowhere else: which text is reasoning, content or a
call, where a stop text ends it, what it has used. Streamed or not, the events are the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from smollm3.agent import ToolResult
from smollm3.chat import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
)
from smollm3.errors import UserError
from smollm3.infer import Step
from smollm3.infer.grammars import END_THINK, THINK
from smollm3.infer.text import StopTexts
from smollm3.infer.worker import CLOSED
from smollm3.serve.ask import Ask, Started
from smollm3.serve.errors import ApiError, refused, shutting_down

Reason = Literal["stop", "length", "tool_calls"]
QUIET_SECONDS = 10.0  # without an event, after which a stream says that it lives


@dataclass(frozen=True)
class Usage:
    """Tokens: read, of these found computed, written, of these reasoning."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
        )


@dataclass(frozen=True)
class Part:
    """What one token has added to answer `index`. step: None for what came at its end."""

    index: int
    step: Step | None
    events: Sequence[Event]


@dataclass(frozen=True)
class End:
    """Answer `index` is complete. stop: the stop text that ended it."""

    index: int
    reason: Reason
    stop: str | None
    usage: Usage


@dataclass(frozen=True)
class Ran:
    """The server runs the call that is block number `place` of the answer, or has run it."""

    place: int
    result: ToolResult | None = None
    index: int = 0


@dataclass(frozen=True)
class Quiet:
    """Nothing has happened for a while."""


StreamEvent = Part | End | Ran | Quiet


class _Answer:
    """One answer, token by token."""

    def __init__(self, index: int, ask: Ask, started: Started) -> None:
        self.index = index
        self.generation = started.generation
        self.ended = False
        self._ask = ask
        self._parser = ask.parser()
        self._stops = StopTexts(ask.stops)
        self._called = False
        self._tokens = self._reasoning = 0
        self._head = THINK if started.opened else ""  # the text up to the end of the reasoning
        self._thinking: bool | None = True if started.opened else None  # None: not known yet
        if started.opened:
            self._parser.feed(THINK)

    def take(self, step: Step) -> Part:
        """A token more."""
        self._tokens += 1
        self._count_reasoning(step.text)
        return Part(self.index, step, self._read(self._parser.feed(step.text)))

    def finish(self) -> tuple[Part, End]:
        """No more come."""
        reason = self.generation.result().finish_reason
        events: list[Event] = []
        if not self.ended:
            events = self._read(self._parser.finish())
            if not self.ended and (rest := self._stops.end()):
                events.append(ContentDelta(rest))
        finish: Reason = "length" if reason == "length" and not self.ended else "stop"
        if self._called and finish == "stop":
            finish = "tool_calls"
        generation = self.generation
        usage = Usage(
            generation.prompt_tokens, generation.cached_tokens, self._tokens, self._reasoning
        )
        end = End(self.index, finish, self._stops.found, usage)
        return Part(self.index, None, events), end

    def _count_reasoning(self, text: str) -> None:
        if self._thinking is False:
            return
        self._head = (self._head + text).lstrip() if self._thinking is None else self._head + text
        if self._thinking is None and len(self._head) >= len(THINK):
            self._thinking = self._head.startswith(THINK)
        elif self._thinking is None and not THINK.startswith(self._head):
            self._thinking = False
        if self._thinking:
            self._reasoning += 1
            self._thinking = END_THINK not in self._head
            self._head = self._head[-len(END_THINK) :]

    def _read(self, events: Sequence[Event]) -> list[Event]:
        """The events up to where the answer ends."""
        told: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta) and self._ask.stops:
                if piece := self._stops.push(event.text):
                    told.append(ContentDelta(piece))
                if self._stops.found:
                    self._end()
                    return told
                continue
            if isinstance(event, CallStart):
                self._called = True
                if rest := self._stops.end():
                    told.append(ContentDelta(rest))
            told.append(event)
            if isinstance(event, CallEnd) and not self._ask.parallel:
                self._end()
                return told
        return told

    def _end(self) -> None:
        """It is complete, whatever the model would still write."""
        self.ended = True
        self.generation.cancel()


class Answering:
    """The answers of one request, as they come: iterate once. Close it, however that ends.

    seconds: that they may take; left: of these, now."""

    def __init__(
        self, ask: Ask, started: Sequence[Started], seconds: float, left: float | None = None
    ) -> None:
        self.ask = ask
        self.prompts = [one.prompt for one in started[:: ask.params.n]]
        self.usage = Usage()
        self._answers = [_Answer(i, ask, one) for i, one in enumerate(started)]
        self._queue: asyncio.Queue[tuple[_Answer, Step | None] | BaseException] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._pump(answer)) for answer in self._answers]
        late = ApiError(504, f"the answer took longer than {seconds:g} s", code="timeout")
        self._timer = asyncio.get_running_loop().call_later(
            seconds if left is None else left, self.abort, late
        )

    def abort(self, error: ApiError) -> None:
        """End it with this error."""
        self._queue.put_nowait(error)
        self._cancel()

    def close(self) -> None:
        """Nobody waits for more."""
        self._timer.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for answer, task in zip(self._answers, self._tasks, strict=True):
            task.cancel()
            answer.generation.cancel()

    @property
    def cached(self) -> int:
        """Tokens of the first prompt that were found computed; known with the first token."""
        return self._answers[0].generation.cached_tokens

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Raises ApiError where the answers cannot be completed."""
        left = len(self._answers)
        while left:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    found = await self._queue.get()
            except TimeoutError:
                yield Quiet()
                continue
            if isinstance(found, BaseException):
                raise _told(found)
            answer, step = found
            if step is not None:
                if not answer.ended:
                    yield answer.take(step)
                continue
            part, end = answer.finish()
            left -= 1
            self._count(answer, end)
            if part.events:
                yield part
            yield end

    def _count(self, answer: _Answer, end: End) -> None:
        """A prompt is read once, however many answers it has."""
        used = end.usage
        if answer.index % self.ask.params.n:
            used = Usage(0, 0, used.completion, used.reasoning)
        self.usage += used

    async def _pump(self, answer: _Answer) -> None:
        try:
            async for step in answer.generation:
                self._queue.put_nowait((answer, step))
        except (UserError, RuntimeError) as e:
            self._queue.put_nowait(e)
        else:
            self._queue.put_nowait((answer, None))


def _told(error: BaseException) -> BaseException:
    """A request may turn out to be too much only on the way."""
    if str(error) == CLOSED:
        return shutting_down()
    return refused(str(error)) if isinstance(error, UserError) else error


@dataclass
class Block:
    """A stretch of an answer: its reasoning, content or one call (text: its arguments). steps: the
    tokens of content. result: of a call that the server has run. turn: how often it had run calls
    before."""

    kind: Literal["reasoning", "content", "call"]
    name: str = ""
    text: str = ""
    steps: list[Step] = field(default_factory=list)
    result: ToolResult | None = None
    turn: int = 0


@dataclass(frozen=True)
class Grown:
    """What has been added to a block. opened: it is new. step: the token that brought it."""

    block: Block
    text: str
    opened: bool
    step: Step | None


class Blocks:
    """An answer as its blocks, in the order in which they came."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._turn = 0

    def ran(self, event: Ran) -> Block:
        """The block whose call is run. What comes after results is another turn's."""
        block = self.all[event.place]
        block.result = event.result
        self._turn = block.turn + 1
        return block

    def feed(self, part: Part) -> list[Grown]:
        """What `part` adds. A block is complete once another begins."""
        grown = []
        for event in part.events:
            match event:
                case ReasoningDelta(text) if text:
                    block, opened = self._block("reasoning")
                case ContentDelta(text) if text:
                    block, opened = self._block("content")
                    if part.step is not None:
                        block.steps.append(part.step)
                case CallStart(_, name):
                    block, opened, text = self._open(Block("call", name)), True, ""
                case ArgumentsDelta(_, text) if text:
                    block, opened = self.all[-1], False
                case _:
                    continue
            block.text += text
            grown.append(Grown(block, text, opened, part.step))
        return grown

    def _block(self, kind: Literal["reasoning", "content"]) -> tuple[Block, bool]:
        if self.all and (self.all[-1].kind, self.all[-1].turn) == (kind, self._turn):
            return self.all[-1], False
        return self._open(Block(kind)), True

    def _open(self, block: Block) -> Block:
        block.turn = self._turn
        self.all.append(block)
        return block


@dataclass
class Collected:
    """An answer in one piece. text: as the model wrote it."""

    parts: Blocks = field(default_factory=Blocks)
    steps: list[Step] = field(default_factory=list)
    text: str = ""
    end: End | None = None

    def add(self, event: Part | End | Ran) -> None:
        if isinstance(event, End):
            self.end = event
            return
        if isinstance(event, Ran):
            self.parts.ran(event)
            return
        if event.step is not None:
            self.steps.append(event.step)
            self.text += event.step.text
        self.parts.feed(event)

    @property
    def blocks(self) -> list[Block]:
        return self.parts.all

    @property
    def reasoning(self) -> str:
        return self._texts("reasoning")

    @property
    def content(self) -> str:
        return self._texts("content")

    @property
    def calls(self) -> list[Block]:
        return [block for block in self.blocks if block.kind == "call"]

    def _texts(self, kind: str) -> str:
        return "".join(block.text for block in self.blocks if block.kind == kind)

    @property
    def done(self) -> End:
        assert self.end is not None
        return self.end


async def collect(count: int, events: AsyncIterator[StreamEvent]) -> list[Collected]:
    """All answers in one piece, in the order in which they were asked for."""
    answers = [Collected() for _ in range(count)]
    async for event in events:
        if not isinstance(event, Quiet):
            answers[event.index].add(event)
    return answers
