"""One engine in a process of its own, asked over standard input and output.

A request is a JSON line [method, arguments], the answer a JSON line {"value": ...} or
{"error": text}. Engines print what they like: their standard output becomes standard error.
Imports nothing but the standard library, for it runs in every peer's environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def serve(engine: Any) -> None:
    """Answer requests with the methods of `engine` until standard input ends; then end at once,
    without the destructors of foreign threads."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            answer = {"value": getattr(engine, method)(**arguments)}
        except Exception as e:
            traceback.print_exc()
            answer = {"error": f"{type(e).__name__}: {e}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_memory() -> dict[str, int]:
    """Bytes: the largest resident set so far, and what of today's is the process's own (weights
    that are mapped from a file are not)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon")}
