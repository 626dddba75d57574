"""Two plots as SVG: scores with intervals, and a heat map of length and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from smollm3.eval.measure import Measure

ROW, LABEL, WIDE, CELL = 26, 260, 420, 44
_COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#6b46c1", "#b83280", "#975a16")
_FONT = 'font-family="system-ui, sans-serif" font-size="13"'


@dataclass(frozen=True)
class Bar:
    """A score and its interval in percent; published: a mark beside it."""

    label: str
    value: float
    low: float
    high: float
    published: float | None


def bars(shown: Sequence[Bar], title: str) -> str:
    """A row for each: a dot with its interval, and a ring for the published score."""
    width, height = LABEL + WIDE + 80, ROW * (len(shown) + 2)

    def x(percent: float) -> float:
        return LABEL + WIDE * min(max(percent, 0.0), 100.0) / 100

    parts = []
    for percent in range(0, 101, 20):
        parts.append(_line(x(percent), ROW, x(percent), height - ROW, "#ddd"))
        parts.append(_text(x(percent), height - 8, f"{percent}%", "middle"))
    for row, bar in enumerate(shown, 1):
        y = ROW * row + ROW / 2
        parts.append(_text(LABEL - 12, y + 4, bar.label, "end"))
        parts.append(_line(x(bar.low), y, x(bar.high), y, "#2b6cb0", 3))
        parts.append(f'<circle cx="{x(bar.value):.1f}" cy="{y}" r="5" fill="#2b6cb0"/>')
        if bar.published is not None:
            parts.append(
                f'<circle cx="{x(bar.published):.1f}" cy="{y}" r="6" fill="none" '
                'stroke="#c05621" stroke-width="2"/>'
            )
        parts.append(_text(LABEL + WIDE + 12, y + 4, f"{bar.value:.1f}", "start"))
    return _svg(width, height, title, parts)


def heat_map(cells: Mapping[tuple[int, int], float], title: str) -> str:
    """cells: (length, tenth of the depth) -> score from 0 to 1."""
    lengths = sorted({length for length, _ in cells})
    width, height = 140 + CELL * len(lengths), ROW * 2 + 30 * 10 + 30
    parts = [_text(12, ROW * 2 + 150, "depth", "start")]
    for column, length in enumerate(lengths):
        left = 120 + CELL * column
        parts.append(_text(left + CELL / 2, height - 10, f"{length // 1024}k", "middle"))
        for depth in range(10):
            top = ROW * 2 + 30 * depth
            if (length, depth) in cells:
                score = cells[length, depth]
                parts.append(
                    f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="28" '
                    f'fill="hsl({120 * score:.0f} 55% 55%)"><title>{length:,} tokens, depth '
                    f"{10 * depth}%: {100 * score:.0f}%</title></rect>"
                )
    for depth in range(10):
        parts.append(_text(112, ROW * 2 + 30 * depth + 19, f"{10 * depth}%", "end"))
    return _svg(width, height, title, parts)


def curves(shown: Mapping[str, Sequence[tuple[float, Measure]]], title: str) -> str:
    """Scores from 0 to 1 over a share from 0 to 1, a line with its intervals for each name."""
    left, top, wide, high = 60, 50, 420, 260

    def place(share: float, score: float) -> tuple[float, float]:
        return left + wide * share, top + high * (1 - min(max(score, 0.0), 1.0))

    parts = []
    for tenth in range(0, 11, 2):
        x, y = place(tenth / 10, tenth / 10)
        parts.append(_line(left, y, left + wide, y, "#ddd"))
        parts.append(_text(left - 8, y + 4, f"{10 * tenth}%", "end"))
        parts.append(_text(x, top + high + 20, f"{tenth / 10:g}", "middle"))
    for i, (name, points) in enumerate(shown.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        line = " ".join("{:.1f},{:.1f}".format(*place(share, m.value)) for share, m in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for share, m in points:
            (x, low), (_, most) = place(share, m.low), place(share, m.high)
            parts.append(_line(x, low, x, most, colour))
        parts.append(
            f'<g fill="{colour}">{_text(left + wide + 14, top + 14 + 18 * i, name, "start")}</g>'
        )
    height = max(top + high + 40, top + 18 * len(shown) + 20)
    return _svg(left + wide + 240, height, title, parts)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" {_FONT}><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="white"/>'
    )
    return head + _text(12, 20, title, "start") + "".join(parts) + "</svg>\n"


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, thick: int = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{thick}"/>'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
