"""The standing panel: what a model could before it was trained on, beside what it can after.

Rows come from an eval stage's `panel` and from a benchmark stage's `beside`. Each compares item
with item, so that what is hard for both is no difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smollm3.eval.local import is_here
from smollm3.eval.measure import Measure, difference
from smollm3.files import read_json, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from smollm3.tokenizer import Tokenizer

FILE = "panel.json"

# Short questions with few tokens, and their data sets: what `smollm3 finetune` asks.
TASKS = {
    "arc_easy": "allenai/ai2_arc",
    "piqa": "baber/piqa",
    "openbookqa": "allenai/openbookqa",
}


MODES, CALLS = ("obeys/think", "obeys/no_think"), "tool_json/no_think"


def questions(tokenizer: Tokenizer) -> list[str]:
    """The made-up ones that a model's chat template can ask: of the rest nothing can be lost."""
    modes = MODES if tokenizer.knows_thinking else ()
    return [*modes, *([CALLS] if tokenizer.shows_tools else ())]


@dataclass(frozen=True)
class Row:
    """A metric before and after, in per cent (a loss: in nats a token), and the 95% interval of
    after - before over n items."""

    what: str
    before: float
    after: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """What the interval shows: "better", "worse", or nothing."""
        up, down = self.low > 0, self.high < 0
        if self.what.startswith("loss/"):
            up, down = down, up
        return "better" if up else "worse" if down else ""

    def cells(self) -> tuple[str, ...]:
        """What, before, after, interval of the difference, items, verdict: as people read them."""
        form = "{:.3f}" if self.what.startswith("loss/") else "{:.1f}%"
        plus = form.replace("{:", "{:+").replace("%", "")
        interval = f"{plus.format(self.low)} to {plus.format(self.high)}"
        shown = (form.format(self.before), form.format(self.after))
        return self.what, *shown, interval, f"{self.n:,}", self.verdict


@dataclass(frozen=True)
class Panel:
    """before, after: names of the two models."""

    before: str
    after: str
    rows: list[Row]

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))


def read_panel(folder: Path) -> Panel | None:
    """What a stage left in its folder; None for one that compares nothing."""
    if not (folder / FILE).exists():
        return None
    value = read_json(folder / FILE)
    return Panel(value["before"], value["after"], [Row(**row) for row in value["rows"]])


def panels_in(run: Path, stages: Iterable[str]) -> list[Panel]:
    """What the finished ones of a run's stages have left."""
    found = [read_panel(run / name) for name in stages]
    return [panel for panel in found if panel is not None]


def of_measures(
    names: Sequence[str],
    before: tuple[str, Mapping[str, Measure]],
    after: tuple[str, Mapping[str, Measure]],
) -> Panel:
    """A panel of metrics that were measured on two models, each (its name, metric -> value)."""
    rows = []
    for name in names:
        old, new = before[1][name], after[1][name]
        change = difference(new, old)
        scale = 1 if name.startswith("loss/") else 100
        values = (old.value, new.value, change.low, change.high)
        a, b, low, high = (scale * value for value in values)
        rows.append(Row(name, a, b, low, high, change.n))
    return Panel(before[0], after[0], rows)


def missing() -> list[str]:
    """Those of TASKS whose data sets are not in the cache of the Hub's."""
    return [task for task, data in TASKS.items() if not is_here(data)]


def table(panels: Sequence[Panel]) -> Table:
    """For the terminal."""
    from rich import box
    from rich.table import Table

    names = f"{panels[0].before} and {panels[0].after}"
    grid = Table(box=box.SIMPLE_HEAD, title=f"what it could before: {names}", title_justify="left")
    grid.add_column("")
    for column in ("before", "after", "95% interval of the difference", "items"):
        grid.add_column(column, justify="right")
    grid.add_column("")
    styles = {"better": "green", "worse": "red", "": ""}
    for row in (row for panel in panels for row in panel.rows):
        *cells, verdict = row.cells()
        grid.add_row(*cells, verdict, style=styles[verdict])
    return grid
