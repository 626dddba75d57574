"""An answer on its way: filled by the engine's thread, read from any thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from smollm3.errors import UserError
from smollm3.infer.errors import RequestFailed
from smollm3.infer.hooks import Constraint

FinishReason = Literal["stop", "length", "cancelled"]
Source = Literal["sampled", "draft", "forced"]
TopLogprobs = tuple[tuple[int, float], ...]  # (id, log-probability), likeliest first


@dataclass(frozen=True, slots=True)
class Step:
    """A new token. text: what it adds, "" while a character or a stop text may be incomplete; the
    pieces of all steps are the answer's text. logprob: natural logarithm, of the model's own
    distribution, before temperature and filters. source: "draft" is a draft
    token that was accepted, "forced" one that the constraint left alone."""

    id: int
    text: str
    logprob: float
    top_logprobs: TopLogprobs = ()
    source: Source = "sampled"


@dataclass(frozen=True)
class Completion:
    """ids: the new tokens, the one that stopped it included. text: theirs without that one, other
    control tokens and a stop text. logprobs: of each new token, as in `Step`.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    logprobs: list[float]
    top_logprobs: list[TopLogprobs] = field(default_factory=list)


class Channel:
    """What passes between the engine's thread and the readers of one request."""

    def __init__(self, prompt_tokens: int, constraint: Constraint | None = None) -> None:
        self.prompt_tokens = prompt_tokens
        self.constraint = constraint
        self.cached_tokens = 0
        self.accepted_prediction = self.rejected_prediction = 0  # draft tokens of what was expected
        self.steps: list[Step] = []
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._changed = threading.Condition()
        self._wakers: list[Callable[[], None]] = []

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def push(self, step: Step, reason: FinishReason | None) -> None:
        """One more; `reason` with the last. Too late once the request is cancelled."""
        with self._changed:
            if not self.done:
                self.steps.append(step)
                self.finish_reason = reason
                self._wake()

    def cancel(self) -> None:
        with self._changed:
            if not self.done:
                self.finish_reason = "cancelled"
                self._wake()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            if not self.done:
                self.error = error
                self._wake()

    def wait_past(self, count: int) -> None:
        """Until there are more than `count` steps, or the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self.steps) > count or self.done)

    def wait_done(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.done)

    async def wait_past_async(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed with its reader
                loop.call_soon_threadsafe(woken.set)

        with self._changed:
            if len(self.steps) > count or self.done:
                return
            self._wakers.append(wake)
        try:
            await woken.wait()
        finally:
            with self._changed:
                if wake in self._wakers:
                    self._wakers.remove(wake)

    def raise_error(self) -> None:
        """A new exception for each reader: a shared one would collect all their tracebacks."""
        if self.error is None:
            return
        if isinstance(self.error, UserError):
            raise type(self.error)(str(self.error)) from self.error
        kind = type(self.error).__name__
        raise RequestFailed(f"the engine failed on this request: {kind}: {self.error}") from (
            self.error
        )

    def _wake(self) -> None:
        self._changed.notify_all()
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()


class Generation:
    """An answer on its way: iterate over its steps, with `for` or `async for`, or wait for the
    whole. Each reader gets all steps from the first one. Dropping it cancels the request.
    """

    def __init__(self, channel: Channel, owner: object, cancel: Callable[[], None]) -> None:
        """owner: kept alive while this is; cancel: tells the engine."""
        self._channel = channel
        self._owner = owner
        self._cancel = cancel

    @property
    def prompt_tokens(self) -> int:
        return self._channel.prompt_tokens

    @property
    def constraint(self) -> Constraint | None:
        """What its tokens keep to."""
        return self._channel.constraint

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt found in the prefix cache; 0 until the request first runs."""
        return self._channel.cached_tokens

    @property
    def predicted_tokens(self) -> tuple[int, int]:
        """Of draft tokens out of its prediction: how many were accepted, and how often one was
        not."""
        return self._channel.accepted_prediction, self._channel.rejected_prediction

    @property
    def done(self) -> bool:
        return self._channel.done

    def __iter__(self) -> Iterator[Step]:
        channel, seen = self._channel, 0
        while True:
            channel.wait_past(seen)
            yield from channel.steps[seen : (end := len(channel.steps))]
            seen = end
            if channel.done and seen == len(channel.steps):
                channel.raise_error()
                return

    async def __aiter__(self) -> AsyncIterator[Step]:
        channel, seen = self._channel, 0
        while True:
            await channel.wait_past_async(seen)
            for step in channel.steps[seen : (end := len(channel.steps))]:
                yield step
            seen = end
            if channel.done and seen == len(channel.steps):
                channel.raise_error()
                return

    def ready(self, first: int) -> list[Step]:
        """The steps from number `first` on that are there now."""
        return self._channel.steps[first:]

    def result(self) -> Completion:
        """The whole answer, once it is there; of a cancelled request, what there was."""
        channel = self._channel
        channel.wait_done()
        channel.raise_error()
        steps, reason = channel.steps, channel.finish_reason
        assert reason is not None
        return Completion(
            [step.id for step in steps],
            "".join(step.text for step in steps),
            reason,
            [step.logprob for step in steps],
            [step.top_logprobs for step in steps] if steps and steps[0].top_logprobs else [],
        )

    def cancel(self) -> None:
        """End it now; a no-op once it has ended."""
        if not self._channel.done:
            self._channel.cancel()
            self._cancel()

    def __del__(self) -> None:
        self.cancel()
