"""What a conversation needs of a terminal: text that can be taken back, keys, edited lines."""

from __future__ import annotations

import atexit
import os
import select
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

import click
from rich.cells import cell_len

from smollm3.visible import visible

HISTORY_LINES = 1000


def rows_down(text: str, width: int) -> int:
    """How many rows below its beginning the cursor is after `text`."""
    rows = 0
    for line in text.split("\n"):
        rows += 1
        column = 0
        if (cells := cell_len(line)) <= width:
            continue
        if cells == len(line):
            rows += (cells - 1) // width
            continue
        for character in line:
            size = cell_len(character)
            if column + size > width:
                rows += 1
                column = 0
            column += size
    return rows - 1


class Painter:
    """Text on a terminal that remembers what it wrote, so that it can be written anew.

    A status line may stand at the end until more is written.
    """

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.text = ""  # since the last `begin`
        self._status = ""

    def begin(self) -> None:
        """What was written before stays."""
        self.text = ""

    def write(self, text: str, dim: bool = False) -> None:
        text = visible(text)
        self._clear_status()
        self.text += text
        self.out.write(click.style(text, dim=True) if dim and text else text)
        self.out.flush()

    def end_line(self) -> None:
        """Go to the next row unless the cursor begins one."""
        if self.text and not self.text.endswith("\n"):
            self.write("\n")

    def status(self, text: str) -> None:
        """Show a line, in the cursor's row, that the next writing takes away."""
        if text == self._status:
            return
        self._clear_status()
        self._status = visible(text)[: shutil.get_terminal_size().columns - 1]
        self.out.write(click.style(self._status, dim=True))
        self.out.flush()

    def erase(self, below: int = 0) -> None:
        """Take back what was written since `begin`, as far as it is on the screen. below: rows
        between it and the cursor."""
        self._clear_status()
        size = shutil.get_terminal_size()
        up = min(rows_down(self.text, size.columns) + below, size.lines - 1)
        self.out.write(f"\r\x1b[{up}A\x1b[J" if up else "\r\x1b[J")
        self.text = ""

    def _clear_status(self) -> None:
        if self._status:
            self.out.write("\r\x1b[K")
            self._status = ""


@contextmanager
def keys(file: TextIO) -> Iterator[Callable[[], str]]:
    """While it lasts, keys are not echoed, and calling it gives those pressed since."""
    try:
        import termios
        import tty
    except ModuleNotFoundError:  # Windows: nothing is pressed before the answer's end
        yield lambda: ""
        return
    fd = file.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)  # Ctrl-C still interrupts

    def pressed() -> str:
        found = b""
        while select.select([fd], [], [], 0)[0] and (read := os.read(fd, 1024)):
            found += read
        return found.decode(errors="replace")

    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class LineReader:
    """Lines that a person types, with editing, history and completion where readline exists.

    on_tab: called when Tab is pressed on an empty line.
    """

    def __init__(self, commands: Sequence[str], on_tab: Callable[[], None]) -> None:
        self.commands = sorted(commands)
        self.on_tab = on_tab
        self.typed = ""  # before the prompt was there
        self._readline = _readline()
        if self._readline:
            self._set_up(self._readline)

    def _set_up(self, readline: ModuleType) -> None:
        history = history_file()
        with suppress(OSError):
            history.parent.mkdir(parents=True, exist_ok=True)
            history.touch(mode=0o600)
            readline.read_history_file(history)
            readline.set_history_length(HISTORY_LINES)
            atexit.register(_write_history, readline, history)
        readline.set_completer_delims("")
        readline.set_completer(self._complete)
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set bell-style none")
        readline.set_startup_hook(self._insert_typed)

    def _insert_typed(self) -> None:
        assert self._readline
        self._readline.insert_text(self.typed)
        self.typed = ""

    def _complete(self, text: str, state: int) -> str | None:
        if not text and state == 0:
            self.on_tab()
        if not text.startswith("/"):
            return None
        matches = [command + " " for command in self.commands if command.startswith(text)]
        return matches[state] if state < len(matches) else None

    def read(self, prompt: str) -> str:
        """The next line without its end; EOFError where there is none. A line that ends in a
        backslash goes on in the next."""
        line = input(f"\x01\x1b[1m\x02{prompt}\x01\x1b[0m\x02" if self._readline else prompt)
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("  ")
        return line


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:
        return None
    return readline


def history_file() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "smollm3" / "history"


def _write_history(readline: ModuleType, path: Path) -> None:
    with suppress(OSError):
        readline.write_history_file(path)


def is_terminal() -> bool:
    """Whether a person sits at both ends, with more than a teletype."""
    both = sys.stdin.isatty() and sys.stdout.isatty()
    return both and os.environ.get("TERM", "dumb") != "dumb"
