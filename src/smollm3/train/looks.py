"""What the held-out loss of a stage has been so far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Looks:
    """What the looks so far have found; JSON-able. best: the lowest loss and its step, None before
    the first look. since: looks since then."""

    best: float | None = None
    step: int = 0
    since: int = 0

    def better(self, loss: float, step: int) -> bool:
        """Take in a look; whether it is the best."""
        if self.best is None or loss < self.best:
            self.best, self.step, self.since = loss, step, 0
            return True
        self.since += 1
        return False
