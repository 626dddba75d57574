"""Someone else's template runs in a process of its own, bounded in memory and time.

A template is a program: it can loop for ever, or ask for 'a' * 10**10. No hook inside a process
stops all of that. The process is started at the first need, serves all renderings of this one and
ends with it; it is killed and started anew when it overruns its time.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any, BinaryIO

from smollm3.chat.template import render_views
from smollm3.errors import UserError

MAX_SECONDS = 10.0  # for one request; a conversation of a million tokens takes about one
MAX_BYTES = 1 << 30  # of address space
_START_SECONDS = 60.0
_NEEDED = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "COVERAGE_PROCESS_CONFIG")


class Overrun(UserError):
    """A template used up its time or memory."""


def render_apart(**request: Any) -> list[str]:
    """`render_views`, in the other process."""
    return _worker().render(request)


class _Worker:
    """A process that is asked over its standard input and output: every system has these."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the program, which ends this one
        )
        assert self._process.stdin
        assert self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        self._receive(_START_SECONDS)

    def render(self, request: dict[str, Any]) -> list[str]:
        with self._lock:
            try:
                _send(self._to, _pack(request))
            except OSError:
                self.end()
                raise UserError("chat template: its process was ended from outside") from None
            reply = _unpack(self._receive(MAX_SECONDS))
        if isinstance(reply, str):
            raise UserError(reply)
        texts: list[str] = reply
        return texts

    def _receive(self, seconds: float) -> bytes:
        """The next message. A pipe cannot be waited for on every system, so the process is killed
        when its time is over, which ends the reading."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            return _read(self._from)
        except (EOFError, OSError):
            self.end()
        finally:
            timer.cancel()
        problem = f"it needs more than {MAX_BYTES >> 20} MiB, or its process was ended"
        if late.is_set():
            problem = f"not done after {seconds:g} seconds"
        raise Overrun(f"chat template: {problem}")

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):  # what was not sent cannot be any more
                pipe.close()


_current: _Worker | None = None
_starting = threading.Lock()


def _worker() -> _Worker:
    """The process that serves this one; a fork does not share its parent's."""
    global _current  # noqa: PLW0603
    with _starting:
        if _current is None or not _current.alive:
            if _current is not None:
                _current.end()
            _current = _Worker()
            atexit.register(_current.end)
        return _current


def serve() -> None:
    """The other side: answer requests until there is nobody to ask."""
    _limit_memory()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not come between the messages
    _send(sink, b"ready")
    while True:
        try:
            request = _read(source)
        except EOFError:
            return
        reply: list[str] | str
        try:
            reply = render_views(**_unpack(request))
        except UserError as e:
            reply = str(e)
        _send(sink, _pack(reply))  # a MemoryError ends the process


def _send(sink: BinaryIO | IO[bytes], message: bytes) -> None:
    sink.write(len(message).to_bytes(8, "little") + message)
    sink.flush()


def _read(source: BinaryIO | IO[bytes]) -> bytes:
    """The next message, or EOFError."""
    head = source.read(8)
    length = int.from_bytes(head, "little")
    message = source.read(length) if len(head) == 8 else b""
    if len(head) < 8 or len(message) < length:
        raise EOFError
    return message


def _environment() -> dict[str, str]:
    """What Python needs; nothing that is somebody's secret."""
    kept = {name: value for name, value in os.environ.items() if name in _NEEDED}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    except (ImportError, ValueError, OSError):  # where there is no such limit, time still is one
        pass


def _pack(value: Any) -> bytes:
    # What is no character is reported when the text is encoded.
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _unpack(data: bytes) -> Any:
    return json.loads(data.decode("utf-8", "surrogatepass"))
