"""Measured numbers with their 95% intervals, and the interval of a difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Z = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Measure:
    """value with its 95% interval [low, high]; n: the items it was measured on.

    hits: of a share, whether each item counts. errors: of a ratio, what each item adds to its
    distance from the truth, (sum_i - r·count_i) / Σ count. Only `difference` reads these two.
    """

    value: float
    low: float
    high: float
    n: int
    hits: tuple[bool, ...] = field(default=(), repr=False)
    errors: tuple[float, ...] = field(default=(), repr=False)

    def numbers(self) -> dict[str, float | int]:
        """What is written down: without the single items."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def share(hits: Sequence[bool]) -> Measure:
    """The share of hits with Wilson's score interval, which stays within [0, 1].

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n); Wilson 1927.
    """
    n = len(hits)
    p = sum(hits) / n
    centre = p + Z * Z / (2 * n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    # The bounds reach 0 and 1 exactly at p = 0 and 1: rounding must cross neither them nor p.
    low, high = (centre - half) / scale, (centre + half) / scale
    return Measure(p, min(max(low, 0.0), p), max(min(high, 1.0), p), n, hits=tuple(hits))


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Measure:
    """sum(sums) / sum(counts) over documents, which differ in length and are independent.

    Standard error of a ratio: sqrt(d/(d-1) · Σ (sum_i - r·count_i)²) / Σ count_i; Cochran 1977,
    section 6.4. Needs two documents at least.
    """
    d, total = len(sums), sum(counts)
    r = sum(sums) / total
    errors = tuple((s - r * c) / total for s, c in zip(sums, counts, strict=True))
    half = Z * _standard_error(errors)
    return Measure(r, r - half, r + half, d, errors=errors)


def mean(values: Sequence[float]) -> Measure:
    """The mean of independent items with its normal interval: mean ± z·s/sqrt(n)."""
    n = len(values)
    centre = math.fsum(values) / n
    variance = math.fsum((v - centre) ** 2 for v in values) / max(n - 1, 1)
    half = Z * math.sqrt(variance / n)
    return Measure(centre, centre - half, centre + half, n)


def difference(measure: Measure, baseline: Measure, factor: float = 1.0) -> Measure:
    """measure - factor·baseline with its interval, both shares or both ratios.

    Measures of as many items are of the same items, so each item is compared with itself: what
    is hard for both is no difference. A difference of shares is estimated with half a pair of
    each of the four kinds added, which keeps its interval honest where few pairs differ
    (Agresti and Min 2005; unpaired, one hit and one miss added to each: Agresti and Caffo 2000).
    """
    value = measure.value - factor * baseline.value
    paired = measure.n == baseline.n
    if measure.hits and paired:
        pairs = list(zip(measure.hits, baseline.hits, strict=True))
        halves = [(a, b) for a in (False, True) for b in (False, True)]
        differences = [a - factor * b for a, b in [*pairs, *pairs, *halves]]  # in half pairs
        n = len(differences) / 2
        centre = sum(differences) / (2 * n)
        variance = sum((d - centre) ** 2 for d in differences) / (2 * n)
        half = Z * math.sqrt(variance / n)
    elif measure.hits:
        shares = [((sum(m.hits) + 1) / (m.n + 2), m.n + 2) for m in (measure, baseline)]
        (p, n_p), (q, n_q) = shares
        centre = p - factor * q
        half = Z * math.sqrt(p * (1 - p) / n_p + factor**2 * q * (1 - q) / n_q)
    elif paired:
        centre = value
        both = zip(measure.errors, baseline.errors, strict=True)
        half = Z * _standard_error([a - factor * b for a, b in both])
    else:
        centre = value
        errors = (_standard_error(measure.errors), factor * _standard_error(baseline.errors))
        half = Z * math.hypot(*errors)
    return Measure(value, centre - half, centre + half, min(measure.n, baseline.n))


def _standard_error(errors: Sequence[float]) -> float:
    n = len(errors)
    return math.sqrt(n / (n - 1) * sum(e * e for e in errors))
