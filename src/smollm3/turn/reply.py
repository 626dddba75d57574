"""The answer to a request: from the engine's steps to events, blocks and the message.

What an answer is (which text is reasoning, content or a call, where a stop text ends it, how many
tokens were reasoning) is decided here and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from smollm3.chat import CallEnd, CallStart, ContentDelta, Event, Message
from smollm3.infer.errors import BrokenAnswer
from smollm3.infer.generation import Generation, Step
from smollm3.infer.text import StopTexts
from smollm3.turn.blocks import AnswerBlocks

if TYPE_CHECKING:
    from smollm3.turn.request import Request

POLL_SECONDS = 0.005

# "length": cut at max_tokens or at the end of the context; "cancelled": by whoever asked.
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Tokens of the prompt, `cached` of them from the prefix cache, and of the answer. accepted,
    rejected: draft tokens out of a prediction, of each draft the first wrong one."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    reasoning: int = 0
    accepted: int = 0
    rejected: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.cached + other.cached,
            self.completion + other.completion,
            self.reasoning + other.reasoning,
            self.accepted + other.accepted,
            self.rejected + other.rejected,
        )


@dataclass(frozen=True)
class Part:
    """What one token has added to answer `index` of what was asked together. step: None for what
    came at its end. text: as the model wrote it, tags included."""

    index: int
    step: Step | None
    events: Sequence[Event]
    text: str


@dataclass(frozen=True)
class End:
    """Answer `index` is complete. stop: the stop text that ended it. broken: why it is not what
    was asked for, where that could not be enforced while it was written."""

    index: int
    reason: FinishReason
    stop: str | None
    usage: Usage
    broken: str | None = None


class Reply:
    """An answer on its way. Iterate over it once, wait for its `result`, or, where another loop
    reads the engine, `feed` it each step of its `generation` until it has `ended` or there are no
    more, and `finish` it.

    prompt: the ids that were read. steps: the tokens taken so far. end: once it is complete.
    """

    def __init__(
        self, request: Request, prompt: list[int], generation: Generation, opened: bool, index: int
    ) -> None:
        """opened: the prompt ends inside a block of reasoning."""
        self.request = request
        self.prompt = prompt
        self.generation = generation
        self.index = index
        self.blocks = AnswerBlocks()
        self.steps: list[Step] = []
        self.ended = False
        self.end: End | None = None
        self._parser = request.parser(opened)
        begun = "".join(
            event.text
            for event in self._parser.feed(request.prefill)
            if isinstance(event, ContentDelta)
        )
        # What it holds back of the prefill comes with more of the content.
        self._held = request.prefill.lstrip("\n").removeprefix(begun)
        self._stops = StopTexts(request.stops)  # of the content
        self._text_stops = StopTexts(request.stops)
        self._texts: list[str] = []
        self._reasoning = 0

    # what there is so far

    @property
    def text(self) -> str:
        """As the model wrote it, tags included, up to a stop text."""
        return "".join(self._texts)

    @property
    def message(self) -> Message:
        return self.blocks.message

    @property
    def usage(self) -> Usage:
        g = self.generation
        tokens = g.prompt_tokens, g.cached_tokens, len(self.steps), self._reasoning
        return Usage(*tokens, *g.predicted_tokens)

    @property
    def warnings(self) -> Sequence[str]:
        """What of its constraint is not enforced while it is written."""
        return getattr(self.generation.constraint, "warnings", ())

    @property
    def reason(self) -> FinishReason:
        """Why it is complete."""
        assert self.end is not None
        return self.end.reason

    # reading

    def __iter__(self) -> Iterator[Part | End]:
        """Its parts as they come, then its end. Raises what ended it in the engine; when nobody
        reads on, the request is cancelled."""
        try:
            for step in islice(self.generation, len(self.steps), None):
                yield self.feed(step)
                if self.ended:
                    break
            part, end = self.finish()
            if part.events or part.text:
                yield part
            yield end
        finally:
            self.cancel()

    def texts(self) -> Iterator[str]:
        """`text` as it comes."""
        for part in self:
            if isinstance(part, Part) and part.text:
                yield part.text

    def result(self) -> Message:
        """The whole message, once it is there. Raises BrokenAnswer as well as the engine's."""
        if self.end is None:
            for _ in self:
                pass
        assert self.end is not None
        if self.end.broken:
            raise BrokenAnswer(self.end.broken)
        return self.message

    def advance(self) -> bool:
        """Take what has come, if that may end it before the engine would, without waiting. Whether
        `result` would not wait either."""
        if self.end is None and (self.request.stops or not self.request.parallel):
            for step in self.generation.ready(len(self.steps)):
                self.feed(step)
                if self.ended:
                    self.finish()
                    break
        return self.end is not None or self.generation.done

    def cancel(self) -> None:
        """Nobody wants more of it."""
        self.generation.cancel()

    # without I/O

    def feed(self, step: Step) -> Part:
        """A token more."""
        self.steps.append(step)
        reasoned = self._parser.reasons
        events = self._told(self._parser.feed(step.text))
        reasoned = reasoned or self._parser.reasons
        self._reasoning += reasoned
        return self._part(step, events, step.text, stoppable=not reasoned)

    def finish(self) -> tuple[Part, End]:
        """No more come; the generation has ended, or `feed` has ended it."""
        events: list[Event] = []
        if not self.ended:
            events = self._told(self._parser.finish())
            if not self.ended and (rest := self._stops.end()):
                events.append(ContentDelta(rest))
        reason: FinishReason = "stop" if self.ended else self.generation.result().finish_reason
        part = self._part(None, events, "", stoppable=self.ended)
        if reason == "stop" and self.blocks.calls:
            reason = "tool_calls"
        broken = None
        if reason in ("stop", "tool_calls") and self._stops.found is None:
            broken = self._broken()
        self.end = End(self.index, reason, self._stops.found, self.usage, broken)
        return part, self.end

    def _part(self, step: Step | None, events: list[Event], text: str, stoppable: bool) -> Part:
        self.blocks.feed(events, step)
        if stoppable and not self.blocks.calling:
            text = self._text_stops.push(text)
        else:
            text = self._text_stops.end() + text
        self._texts.append(text)
        return Part(self.index, step, events, text)

    def _told(self, events: Sequence[Event]) -> list[Event]:
        """The events up to where the answer ends."""
        told: list[Event] = []
        for event in events:
            if isinstance(event, ContentDelta):
                text, self._held = event.text.removeprefix(self._held), ""
                if piece := self._stops.push(text):
                    told.append(ContentDelta(piece))
                if self._stops.found is not None:
                    self._end()
                    return told
                continue
            if isinstance(event, CallStart) and (rest := self._stops.end()):
                told.append(ContentDelta(rest))
            told.append(event)
            if isinstance(event, CallEnd) and not self.request.parallel:
                self._end()
                return told
        return told

    def _broken(self) -> str | None:
        """What the checks of its constraint find in the complete answer."""
        checks = getattr(self.generation.constraint, "checks", None) or {}
        texts = [(block.name, block.text) for block in self.blocks.calls]
        for name, text in texts or [("", self.blocks.text("content"))]:
            if name in checks and (found := checks[name].broken(text)):
                where = f"the call of {name}" if name else "the answer"
                return f"{where} does not satisfy its schema: {found}; ask again"
        return None

    def _end(self) -> None:
        """It is complete, whatever the model would still write."""
        self.ended = True
        self.generation.cancel()


def wait_all(replies: Sequence[Reply]) -> None:
    """Until each has its result; one that a stop text ends does not run on meanwhile."""
    left = list(replies)
    while left := [reply for reply in left if not reply.advance()]:
        time.sleep(POLL_SECONDS)
