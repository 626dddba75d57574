"""`smollm3 generate`: one answer as it comes; a batch with a bar, or lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from smollm3.batch.answers import Answers
from smollm3.batch.run import BatchRun, BatchSettings, Tally, conversation, read_requests
from smollm3.errors import UserError
from smollm3.infer.engine import Engine
from smollm3.turn import Request, submit

LOG_SECONDS = 10.0  # between two lines where there is no bar
RATE_SECONDS = 5.0  # the speed shown is that of the last ones


class BatchView:
    """How far a batch is, by the bytes of its input: nobody has counted the lines."""

    def __init__(self, console: Console, file: BinaryIO, size: int | None) -> None:
        self.console = console
        self.file, self.size = file, size
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("starting", total=size)
        self.started = self.logged = time.monotonic()
        self.marks = [(self.started, 0)]

    def error(self, message: str) -> None:
        text = f"error: {UserError(message)}"
        if self.console.is_terminal:  # above the bar
            self.console.print(f"[red]{escape(text)}", highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def progress(self, tally: Tally) -> None:
        now = time.monotonic()
        line = f"{summary(tally)}, {self._rate(now, tally.tokens):.0f} tokens/s"
        if self.size is not None:
            self.bar.update(self.task, completed=self.file.tell())
        self.bar.update(self.task, description=line)
        if not self.console.is_terminal and now - self.logged > LOG_SECONDS:
            self.logged = now
            self.console.print(line, highlight=False, soft_wrap=True)

    def _rate(self, now: float, tokens: int) -> float:
        self.marks.append((now, tokens))
        while len(self.marks) > 2 and now - self.marks[1][0] > RATE_SECONDS:
            self.marks.pop(0)
        (then, before), seconds = self.marks[0], now - self.marks[0][0]
        del then
        return (tokens - before) / seconds if seconds else 0.0


def summary(tally: Tally) -> str:
    errors = f", {tally.errors:,} of them errors" if tally.errors else ""
    return f"{tally.done:,} answers{errors}"


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, str, int | None]]:
    """The input, what to call it, and its bytes; "-" is standard input."""
    if path == "-":
        yield sys.stdin.buffer, "standard input", None
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    with file:
        yield file, path, Path(path).stat().st_size


def batch_on_console(
    engine: Engine, path: str, output: Path, settings: BatchSettings, concurrency: int
) -> int:
    """Answer the requests in `path` into `output`; the exit code, 2 if there were errors.

    settings: `of` the engine.
    """
    if output.exists() and Path(path).exists() and output.samefile(path):
        raise UserError(f"{output}: is the input too; give another --output")
    console = Console(highlight=False)
    with _opened(path) as (file, name, size), Answers(output) as answers:
        view = BatchView(console, file, size)
        try:
            with view.bar:
                requests = read_requests(file, name, settings)
                tally = BatchRun(engine, answers, view, concurrency).run(requests)
        except KeyboardInterrupt:
            console.print("stopped; run again to go on")
            raise
    seconds = max(time.monotonic() - view.started, 1e-9)
    made = f"{tally.tokens:,} tokens in {seconds:.0f} s" if tally.tokens else "nothing left to do"
    console.print(f"{output}: {summary(tally)}; {made}", soft_wrap=True)
    return 2 if tally.errors else 0


def generate_on_console(engine: Engine, prompt: str, settings: BatchSettings) -> None:
    """Write the answers to one prompt as they come."""
    asked: dict[str, Any] = {"prompt": prompt}
    if settings.as_chat:
        asked = {
            "messages": conversation(asked, settings.system),
            "enable_thinking": settings.enable_thinking,
        }
    request = Request(
        params=settings.params,
        constraint=settings.constraint,
        thinking_budget=settings.thinking_budget,
        **asked,
    )
    replies = submit(engine, [request])
    for number, reply in enumerate(replies, 1):
        if len(replies) > 1:
            click.echo(f"--- {number} of {len(replies)}")
        for text in reply.texts():
            click.echo(text, nl=False)
        click.echo()
