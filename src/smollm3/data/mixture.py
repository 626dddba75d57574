"""Which samples make up any stretch of a mixture, computed without state."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

# Times are floor(x * TICKS): fine enough that samples of one source never share a tick.
TICKS = 1 << 128


class Mixture:
    """Samples of several sources in one order, in proportion to integer weights.

    Sample i of a source with share w (weight / sum of weights) has the virtual time (i + 1/2) / w;
    the order is by time, then by name. So at any time t a source has given t * w samples, rounded.
    Of the first n samples a source has given n * w within 1/2 + w * S / 2, where S is the number
    of sources: 1/2 for its own rounding, w * S / 2 as n is t only up to everyone's rounding.
    """

    def __init__(self, weights: Mapping[str, float | Fraction]) -> None:
        """Weights count as the decimal fractions they are written as: 0.1 is one tenth."""
        self.names = sorted(weights)
        exact = [Fraction(str(weights[name])) for name in self.names]
        denominator = lcm(*(weight.denominator for weight in exact))
        integers = [int(weight * denominator) for weight in exact]
        divisor = gcd(*integers)
        self._weights = [weight // divisor for weight in integers]
        self._total = sum(self._weights)

    def _until(self, time: int) -> list[int]:
        """How many samples of each source lie at or before tick `time`.

        Sample i lies at floor((2i + 1) * TICKS / 2W). That is <= time if and only if
        (2i + 1) * TICKS < (time + 1) * 2W, so i counts up to floor((x + 1) / 2) with
        x = ((time + 1) * 2W - 1) // TICKS.
        """
        return [max(0, (((time + 1) * 2 * w - 1) // TICKS + 1) // 2) for w in self._weights]

    def _around(self, start: int, stop: int) -> tuple[int, list[int], list[tuple[int, int, int]]]:
        """(rank, counts, samples): samples (tick, source, index) in order from `rank` <= start to
        beyond `stop`, and how many of each source come before them.

        n samples end near tick n * TICKS / total, at most S / 2 samples off; no search is needed.
        """
        slack = len(self.names)
        before = self._until((2 * start - slack) * TICKS // (2 * self._total) - 2)
        after = self._until((2 * stop + slack) * TICKS // (2 * self._total) + 2)
        samples = [
            ((2 * i + 1) * TICKS // (2 * weight), source, i)
            for source, weight in enumerate(self._weights)
            for i in range(before[source], after[source])
        ]
        return sum(before), before, sorted(samples)

    def samples(self, start: int, stop: int) -> list[tuple[str, int]]:
        """(source, index of the sample in it) of the samples ranked start..stop-1."""
        rank, _, samples = self._around(start, stop)
        return [(self.names[source], i) for _, source, i in samples[start - rank : stop - rank]]

    def counts(self, n: int) -> dict[str, int]:
        """How many samples of each source are among the first n."""
        rank, counts, samples = self._around(n, n)
        for _, source, _ in samples[: n - rank]:
            counts[source] += 1
        return dict(zip(self.names, counts, strict=True))
