"""Word of how a run ended: a notice on this desktop, a line to a web hook (Slack, Discord, own).

A hook's address is a secret: it stands in the environment alone, and no message repeats it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Literal
from urllib.parse import urlsplit

from smollm3.errors import UserError
from smollm3.train.stop import Stopped
from smollm3.units import duration

NoticeName = Literal["desktop", "webhook"]
VARIABLE = "SMOLLM3_WEBHOOK"
SECONDS = 10.0  # that the end of a run waits for a notice at most
SCRIPT = ("on run argv", "display notification (item 2 of argv) with title (item 1 of argv)", "end")

Send = Callable[[Mapping[str, object]], None]


@contextmanager
def telling(
    names: Sequence[NoticeName],
    run: str,
    out: Path,
    warn: Callable[[str], None],
    environment: Mapping[str, str] = os.environ,
) -> Iterator[None]:
    """Tells by each of `names` how what is inside ended: done, stopped or failed.

    run: its name. out: its folder. A notice that fails or takes longer than SECONDS is a warning
    and changes nothing. UserError at once for one that this machine cannot send.
    """
    senders = {name: _SENDERS[name](environment) for name in names}
    began, ended, why = time.monotonic(), "done", ""
    try:
        yield
    except BaseException as e:
        ended = "stopped" if isinstance(e, Stopped | KeyboardInterrupt) else "failed"
        why = f": {e}" if isinstance(e, UserError) else ""
        raise
    finally:
        seconds = time.monotonic() - began
        text = f"{run} {ended} after {duration(seconds)}{why}"
        notice = {"text": text, "run": run, "ended": ended, "seconds": round(seconds)}
        for name, send in senders.items():
            _bounded(name, partial(send, notice | {"folder": str(out)}), warn)


def _bounded(name: str, send: Callable[[], None], warn: Callable[[str], None]) -> None:
    problem = [f"no answer within {SECONDS:.0f} s"]

    def sending() -> None:
        try:
            send()
            problem.clear()
        except urllib.error.HTTPError as e:
            problem[0] = f"HTTP {e.code}"
        except Exception as e:  # its text may hold the address
            problem[0] = type(e).__name__

    thread = Thread(target=sending, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if problem:
        warn(f"notify: {name} was not told how the run ended ({problem[0]})")


def _desktop(environment: Mapping[str, str]) -> Send:
    mac = sys.platform == "darwin"
    program = shutil.which("osascript" if mac else "notify-send", path=environment.get("PATH"))
    if program is None:
        raise UserError("notify: desktop: there is no notify-send here; install libnotify")
    options = [part for line in SCRIPT for part in ("-e", line)] if mac else ["--"]

    def send(notice: Mapping[str, object]) -> None:
        command = [program, *options, "smollm3", str(notice["text"])]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)

    return send


def _webhook(environment: Mapping[str, str]) -> Send:
    address = environment.get(VARIABLE, "")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"notify: webhook: set {VARIABLE} to the hook's http(s) address")

    def send(notice: Mapping[str, object]) -> None:
        body = json.dumps(dict(notice) | {"content": notice["text"]}).encode()  # Discord's word
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, body, headers)
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass

    return send


_SENDERS: dict[NoticeName, Callable[[Mapping[str, str]], Send]] = {
    "desktop": _desktop,
    "webhook": _webhook,
}
