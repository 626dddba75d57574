"""Signals end a run after the step at hand, with a checkpoint saved.

SIGINT and SIGTERM are people's and systems', SIGHUP that of a terminal which is closed; SIGUSR1 is
what Slurm is asked to send before a job's time is over.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [
    getattr(signal, name)  # Windows has not all
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


class Stopped(Exception):
    """Training was asked to stop; the checkpoint of `step` is saved and the next run resumes."""

    def __init__(self, step: int, signal: int) -> None:
        super().__init__(f"stopped at step {step}; run again to resume")
        self.step = step
        self.signal = signal


class StopSignals:
    """Within the block the first of these signals is only noted in `received`.

    A second one does what it always did. Ignored signals stay ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__(None, None, None)
