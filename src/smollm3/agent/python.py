"""The model's own Python: interpreters that belong to conversations."""

from __future__ import annotations

import keyword
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from smollm3.agent.sandbox import Function, Interpreter
from smollm3.agent.tools import Tool, ToolError
from smollm3.errors import UserError

LIVE = 8
IDLE_SECONDS = 600.0
_REMEMBERED = 10_000  # conversations whose interpreter is gone
# Shown where the code has no functions to call: templates want some text.
NO_FUNCTIONS = "(none but Python's own)"


def function_name(tool: Tool) -> str:
    """A tool's name as Python can write it."""
    name = re.sub(r"\W", "_", tool.name, flags=re.ASCII)
    return f"{name}_" if keyword.iskeyword(name) else f"_{name}" if name[:1].isdigit() else name


def functions(tools: Sequence[Tool]) -> dict[str, Tool]:
    """The tools by the names that code calls them by."""
    named = {function_name(tool): tool for tool in tools}
    if len(named) < len(tools):
        raise UserError("python tools: two have one name in Python; rename one")
    return named


def declarations(tools: Mapping[str, Tool]) -> list[Any]:
    """What the template is given as python_tools."""
    return [{**tool.signature, "name": name} for name, tool in tools.items()] or [NO_FUNCTIONS]


def for_sandbox(tools: Mapping[str, Tool]) -> list[Function]:
    return [Function(name, tool.description) for name, tool in tools.items()]


@dataclass
class _Held:
    interpreter: Interpreter
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    used: float = 0.0


def _owner(conversation: Hashable) -> Hashable:
    return conversation[0] if isinstance(conversation, tuple) else None


class Interpreters:
    """At most `live` at once, each of one conversation, ended after `idle_seconds` without use.

    A conversation may be a pair of its owner and a name. Where there is no room, the longest unused
    of the owner who has most goes: nobody ends another's by beginning many.
    What an ended one knew is gone: nothing is run a second time. Thread-safe.
    """

    def __init__(
        self, make: Callable[[], Interpreter], live: int = LIVE, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._make = make
        self._live = live
        self._idle = idle_seconds
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()  # longest unused first
        self._gone: OrderedDict[Hashable, None] = OrderedDict()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def lease(self, conversation: Hashable) -> Iterator[tuple[Interpreter, bool]]:
        """The conversation's interpreter for a run, and whether an earlier one was ended. A second
        user of the same waits. Raises ToolError where all are in use."""
        with self._lock:
            held, lost, evicted = self._take(conversation)
            held.users += 1
        if evicted:
            evicted.interpreter.close()
        try:
            with held.lock:
                yield held.interpreter, lost
        finally:
            with self._lock:
                held.users -= 1
                held.used = time.monotonic()
                if conversation in self._held:
                    self._held.move_to_end(conversation)
                self._schedule()

    def _take(self, conversation: Hashable) -> tuple[_Held, bool, _Held | None]:
        if self._closed:
            raise ToolError("Python is closed")
        if held := self._held.get(conversation):
            return held, False, None
        evicted = None
        if len(self._held) >= self._live:
            idle = [key for key, held in self._held.items() if not held.users]
            if not idle:
                raise ToolError(f"all {self._live} Python interpreters are in use; try later")
            having = Counter(map(_owner, (*self._held, conversation)))
            evicted = self._drop(max(idle, key=lambda key: having[_owner(key)]))
        held = self._held[conversation] = _Held(self._make())
        return held, self._gone.pop(conversation, 0) is None, evicted

    def _drop(self, conversation: Hashable) -> _Held:
        self._gone[conversation] = None
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        return self._held.pop(conversation)

    def _schedule(self) -> None:
        if self._held and self._timer is None and not self._closed:
            first = min(held.used for held in self._held.values())
            wait = max(0.0, first + self._idle - time.monotonic())
            self._timer = threading.Timer(wait, self._sweep)
            self._timer.daemon = True
            self._timer.start()

    def _sweep(self) -> None:
        """End what was idle for too long."""
        with self._lock:
            self._timer = None
            limit = time.monotonic() - self._idle
            old = [k for k, held in self._held.items() if not held.users and held.used <= limit]
            ended = [self._drop(conversation) for conversation in old]
            if self._held:
                self._schedule()
        for held in ended:
            held.interpreter.close()

    def end(self, conversation: Hashable) -> None:
        """The conversation is over."""
        with self._lock:
            held = self._held.pop(conversation, None)
            self._gone.pop(conversation, None)
        if held:
            held.interpreter.close()

    def interrupt(self, conversation: Hashable) -> None:
        """Nobody waits any more for what runs; the next run is told that variables were lost."""
        with self._lock:
            used = conversation in self._held and self._held[conversation].users > 0
            held = self._drop(conversation) if used else None
        if held:
            held.interpreter.close()

    def close(self) -> None:
        """End them all."""
        with self._lock:
            self._closed = True
            ended = list(self._held.values())
            self._held.clear()
            if self._timer:
                self._timer.cancel()
        for held in ended:
            held.interpreter.close()
