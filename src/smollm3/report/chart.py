"""Curves of a run as paths for an inline SVG.

The drawing is stretched to the width of the page, so it holds lines only; labels are HTML placed
in per cent of the plot. Coordinates: 0..1000 to the right and 0..1000 down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from smollm3.units import count

POINTS = 240  # drawn for each stage: more cannot be told apart on a screen
SIDE = 1000


@dataclass(frozen=True)
class Series:
    """One stage's values by optimizer step (1, 2, ...)."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Band:
    """A stage's share of the plot's width, in per cent."""

    name: str
    left: float
    width: float


@dataclass(frozen=True)
class Tick:
    """A label, in per cent from the left or from the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """dots, line: SVG path data. points: [x, y, read-out] for the pointer, in per cent."""

    title: str
    summary: str
    bands: list[Band]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    dots: str
    line: str
    points: list[tuple[float, float, str]]


def chart(
    title: str,
    series: Sequence[Series],
    label: Callable[[float], str],
    *,
    smooth: bool = False,
    from_zero: bool = False,
) -> Chart | None:
    """Stages one after the other over the steps of all; None without any finite value.

    smooth: draw the values as faint dots under their moving average. from_zero: the axis too.
    """
    series = [_finite(s) for s in series]
    values = [value for s in series for value in s.values]
    if not values:
        return None
    low, high, y_values = ticks(0 if from_zero else min(values), max(values))
    lengths = [s.steps[-1] if s.steps else 0 for s in series]
    total = max(sum(lengths), 1)
    bands, dots, line, points, ends = [], [], [], [], []
    offset = 0
    for s, length in zip(series, lengths, strict=True):
        bands.append(Band(s.name, 100 * offset / total, 100 * length / total))
        drawn = smoothed(s.values) if smooth else list(s.values)
        if drawn:
            ends.append(f"{s.name} from {label(drawn[0])} to {label(drawn[-1])}")
        command = "M"
        for i in _spread(len(drawn), POINTS):
            x = (offset + s.steps[i]) / total
            y = (high - drawn[i]) / (high - low)
            line.append(f"{command}{x * SIDE:.1f} {y * SIDE:.1f}")
            command = "L"
            points.append(
                (
                    round(100 * x, 2),
                    round(100 * y, 2),
                    f"{s.name}, step {s.steps[i]:,}: {label(drawn[i])}",
                )
            )
            if smooth:
                raw = (high - s.values[i]) / (high - low)
                dots.append(f"M{x * SIDE:.1f} {raw * SIDE:.1f}h0")
        offset += length
    return Chart(
        title,
        f"{title}: {', '.join(ends)}",
        bands,
        [Tick(100 * x / total, count(x)) for x in ticks(0, total)[2] if x <= total],
        [Tick(100 * (high - y) / (high - low), label(y)) for y in y_values],
        "".join(dots),
        "".join(line),
        points,
    )


def ticks(low: float, high: float, target: int = 5) -> tuple[float, float, list[float]]:
    """Round numbers around [low, high], about `target` of them: (first, last, all)."""
    # Labels show four digits: a narrower range would repeat them.
    high = max(high, low + 0.005 * abs(low), low + 1e-9)
    raw = (high - low) / target
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Dividing by the inverse keeps 0.3 from becoming 0.30000000000000004.
    values = [n * step if step >= 1 else n / round(1 / step, 9) for n in range(first, last + 1)]
    return values[0], values[-1], values


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a thirtieth of the values, unbiased at the start."""
    keep = 1 - 2 / (max(1.0, len(values) / 30) + 1)
    average, weight, out = 0.0, 0.0, []
    for value in values:
        average = keep * average + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        out.append(average / weight)
    return out


def _finite(series: Series) -> Series:
    """Without the steps that were skipped for a loss that is no number."""
    kept = [
        (step, value)
        for step, value in zip(series.steps, series.values, strict=True)
        if math.isfinite(value)
    ]
    return Series(series.name, [step for step, _ in kept], [value for _, value in kept])


def _spread(n: int, most: int) -> list[int]:
    """At most `most` of the indices 0..n-1, evenly spread, both ends included."""
    if n <= most:
        return list(range(n))
    return [round(i * (n - 1) / (most - 1)) for i in range(most)]
