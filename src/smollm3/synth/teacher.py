"""Asking a teacher: many requests at once, patience with what fails."""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from typing import Any, Protocol

from smollm3.synth.spec import Mode, Teacher

LONGEST_WAIT = 60.0
MAX_ANSWER_BYTES = 32 << 20
PASSING = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))


class Refused(Exception):
    """The teacher will not answer this request, however often it is asked."""


class Silent(Exception):
    """No answer after all attempts: ask again in another run."""


class Rate:
    """Lets `per_minute` requests start in a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._gap
        time.sleep(max(0.0, start - time.monotonic()))


class Answerer(Protocol):
    """A teacher that can be asked from many threads. name: for errors."""

    name: str

    def ask(self, messages: list[dict[str, Any]], mode: Mode, seed: int) -> dict[str, Any]:
        """{"reasoning", "content", "finish", "input", "output"} of one answer; the last two are
        tokens. Raises Refused or Silent."""

    def close(self) -> None:
        """Whoever waits for an answer waits no longer."""


class Client:
    """A teacher's URL; `requests` of the threads ask at a time."""

    def __init__(self, teacher: Teacher, url: str) -> None:
        self.teacher = teacher
        self.name = f"teacher.url: {url}"
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._stop = threading.Event()
        self._rate = Rate(teacher.per_minute)
        self._free = threading.BoundedSemaphore(teacher.requests)

    def close(self) -> None:
        """As Answerer."""
        self._stop.set()

    def ask(self, messages: list[dict[str, Any]], mode: Mode, seed: int) -> dict[str, Any]:
        """As Answerer."""
        teacher = self.teacher
        body = {
            "model": teacher.model,
            "messages": messages,
            "temperature": teacher.temperature,
            "top_p": teacher.top_p,
            "max_tokens": teacher.max_tokens,
            "seed": seed,
            "chat_template_kwargs": {"enable_thinking": mode == "think"},
        }
        data = json.dumps(body).encode()
        reason = ""
        for attempt in range(teacher.attempts):
            if self._stop.is_set():
                raise Silent("stopped")
            self._rate.wait()
            wait = min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                with self._free:
                    return self._once(data)
            except urllib.error.HTTPError as e:
                reason = f"HTTP {e.code}"
                wait = max(wait, _retry_after(e))
                e.close()
                if e.code not in PASSING:
                    raise Refused(reason) from None
            except (OSError, http.client.HTTPException, ValueError) as e:
                reason = str(e) or type(e).__name__
            self._stop.wait(wait)
        raise Silent(f"no answer after {teacher.attempts} attempts ({reason})")

    def _once(self, data: bytes) -> dict[str, Any]:
        key = os.environ.get(self.teacher.key_env, "none")
        request = urllib.request.Request(
            self._url,
            data,
            {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
        )
        late = time.monotonic() + self.teacher.timeout
        text = b""
        with urllib.request.urlopen(request, timeout=self.teacher.timeout) as answer:
            while piece := answer.read1(1 << 16):
                text += piece
                # The socket's own limit begins anew with every byte.
                if time.monotonic() > late or len(text) > MAX_ANSWER_BYTES:
                    raise ValueError("an answer without an end")
        return _read(json.loads(text))


def _read(body: Any) -> dict[str, Any]:
    """What is wanted of an answer; a ValueError where it is none."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, finish = message["content"], choice.get("finish_reason")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        usage = body.get("usage") or {}
        counts = [int(usage.get(key) or 0) for key in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("not an answer of this API") from None
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise ValueError("an answer without text")
    if not reasoning and content.lstrip().startswith("<think>") and "</think>" in content:
        reasoning, content = content.lstrip().removeprefix("<think>").split("</think>", 1)
    return {
        "reasoning": reasoning.strip("\n"),
        "content": content.strip("\n"),
        "finish": finish,
        "input": counts[0],
        "output": counts[1],
    }


def _retry_after(error: urllib.error.HTTPError) -> float:
    try:
        return min(LONGEST_WAIT, float(error.headers.get("Retry-After") or 0))
    except ValueError:
        return 0.0
