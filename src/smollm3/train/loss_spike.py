"""Skips the updates of bad batches: a loss that is not finite, or a spike far above its mean.

A broken step comes once, or every step after it is broken too. Spikes that come again and again,
each between good steps, are rare hard rows, which must be learnt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 50  # good steps before a loss can be called a spike
DEVIATIONS = 6.0
FLOOR = 0.5  # nats; below a deviation of a sixth of it, small wobbles are no spikes
MEMORY = 0.98  # of the running mean and variance: about the last 50 steps
PATIENCE = 20  # skipped updates in a row before the run stops
RARE = 3  # spikes between good steps, after which such spikes are taken for data


@dataclass
class LossSpikeGuard:
    """Judges each step from numbers that all ranks share, so that all decide alike.

    The fields are all its memory, and JSON-able. Skipped losses do not enter the mean, and of a
    spike that is taken only what is usual does. alone: spikes so far that followed a good step.
    """

    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    alone: int = 0
    after_spike: bool = False

    def accepts(self, loss: float, grad_norm: float, *, spikes: bool = False) -> bool:
        """Whether the update may be made; counts it either way. spikes: any that is a number."""
        finite = math.isfinite(loss) and math.isfinite(grad_norm)
        usual = self._usual() if self.steps >= WARM_UP else math.inf
        spike = finite and loss > self.mean + usual
        rare = spike and not self.after_spike and self.alone >= RARE
        self.alone += spike and not self.after_spike
        self.after_spike = spike or not finite
        if not finite or (spike and not rare and not spikes):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return False
        self.skipped_in_a_row = 0
        self.steps += 1
        # 1 - 1/n is the plain mean's weight; it takes over from the start-up at n = 50.
        memory = min(MEMORY, 1 - 1 / self.steps)
        surprise = min(loss - self.mean, usual)
        self.mean += (1 - memory) * surprise
        self.variance = memory * (self.variance + (1 - memory) * surprise**2)
        return True

    @property
    def gives_up(self) -> bool:
        return self.skipped_in_a_row >= PATIENCE

    def _usual(self) -> float:
        """Nats above the mean that are no spike."""
        return max(DEVIATIONS * math.sqrt(self.variance), FLOOR)
