"""The interpreter of the model's code: runs what it is sent, keeps variables, hands calls back.

Its text is run inside the sandbox, behind `lockdown`, so it imports the standard library only.
Messages are JSON behind four bytes of length. In: {"run": code, "seconds", "name"}, and {"value"}
or {"error"} to a call. Out: {"ready": layers}; {"call": name, "args", "kwargs"} for a function of
the host; {"out", "value", "error"} when a run is over.

Nothing here is trusted by the host: the code it runs can change it at will.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import resource
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

FRAMES = 8  # of a traceback shown


class TimeIsUp(BaseException):
    """Not an Exception, so that `except Exception` in a loop does not catch it."""

    __module__ = "builtins"  # it is printed without one


class Capped(io.RawIOBase):
    """Keeps the first and the last half of `cap` bytes."""

    def __init__(self, cap: int) -> None:
        self._half = cap // 2
        self._head = bytearray()
        self._tail = bytearray()
        self._lost = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = bytes(data)
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 4 * self._half:  # cut seldom: many small writes stay cheap
            self._cut()
        return len(data)

    def _cut(self) -> None:
        over = max(0, len(self._tail) - self._half)
        self._lost += over
        del self._tail[:over]

    def text(self) -> str:
        self._cut()
        gap = b"\n[... %d bytes left out ...]\n" % self._lost if self._lost else b""
        return bytes(self._head + gap + self._tail).decode("utf-8", "replace")


class WorkerChannel:
    """Messages over two descriptors."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink
        self.longest = 1 << 20

    def receive(self) -> Any:
        size = int.from_bytes(self._exactly(4), "big")
        return json.loads(self._exactly(size))

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        if len(data) > self.longest:
            raise ValueError(f"{len(data):,} bytes are too many to hand over")
        data = len(data).to_bytes(4, "big") + data
        while data:
            data = data[os.write(self._sink, data) :]

    def _exactly(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = os.read(self._source, min(size - len(parts), 1 << 16))
            if not part:
                os._exit(0)  # the host is gone
            parts += part
        return bytes(parts)


class Repl:
    """A `__main__` module in which one text after another is run."""

    def __init__(self, channel: WorkerChannel, functions: list[dict[str, str]], cap: int) -> None:
        self._channel, self._cap = channel, cap
        self._lock = threading.RLock()
        self._running = False
        self._module = types.ModuleType("__main__")
        self._functions = {f["name"]: self._proxy(f) for f in functions}
        self._module.__dict__.update(self._functions)

    def _proxy(self, function: dict[str, str]) -> Callable[..., Any]:
        name = function["name"]

        def proxy(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                if not self._running:
                    raise RuntimeError(f"{name}: can be called only while code is run")
                return self._call(name, args, kwargs)

        proxy.__name__ = proxy.__qualname__ = name
        proxy.__doc__ = function["description"]
        return proxy

    def _call(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        left = signal.setitimer(signal.ITIMER_REAL, 0)  # the host's time is not ours
        try:
            self._channel.send({"call": name, "args": args, "kwargs": kwargs})
            reply = self._channel.receive()
        except TypeError as error:
            raise TypeError(f"{name}: arguments must be JSON values: {error}") from None
        finally:
            signal.setitimer(signal.ITIMER_REAL, *left)
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply["value"]

    def run(self, code: str, seconds: float, name: str) -> dict[str, str | None]:
        """Run a text; what it printed, the value of its last expression, and its error."""
        raw = Capped(self._cap)
        out = io.TextIOWrapper(
            io.BufferedWriter(raw), "utf-8", "backslashreplace", write_through=True
        )
        sys.modules["__main__"] = self._module
        linecache.cache[name] = (len(code), None, code.splitlines(True), name)
        saved = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = out
        value = error = None
        self._running = True
        try:
            self._limit(seconds)
            value = self._run(code, name)
        except BaseException as e:
            self._running = False
            error = _described(e, self._cap)
        finally:
            self._running = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stdout, sys.stderr = saved
        with contextlib.suppress(Exception):
            out.flush()
        return {"out": raw.text(), "value": value, "error": error}

    def _limit(self, seconds: float) -> None:
        def stop(number: int, frame: types.FrameType | None) -> None:
            if self._running:
                raise TimeIsUp(f"not done after {seconds:g} seconds")

        signal.signal(signal.SIGALRM, stop)
        signal.signal(signal.SIGXCPU, stop)
        # Again and again, where the code catches even this.
        signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)
        used = resource.getrusage(resource.RUSAGE_SELF)
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        soft = int(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))

    def _run(self, code: str, name: str) -> str | None:
        """The text of the value of the last expression, None where there is none."""
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        if isinstance(last, ast.Expr):
            tree.body.pop()
        variables = self._module.__dict__
        exec(compile(tree, name, "exec"), variables)
        if not isinstance(last, ast.Expr):
            return None
        value = eval(compile(ast.Expression(last.value), name, "eval"), variables)
        if value is None:
            return None
        variables["_"] = value
        return _cut(repr(value), self._cap)


def _described(error: BaseException, cap: int) -> str | None:
    """The error as Python prints it, with the frames of the code that was run; None if the code
    only ended itself."""
    try:
        if isinstance(error, SystemExit) and error.code in (None, 0):
            return None
        told = traceback.TracebackException.from_exception(error, limit=-200, capture_locals=False)
        part: traceback.TracebackException | None = told
        while part is not None:
            frames = [f for f in part.stack if f.filename.startswith("<run")]
            part.stack = traceback.StackSummary.from_list(frames[-FRAMES:])
            part = part.__cause__ or part.__context__
        return _cut("".join(told.format()).rstrip(), cap)
    except BaseException:  # no memory to tell it in, or an exception that cannot be printed
        return type(error).__name__


def _cut(text: str, cap: int) -> str:
    if len(text) <= cap:
        return text
    return f"{text[: cap // 2]}[... {len(text) - cap} characters left out ...]{text[-cap // 2 :]}"


def private_channel() -> WorkerChannel:
    """The pipes we were started with, under numbers that no print or read reaches."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    return WorkerChannel(source, sink)


def main(lock: Callable[[dict[str, Any]], list[str]]) -> None:
    """lock: puts on the layers of `lockdown`, and says which."""
    channel = private_channel()
    config = channel.receive()
    channel.longest = config["longest"]
    layers = lock(config)
    repl = Repl(channel, config["functions"], config["output"])
    channel.send({"ready": layers})
    while True:
        message = channel.receive()
        channel.send(repl.run(message["run"], message["seconds"], message["name"]))
