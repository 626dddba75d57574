"""The interpreter for systems without isolation: Monty, a small Python of its own in a process.

Its Python has no class inheritance, generators, `with` of one's own, nor most of the standard
library, and no files at all. What it runs can reach the host only by the functions it is given.
"""

from __future__ import annotations

import ast
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import pydantic_monty

from smollm3.agent.sandbox.run import Call, Function, Limits, RunOutput, Shown, StartError

_MEMORY = 128 << 20  # bytes at most: values of any size are cheap to write down
_LARGEST = 100_000  # entries of what goes through to a function
_SUSPENSIONS = 10_000


class MontyInterpreter:
    """As `ProcessInterpreter`."""

    kind = "monty"

    def __init__(self, functions: Sequence[Function] = (), limits: Limits | None = None) -> None:
        self.layers = ["its own smaller Python"]
        self.limits = limits or Limits()
        self._functions = functions
        self._session: pydantic_monty.MontySession | None = None
        self._stack = ExitStack()
        self._lock = threading.RLock()

    @property
    def alive(self) -> bool:
        return self._session is not None

    def start(self) -> None:
        with self._lock:
            self.close()
            seconds = self.limits.seconds
            limits: pydantic_monty.ResourceLimits = {
                "max_feed_duration_secs": seconds,
                "max_total_sleep_secs": seconds,
                "max_memory": min(self.limits.memory, _MEMORY),
                "max_suspensions": _SUSPENSIONS,
            }
            try:
                pool = pydantic_monty.Monty(max_processes=1, request_timeout=seconds + 2)
                session = self._stack.enter_context(pool).checkout(limits=limits)
                self._session = self._stack.enter_context(session)
            except (OSError, pydantic_monty.MontyError) as e:  # its program is missing, say
                self.close()
                raise StartError(str(e)) from None

    def run(self, code: str, call: Call | None = None) -> RunOutput:
        with self._lock:
            if self._session is None:
                self.start()
            assert self._session is not None
            shown = Shown(self.limits.output)
            value = error = ended = None
            try:
                value = self._session.feed_run(
                    _told_as_text(code, self.limits.output),
                    external_lookup=self._lookup(call),
                    print_callback=lambda _, text: shown.add(text),
                )
            except pydantic_monty.MontyCrashedError as e:
                ended = f"the interpreter is gone: {e}"
            except (pydantic_monty.MontyRuntimeError, pydantic_monty.MontySyntaxError) as e:
                error = e.display()
                if isinstance(e.exception(), TimeoutError):
                    ended = f"not done after {self.limits.seconds:g} seconds"
            except pydantic_monty.MontyError as e:
                error = str(e)
            if ended:
                self.close()
                ended += "; its variables are lost"
                error = None
            cap = self.limits.output
            return RunOutput(shown.text, Shown.cut(value, cap), Shown.cut(error, cap), ended)

    def close(self) -> None:
        with self._lock:
            self._session = None
            self._stack.close()

    def _lookup(self, call: Call | None) -> dict[str, Callable[..., Any]]:
        calls = 0

        def proxy(name: str) -> Callable[..., Any]:
            def function(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls > self.limits.calls:
                    raise RuntimeError(f"more than {self.limits.calls} calls in one run")
                if call is None:
                    raise RuntimeError(f"{name}: there are no functions here")
                given = _plain([args, kwargs], [0])
                try:
                    return call(name, *given)
                except Exception as e:
                    raise RuntimeError(str(e)) from None

            return function

        return {function.name: proxy(function.name) for function in self._functions}


def _told_as_text(code: str, cap: int) -> str:
    """The code with its last expression written as text. The value itself stays inside: what is
    small there, a list of lists that are one and the same, can be endless when written here."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return code  # Monty says what it thinks of it
    if not (body and isinstance(body[-1], ast.Expr)):
        return code + "\nNone"
    last = body[-1]
    assert last.end_lineno is not None
    assert last.end_col_offset is not None
    lines = code.encode().splitlines(keepends=True)
    before = b"".join(lines[: last.lineno - 1]) + lines[last.lineno - 1][: last.col_offset]
    expression = b"".join(lines[last.lineno - 1 : last.end_lineno])[last.col_offset :]
    surplus = len(lines[last.end_lineno - 1]) - last.end_col_offset
    expression = expression[: len(expression) - surplus]
    told = before + b"_ = (" + expression + b"\n)\nNone if _ is None else repr(_)"
    return f"{told.decode()}[:{cap}]"


def _plain(value: Any, seen: list[int]) -> Any:
    """The JSON value; refuses what is none, or too large when written out."""
    seen[0] += 1 + (len(value) // 100 if isinstance(value, str) else 0)
    if seen[0] > _LARGEST:
        raise ValueError("the arguments are too large")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, seen) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, seen) for item in value]
    raise TypeError(f"arguments must be JSON values, not {type(value).__name__}")
