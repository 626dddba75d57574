"""Skips the updates of bad batches: a loss that is not finite, or a spike far above its mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 50  # good steps before a loss can be called a spike
DEVIATIONS = 6.0
FLOOR = 0.5  # nats; below a deviation of a sixth of it, small wobbles are no spikes
MEMORY = 0.98  # of the running mean and variance: about the last 50 steps
PATIENCE = 20  # skipped updates in a row before the run stops


@dataclass
class LossSpikeGuard:
    """Judges each step from numbers that all ranks share, so that all decide alike.

    The fields are all its memory, and JSON-able. Skipped losses do not enter the mean.
    """

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def accepts(self, loss: float, grad_norm: float) -> bool:
        """Whether the update may be made; counts it either way."""
        good = math.isfinite(loss) and math.isfinite(grad_norm) and not self._is_spike(loss)
        if not good:
            self.skipped += 1
            self.skipped_in_a_row += 1
            return False
        self.skipped_in_a_row = 0
        self.steps += 1
        # 1 - 1/n is the plain mean's weight; it takes over from the start-up at n = 50.
        memory = min(MEMORY, 1 - 1 / self.steps)
        surprise = loss - self.mean
        self.mean += (1 - memory) * surprise
        self.variance = memory * (self.variance + (1 - memory) * surprise**2)
        return True

    @property
    def gives_up(self) -> bool:
        return self.skipped_in_a_row >= PATIENCE

    def _is_spike(self, loss: float) -> bool:
        usual = max(DEVIATIONS * math.sqrt(self.variance), FLOOR)
        return self.steps >= WARM_UP and loss > self.mean + usual
