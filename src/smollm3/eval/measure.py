"""A measured number with its 95% interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959964  # the normal distribution's 97.5% point


@dataclass(frozen=True)
class Measure:
    """value with its 95% interval [low, high]; n: the items it was measured on."""

    value: float
    low: float
    high: float
    n: int


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
    return Measure(p, min(max(low, 0.0), p), max(min(high, 1.0), p), n)


def ratio(sums: Sequence[float], counts: Sequence[int]) -> Measure:
    """sum(sums) / sum(counts) over documents, which differ in length and are independent.

    Standard error of a ratio: sqrt(d/(d-1) · Σ (sum_i - r·count_i)²) / Σ count_i; Cochran 1977,
    section 6.4. Needs two documents at least.
    """
    d, total = len(sums), sum(counts)
    r = sum(sums) / total
    spread = sum((s - r * c) ** 2 for s, c in zip(sums, counts, strict=True))
    half = Z * math.sqrt(d / (d - 1) * spread) / total
    return Measure(r, r - half, r + half, d)
