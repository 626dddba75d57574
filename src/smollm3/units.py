"""Numbers as people read them: 1.23M tokens, 4.5 GB, 2m 31s."""

from __future__ import annotations


def count(n: float | None) -> str:
    """Three digits and a unit: 950, 1.23M, 11.1T; '?' for None."""
    return "?" if n is None else _scaled(n, ["", "k", "M", "B", "T"])


def size(n: float | None) -> str:
    """Bytes in decimal units: 950 B, 6.15 GB; '?' for None."""
    return "?" if n is None else _scaled(n, [" B", " kB", " MB", " GB", " TB", " PB"])


def duration(seconds: float | None) -> str:
    """The two largest units: 8.5s, 2m 31s, 3h 05m, 24d 2h; '?' for None."""
    if seconds is None:
        return "?"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60}h {minutes % 60:02d}m"
    hours = round(seconds / 3600)
    return f"{hours // 24:,}d {hours % 24}h"


def rate(x: float) -> str:
    """A learning rate as it is written in a recipe: 2e-4, 2.5e-5, 0.01, 0."""
    if x == 0 or x >= 0.01:
        return f"{x:g}"
    digits, exponent = f"{x:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def _scaled(n: float, units: list[str]) -> str:
    """`n` with the unit that leaves one to three digits before the point."""
    for unit in units[:-1]:
        # 999.5 would print as 1000: it belongs to the next unit.
        if abs(n) < 999.5:
            return _digits(n) + unit
        n /= 1000
    return _digits(n) + units[-1]


def _digits(n: float) -> str:
    if abs(n) >= 999.5:
        return f"{n:,.0f}"
    return f"{n:.3g}"
