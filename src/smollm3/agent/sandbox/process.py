"""The host's side of CPython in its jail: start it, talk with deadlines, end it.

Whatever comes over the pipe was perhaps written by the model's code, so it is measured before it
is read, and believed only as far as a call or a result of the code could say the same.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

from smollm3.agent.sandbox.layout import Layout, layout
from smollm3.agent.sandbox.run import Call, Function, Limits, RunOutput, StartError

_LONGEST = 1 << 20  # bytes of a message from the interpreter
_START_SECONDS = 20.0
_GRACE_SECONDS = 1.0  # for the interpreter to stop by itself
_UIDS = 0x7F00_0000  # users that no system gives out: each interpreter of a process has its own
_EACH = 64
_numbers = itertools.count()
_FILES = 4096  # in the folder to write in
_FOLDER = "/tmp"
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
# Runs the two texts behind it, `lockdown.py` and `worker.py`, in one namespace.
_BOOT = "import sys;g={'__name__':'worker'};[exec(s,g) for s in sys.argv[1:]];g['main'](g['lock'])"


class _Ended(Exception):
    """The interpreter is gone, or must go: why."""


class ProcessInterpreter:
    """CPython in a process of its own. Variables live until it ends; then the next run starts
    anew, and the run that ended it says so.

    kind: of jail, see `jail.py`. python: another interpreter than the one that runs this.
    """

    def __init__(
        self,
        kind: str,
        functions: Sequence[Function] = (),
        limits: Limits | None = None,
        *,
        bwrap: str | None = None,
        python: str | None = None,
    ) -> None:
        self.kind = kind
        self.limits = limits or Limits()
        self.layers: list[str] = []
        self._functions = functions
        self._bwrap = bwrap
        self._python = python or getattr(sys, "_base_executable", None) or sys.executable
        self._process: subprocess.Popen[bytes] | None = None
        self._home: str | None = None
        self._runs = 0
        self._uid = _UIDS + os.getpid() % 100_000 * _EACH + next(_numbers) % _EACH
        self._lock = threading.RLock()

    @property
    def alive(self) -> bool:
        """Whether there are variables to be kept."""
        return self._process is not None and self._process.poll() is None

    def run(self, code: str, call: Call | None = None) -> RunOutput:
        """Run a text. call: serves the functions. Only the interpreter's own time counts."""
        with self._lock:
            if not self.alive:
                self.start()
            self._runs += 1
            order = {"run": code, "seconds": self.limits.seconds, "name": f"<run {self._runs}>"}
            try:
                self._check_silence()
                return _as_run(self._converse(order, call))
            except _Ended as end:
                return RunOutput(ended=f"{end}; its variables are lost")
            except BaseException:  # what `call` lets through: the user's Ctrl-C
                self._end()
                raise

    def start(self) -> None:
        """Start it now, and learn which layers are in force. StartError where it does not."""
        with self._lock:
            self._end()
            shown = layout(self._python)
            if self.kind == "none":
                self._home = tempfile.mkdtemp(prefix="smollm3-python-")
            self._socket, theirs = socket.socketpair()
            self._line, warden = socket.socketpair()
            with theirs, warden:
                jail = str(Path(__file__).with_name("jail.py"))
                config = json.dumps(self._jail(shown))
                self._process = subprocess.Popen(
                    [self._python, "-I", "-S", "-B", jail, str(warden.fileno()), config],
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    pass_fds=[warden.fileno()],
                    env={},
                    cwd="/",
                    start_new_session=True,  # Ctrl-C is for the program
                )
            try:
                self._send(self._inside(shown), _START_SECONDS)
                reply = self._receive(_START_SECONDS)
                self.layers = [str(layer) for layer in reply["ready"]]
            except (_Ended, KeyError, TypeError) as e:
                raise StartError(self._errors or str(e)) from None

    def close(self) -> None:
        """End it with all that it started, and the run that another thread waits for."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._line.shutdown(socket.SHUT_RDWR)  # the warden kills what it guards
        with self._lock:
            self._end()

    # What the jail and the interpreter are told

    def _jail(self, shown: Layout) -> dict[str, Any]:
        sources = [_source("lockdown.py"), _source("worker.py")]
        return {
            "kind": self.kind,
            "bwrap": self._bwrap,
            "python": shown.python,
            "arguments": ["-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, *sources],
            "mounts": shown.mounts,
            "links": shown.links,
            "hidden": shown.hidden,
            "uid": self._uid,
            "folder": self.limits.folder,
            "files": _FILES,
            "home": self._home,
        }

    def _inside(self, shown: Layout) -> dict[str, Any]:
        folder = [] if self.kind == "landlock" else [_FOLDER]
        return {
            **asdict(self.limits),
            "kind": self.kind,
            "read": shown.mounts,
            "write": [*folder, *_DEVICES],
            "files": _FILES,
            "longest": _LONGEST,
            "functions": [asdict(function) for function in self._functions],
        }

    # The conversation

    def _converse(self, message: dict[str, Any], call: Call | None) -> dict[str, Any]:
        """Send a run, answer its calls; the message that says that it is over."""
        left = self.limits.seconds + _GRACE_SECONDS
        calls = 0
        while True:
            self._order(b"c")
            began = time.monotonic()
            self._send(message, left)
            reply = self._receive(left - (time.monotonic() - began))
            left -= time.monotonic() - began
            # It is held while it waits for us, whatever threads it has started.
            self._order(b"s")
            if "call" not in reply:
                return reply
            calls += 1
            if calls > self.limits.calls:
                self._end()
                raise _Ended(f"more than {self.limits.calls} calls of functions in one run")
            message = _answer(reply, call)

    def _check_silence(self) -> None:
        """What came since the last run was over answers nothing."""
        if select.select([self._socket], [], [], 0)[0]:
            self._breach()

    def _breach(self) -> NoReturn:
        self._end()
        raise _Ended("the interpreter was ended: it broke its protocol")

    def _order(self, order: bytes) -> None:
        with contextlib.suppress(OSError):
            self._line.send(order)

    def _send(self, message: Mapping[str, Any], seconds: float) -> None:
        data = json.dumps(message).encode()
        try:
            self._socket.settimeout(max(seconds, 1e-3))
            self._socket.sendall(len(data).to_bytes(4, "big") + data)
        except TimeoutError:
            self._late()
        except OSError:
            self._lost()

    def _receive(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        size = int.from_bytes(self._exactly(4, deadline), "big")
        message = None
        if size <= _LONGEST:
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(self._exactly(size, deadline))
        if not isinstance(message, dict):
            self._breach()
        return message

    def _exactly(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                self._socket.settimeout(max(deadline - time.monotonic(), 1e-3))
                part = self._socket.recv(min(size - len(data), 1 << 16))
            except TimeoutError:
                self._late()
            except OSError:
                part = b""
            if not part:
                self._lost()
            data += part
        return bytes(data)

    def _late(self) -> NoReturn:
        self._end()
        raise _Ended(f"not done after {self.limits.seconds:g} seconds")

    def _lost(self) -> NoReturn:
        assert self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)  # it is ending: let its status be its own
        code = self._end()
        reason = "it ended itself"
        if code == 137:
            reason = f"it used up its {self.limits.cpu_seconds} seconds, or memory, and was killed"
        elif code > 128:
            reason = f"it crashed (signal {code - 128})"
        raise _Ended(f"the interpreter is gone: {reason}")

    def _end(self) -> int:
        """End it, if it is there; the warden's status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        self._line.close()  # then the warden kills what it guards
        self._socket.close()
        try:
            errors = process.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            errors = process.communicate()[1]
        self._errors = errors.decode("utf-8", "replace").strip()[-500:]
        if self._home:
            shutil.rmtree(self._home, ignore_errors=True)
            self._home = None
        return process.returncode


def _source(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _answer(reply: Mapping[str, Any], call: Call | None) -> dict[str, Any]:
    """What the host says to a call."""
    name, args, kwargs = (reply.get(key) for key in ("call", "args", "kwargs"))
    if not (isinstance(name, str) and isinstance(args, list) and isinstance(kwargs, dict)):
        return {"error": "no call"}
    if call is None:
        return {"error": f"{name}: there are no functions here"}
    try:
        value = call(name, args, kwargs)
        json.dumps(value)
    except Exception as e:
        return {"error": str(e) or type(e).__name__}
    return {"value": value}


def _as_run(reply: Mapping[str, Any]) -> RunOutput:
    def text(key: str) -> str | None:
        value = reply.get(key)
        # A lone surrogate has no UTF-8.
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None

    return RunOutput(text("out") or "", text("value"), text("error"))
