"""The queue in front of the engine: so many answers at once, so many waiting, no longer than so."""

from __future__ import annotations

import asyncio
from collections import deque

from smollm3.serve.errors import ApiError


class AdmissionQueue:
    """First come, first served. Of one event loop."""

    def __init__(self, running: int, queue: int, seconds: float) -> None:
        self._room = running
        self._most = running
        self._queue = queue
        self._seconds = seconds
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def running(self) -> int:
        return self._most - self._room

    @property
    def waiting(self) -> int:
        return sum(count for count, _ in self._waiting)

    def check(self, count: int) -> None:
        """Raises ApiError for so many answers that their turn would never come."""
        if count > self._most:
            raise ApiError(
                400, f"{count} answers are more than this server makes at once", param="n"
            )

    async def enter(self, count: int) -> None:
        """Wait until `count` more answers may be made; `leave` gives them back. Raises ApiError
        429 when too many wait already, or this has waited too long."""
        self.check(count)
        if not self._waiting and count <= self._room:
            self._room -= count
            return
        if self.waiting + count > self._queue:
            raise self._busy("too many requests wait already")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (count, turn)
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(self._seconds):
                await turn
        except BaseException as e:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._room += count  # its turn came in the same moment
            elif entry in self._waiting:
                self._waiting.remove(entry)
            self._admit()
            if isinstance(e, TimeoutError):
                raise self._busy(f"no turn came within {self._seconds:g} s") from None
            raise

    def leave(self, count: int) -> None:
        self._room += count
        self._admit()

    def refuse_waiting(self, error: ApiError) -> None:
        """Whoever waits gets this error instead of a turn."""
        for _, turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._room:
            count, turn = self._waiting.popleft()
            if turn.cancelled():
                continue
            self._room -= count
            turn.set_result(None)

    def _busy(self, why: str) -> ApiError:
        # An estimate: a tenth of what a wait may last.
        after = max(1, round(self._seconds / 10))
        return ApiError(429, f"{why}; try again later", code="queue_full", retry_after=after)


class Place:
    """`count` places that were entered; left once, when that is known first."""

    def __init__(self, queue: AdmissionQueue, count: int) -> None:
        self._queue = queue
        self._count = count

    def leave(self) -> None:
        self._queue.leave(self._count)
        self._count = 0
