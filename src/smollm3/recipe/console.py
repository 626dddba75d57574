"""A run as seen on a terminal: a bar while a stage works, a line when it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from smollm3.eval.panel import panels_in
from smollm3.eval.panel import table as panel_table
from smollm3.files import read_json
from smollm3.recipe.graph import final_model
from smollm3.recipe.runner import Events, Run
from smollm3.recipe.schema import Recipe, Stage
from smollm3.report.watch import watched
from smollm3.train import Stopped

WIDE = 100  # columns that a bar, its times and the detail beside it take
LOG_EVERY_SECONDS = 10.0  # without a terminal there is no bar; a line now and then instead


class RunConsole:
    """Shows the events of a run; a bar on a terminal, plain lines in a log."""

    def __init__(self, console: Console) -> None:
        self.console = console
        wide = console.width >= WIDE  # a line that wraps cannot be taken back
        self.bar = Progress(
            # Without markup: a stage's name or a detail may hold brackets.
            TextColumn("{task.fields[stage]}", style="bold", markup=False),
            TextColumn("{task.description}", markup=False),
            *([BarColumn()] if wide else []),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            *([TimeElapsedColumn()] if wide else []),
            TimeRemainingColumn(),
            *([TextColumn("{task.fields[detail]}", markup=False)] if wide else []),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID | None = None
        self.stage = ""
        self.what = ""
        self.logged = 0.0

    def events(self) -> Events:
        return Events(
            stage_skipped=lambda name: self.console.print(f"[dim]= {name} (done before)"),
            stage_started=self._started,
            progress=self._progress,
            stage_finished=self._finished,
            warn=lambda text: self._print(f"[yellow]! {self.stage}: {escape(text)}"),
        )

    def _started(self, name: str, stage: Stage) -> None:
        self.stage = name
        self.logged = time.monotonic()
        self._show("starting", 1)
        if not self.console.is_terminal:
            self._print(f"> {name}")

    def _progress(self, what: str, done: float, of: float, detail: str) -> None:
        if what != self.what:
            self._show(what, of)
        assert self.task is not None
        self.bar.update(self.task, completed=done, total=of, detail=detail)
        if not self.console.is_terminal and time.monotonic() - self.logged > LOG_EVERY_SECONDS:
            self.logged = time.monotonic()
            self._print(f"  {self.stage}: {what} {done:.0f}/{of:.0f} {escape(detail)}")

    def _show(self, what: str, of: float) -> None:
        """A new bar in place of the old one: its time and its rate start again with its work.
        (Progress.reset would do, but rich replaces a task's fields there instead of updating them.)
        """
        self._hide()
        self.what = what
        self.task = self.bar.add_task(what, stage=self.stage, detail="", total=of)

    def _hide(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None

    def _finished(self, name: str, record: dict[str, Any]) -> None:
        self._hide()
        facts = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in record["metrics"].items()
            if isinstance(value, int | float | str)
        )
        self._print(f"[green]✓[/] {name} [dim]{record['seconds']:.0f}s {escape(facts)}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)


def wide_console() -> Console:
    """The terminal as it is; a file or pipe gets lines of 120 characters instead of 80."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def run_on_console(
    recipe: Recipe, out: Path, only: str | None, redo: Iterable[str], watch: bool = False
) -> None:
    """Run with progress; end with the score card and what to do next. watch: serve the report
    meanwhile."""
    console = wide_console()
    view = RunConsole(console)
    started = time.monotonic()
    try:
        with watched(out) if watch else nullcontext() as url, view.bar:
            if url is not None:
                console.print(f"watch it: {url}", highlight=False)
            Run(recipe, out, view.events()).execute(only, redo)
    except Stopped as stop:
        console.print(f"stopped at step {stop.step} of {view.stage}; run again to resume")
        sys.exit(128 + stop.signal)
    console.print(f"[dim]{time.monotonic() - started:.0f}s in all")
    scorecard = out / "scorecard.json"
    if scorecard.exists():
        from smollm3.eval import table

        console.print(table(read_json(scorecard)))
    if panels := panels_in(out, recipe.stages):
        console.print(panel_table(panels))
    console.print(f"report: {out / 'report.html'}", highlight=False)
    final = final_model(recipe)
    if final and (out / final / "stage.json").exists():
        console.print(f"talk to it: [bold]smollm3 chat {out}", highlight=False)
