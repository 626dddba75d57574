"""The answers of one HTTP request as one stream of events: `turn.Reply`, for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from smollm3.errors import UserError
from smollm3.infer import Step
from smollm3.infer.errors import EngineClosed, RequestFailed
from smollm3.serve.ask import Ask
from smollm3.serve.errors import ApiError, shutting_down, too_late, wrong
from smollm3.turn import End, Part, Reply, ToolResult, Usage

QUIET_SECONDS = 10.0  # without an event, after which a stream says that it lives


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


class Answered(Protocol):
    """Complete answers to what one HTTP request, or one line of a batch, asks."""

    @property
    def ask(self) -> Ask: ...
    @property
    def replies(self) -> Sequence[Reply]: ...
    @property
    def usage(self) -> Usage: ...
    @property
    def prompt(self) -> list[int]: ...
    @property
    def cached(self) -> int: ...


class Answering:
    """The answers of one request, as they come: iterate once. Close it, however that ends.

    seconds: that they may take; left: of these, now. blocks, end: of the one answer, where there
    is only one."""

    def __init__(
        self, ask: Ask, replies: Sequence[Reply], seconds: float, left: float | None = None
    ) -> None:
        self.ask = ask
        self.replies = replies
        self.usage = Usage()
        self.blocks = replies[0].blocks
        self.end: End | None = None
        self._queue: asyncio.Queue[tuple[Reply, Step | None] | BaseException] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._pump(reply)) for reply in replies]
        self._timer = asyncio.get_running_loop().call_later(
            seconds if left is None else left, self.abort, too_late(seconds)
        )

    @property
    def prompt(self) -> list[int]:
        """The first one's tokens."""
        return self.replies[0].prompt

    @property
    def warnings(self) -> list[str]:
        """What was asked for and is not enforced."""
        return list(dict.fromkeys(line for reply in self.replies for line in reply.warnings))

    @property
    def cached(self) -> int:
        """Tokens of the first prompt that the prefix cache had; known with the first token."""
        return self.replies[0].usage.cached

    def when_made(self, done: Callable[[], None]) -> None:
        """Call this once the engine has done its part, whether or not anybody reads the answers."""
        made = asyncio.gather(*self._tasks, return_exceptions=True)
        made.add_done_callback(lambda _: done())

    def abort(self, error: ApiError) -> None:
        """End it with this error."""
        self._queue.put_nowait(error)
        self._cancel()

    def close(self) -> None:
        """Nobody waits for more."""
        self._timer.cancel()
        self._cancel()

    def _cancel(self) -> None:
        for reply, task in zip(self.replies, self._tasks, strict=True):
            task.cancel()
            reply.cancel()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Raises ApiError where the answers cannot be completed."""
        left = len(self.replies)
        while left:
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    found = await self._queue.get()
            except TimeoutError:
                yield Quiet()
                continue
            if isinstance(found, BaseException):
                raise _told(found)
            reply, step = found
            if step is not None:
                if not reply.ended:
                    yield reply.feed(step)
                continue
            part, end = reply.finish()
            left -= 1
            self._count(end)
            self.end = end
            if part.events:
                yield part
            if end.broken:
                raise ApiError(422, end.broken, code="answer_breaks_schema")
            yield end

    def _count(self, end: End) -> None:
        """A prompt is read once, however many answers it has."""
        used = end.usage
        if end.index % self.ask.n:
            used = Usage(0, 0, used.completion, used.reasoning)
        self.usage += used

    async def _pump(self, reply: Reply) -> None:
        try:
            async for step in reply.generation:
                self._queue.put_nowait((reply, step))
        except (UserError, RequestFailed) as e:
            self._queue.put_nowait(e)
        else:
            self._queue.put_nowait((reply, None))


def _told(error: BaseException) -> BaseException:
    """A request may turn out to be too much only on the way."""
    if isinstance(error, EngineClosed):
        return shutting_down()
    return wrong(error) if isinstance(error, UserError) else error
