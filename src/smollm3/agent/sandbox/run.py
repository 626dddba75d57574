"""What goes into an interpreter of the model's Python and what comes out, whichever kind it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# Serves a call that the code makes: name, positional and named arguments, all JSON values; so must
# be what it returns. What it raises reaches the code as a RuntimeError.
Call = Callable[[str, Sequence[Any], Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Function:
    """A function of the host that the code can call."""

    name: str
    description: str = ""


@dataclass(frozen=True)
class Limits:
    """seconds: of one run, by the clock, and of processor time. cpu_seconds: of all runs of an
    interpreter. memory, folder: bytes; output: bytes shown of what a run prints, of its value and
    of its error each. threads; calls: of functions in one run.
    """

    seconds: float = 10.0
    cpu_seconds: int = 600
    memory: int = 512 << 20
    folder: int = 64 << 20
    output: int = 20_000
    threads: int = 32
    calls: int = 200


@dataclass(frozen=True)
class RunOutput:
    """out: what it printed. value: repr of the last expression, None where that is None. error: as
    Python prints it. ended: why the interpreter was ended, and its variables with it.
    """

    out: str = ""
    value: str | None = None
    error: str | None = None
    ended: str | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and self.ended is None

    @property
    def text(self) -> str:
        """All of it, as the model is shown it."""
        parts = (self.out.rstrip("\n"), self.value, self.error, self.ended)
        return "\n".join(part for part in parts if part) or "(no output)"


class Interpreter(Protocol):
    """Runs one text after another; variables are kept from each to the next."""

    kind: str
    layers: list[str]

    @property
    def alive(self) -> bool: ...
    def run(self, code: str, call: Call | None = None) -> RunOutput: ...
    def close(self) -> None: ...


class StartError(Exception):
    """This kind of interpreter cannot be had here."""


class Shown:
    """A text of which the first and the last half of `cap` characters are kept."""

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._head = ""
        self._tail = ""
        self._lost = 0

    def add(self, text: str) -> None:
        room = self._cap // 2 - len(self._head)
        if room > 0:
            self._head += text[:room]
            text = text[room:]
        self._tail += text
        over = len(self._tail) - self._cap // 2
        if over > 0:
            self._lost += over
            self._tail = self._tail[over:]

    @property
    def text(self) -> str:
        gap = f"\n[... {self._lost} characters left out ...]\n" if self._lost else ""
        return self._head + gap + self._tail

    @classmethod
    def cut(cls, text: str | None, cap: int) -> str | None:
        if text is None:
            return None
        shown = cls(cap)
        shown.add(text)
        return shown.text
