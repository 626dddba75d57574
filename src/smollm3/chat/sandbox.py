"""Someone else's template runs in a process of its own, bounded in memory and time.

A template is a program: it can loop for ever, or ask for 'a' * 10**10. No hook inside a process
stops all of that. The process is started at the first need, serves all renderings of this one and
ends with it; it is killed and started anew when it overruns its time.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from smollm3.chat.template import render_views
from smollm3.errors import UserError

MAX_SECONDS = 10.0  # for one request; a conversation of a million tokens takes about one
MAX_BYTES = 1 << 30  # of address space
_START_SECONDS = 60.0


class Overrun(UserError):
    """A template used up its time or memory."""


def render_apart(**request: Any) -> list[str]:
    """`render_views`, in the other process."""
    return _worker().render(request)


class _Worker:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"from {__name__} import serve; serve({theirs.fileno()})"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the program, which ends this one
            )
        self._pipe = Connection(ours.detach())
        self._receive(_START_SECONDS)

    def render(self, request: dict[str, Any]) -> list[str]:
        with self._lock:
            try:
                self._pipe.send_bytes(_pack(request))
            except OSError:
                self.end()
                raise UserError("chat template: its process was ended from outside") from None
            reply = _unpack(self._receive(MAX_SECONDS))
        if isinstance(reply, str):
            raise UserError(reply)
        texts: list[str] = reply
        return texts

    def _receive(self, seconds: float) -> bytes:
        problem = f"not done after {seconds:g} seconds"
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv_bytes()
        except (EOFError, OSError):
            problem = f"it needs more than {MAX_BYTES >> 20} MiB, or its process was ended"
        self.end()
        raise Overrun(f"chat template: {problem}")

    @property
    def alive(self) -> bool:
        return self.owner == os.getpid() and self._process.poll() is None

    def end(self) -> None:
        self._pipe.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()


_current: _Worker | None = None
_starting = threading.Lock()


def _worker() -> _Worker:
    """The process that serves this one; a fork does not share its parent's."""
    global _current  # noqa: PLW0603
    with _starting:
        if _current is None or not _current.alive:
            _current = _Worker()
            atexit.register(_current.end)
        return _current


def serve(descriptor: int) -> None:
    """The other side: answer requests until there is nobody to ask."""
    _limit_memory()
    pipe = Connection(descriptor)
    pipe.send_bytes(b"ready")
    while True:
        try:
            request = pipe.recv_bytes()
        except EOFError:
            return
        reply: list[str] | str
        try:
            reply = render_views(**_unpack(request))
        except UserError as e:
            reply = str(e)
        pipe.send_bytes(_pack(reply))  # a MemoryError ends the process


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
