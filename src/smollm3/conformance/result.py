"""What came out: rows, a table for people, JSON and an exit code for machines."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

Status = Literal["pass", "fail", "skip"]
STYLES: dict[Status, str] = {"pass": "green", "fail": "bold red", "skip": "yellow"}


@dataclass(frozen=True)
class ResultRow:
    """One probe. measured, tolerance: greatest difference in natural log-probability, found and
    allowed; None where equality is asked. note: the diagnosis, or why it was skipped."""

    probe: str
    status: Status
    measured: float | None = None
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    target: str
    rows: list[ResultRow]

    @property
    def exit_code(self) -> int:
        """0 if nothing failed and something passed, else 1."""
        counts = self._counts()
        return int(counts["fail"] > 0 or counts["pass"] == 0)

    def _counts(self) -> Counter[Status]:
        return Counter(row.status for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        counts = self._counts()
        return {
            "target": self.target,
            **{status: counts[status] for status in STYLES},
            "rows": [asdict(row) for row in self.rows],
        }

    def table(self) -> Table:
        counts = self._counts()
        table = Table(
            title=f"Conformance of {self.target}",
            caption=", ".join(f"{counts[status]} {status}" for status in STYLES),
        )
        for column in ("probe", "", "measured", "allowed", "note"):
            table.add_column(
                column, justify="right" if column in ("measured", "allowed") else "left"
            )
        for row in self.rows:
            numbers = ["" if x is None else f"{x:.1e}" for x in (row.measured, row.tolerance)]
            status = Text(row.status, STYLES[row.status])
            table.add_row(row.probe, status, *numbers, Text(row.note))
        return table
