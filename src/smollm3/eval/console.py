"""`smollm3 eval` on a terminal: progress with the time left, then the table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from smollm3.eval.harness import Wanted
from smollm3.eval.results import ITEMS, RESULTS, table
from smollm3.eval.run import run
from smollm3.eval.target import Settings, Target
from smollm3.files import folder_lock

LOG_SECONDS = 10.0  # between two lines where there is no bar


class EvalView:
    """A bar on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bar.add_task("reading the tasks", total=None, left="")
        self._what = ""
        self._began = self._logged = time.monotonic()

    def progress(self, what: str, done: int, total: int, fresh: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        left = ""
        if fresh:
            left = f"{duration((now - self._began) / fresh * (total - done))} left"
        self.bar.update(self._task, description=what, completed=done, total=total, left=left)
        if not self.console.is_terminal and now - self._logged > LOG_SECONDS:
            self._logged = now
            self.console.print(f"{done:,} of {total:,} {what}, {left}", highlight=False)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def eval_on_console(
    target: Target, wanted: Wanted, settings: Settings, out: Path, suite: str | None = None
) -> dict[str, Any]:
    """Evaluate into `out`; a second run goes on from what is there, or with more items."""
    console = Console(highlight=False)
    view = EvalView(console)
    with folder_lock(out):
        try:
            with view.bar:
                outcome = run(target, wanted, settings, out / ITEMS, suite, view)
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to go on")
            raise
        outcome.write(out)
    found = outcome.found
    console.print(table(found))
    for why in found["smollm3"]["skipped"].values():
        console.print(f"left out: {why}", soft_wrap=True)
    if cut := outcome.config["prompts_cut"]:
        console.print(f"{cut:,} prompts lost their beginning, to fit the model's context")
    limited = found["smollm3"]["answers_at_limit"]
    if limited:
        asked = found["smollm3"]["answers"]
        console.print(f"{limited:,} of {asked:,} answers were ended by their limit of tokens")
    made, seconds = outcome.run["items_made"], outcome.run["seconds"]
    console.print(f"{out / RESULTS}: {made:,} items in {duration(seconds)}")
    return found
