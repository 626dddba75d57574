"""Bodies of requests: JSON read off the event loop, and work that is bounded before it is done."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from smollm3.serve.errors import ApiError

# A list or an object takes up to some 900 bytes once it is a model, a number or a text some 60.
CONTAINER, VALUE = 300, 60  # as lists and dicts, which are kept
MOST_CONTAINERS = 1 << 15
MOST_VALUES = 1 << 18
SMALL = 1 << 14  # bytes that are read faster than handed to a thread
# A stretch without halves of characters, or one of these: as an escape of JSON, or as bytes.
_HALF = rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALVES = re.compile(
    rb"((?:[^\\\xed]++|" + _PAIR + rb"|(?!" + _HALF + rb")\\(?:.|\Z)"
    rb"|\xed(?![\xa0-\xbf][\x80-\xbf]))++)|" + _HALF + rb"|\xed..",
    re.DOTALL,
)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


async def off_loop(body: bytes, work: Callable[[], Any]) -> Any:
    """What `work` makes of the body; in a thread where the body is large."""
    return work() if len(body) <= SMALL else await asyncio.to_thread(work)


def readable(body: bytes) -> bytes:
    """The body with whole characters. Raises ApiError for more values than are looked at."""
    body = whole_text(body)
    values, containers = _counted(body)
    if values > MOST_VALUES or containers > MOST_CONTAINERS:
        raise ApiError(
            413,
            f"the body has more than {MOST_CONTAINERS} lists and objects, "
            f"or more than {MOST_VALUES} values",
        )
    return body


def footprint(value: Any) -> int:
    """About how many bytes a JSON value takes in memory."""
    text = json.dumps(value).encode()
    values, containers = _counted(text)
    return len(text) + CONTAINER * containers + VALUE * values


def _counted(body: bytes) -> tuple[int, int]:
    """Its values, about, and its lists and objects: signs that stand in no text."""
    bare = body.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in body else body
    signs = np.frombuffer(bare, np.uint8)
    outside = np.bitwise_xor.accumulate((signs == ord('"')).view(np.uint8)) == 0
    containers = int(np.count_nonzero(((signs == ord("[")) | (signs == ord("{"))) & outside))
    return int(np.count_nonzero((signs == ord(",")) & outside)) + containers, containers


def whole_text(body: bytes) -> bytes:
    """JSON in which every half of a character is U+FFFD: text that was cut in its middle stays a
    text, where tokenizers and answers can have none of it."""
    if b"\\u" not in body and b"\xed" not in body:
        return body
    return b"".join(found[1] or b"\xef\xbf\xbd" for found in _HALVES.finditer(body))


class BodyRoute(APIRoute):
    """A route whose body is parsed and checked off the event loop."""

    def get_route_handler(self) -> Handler:
        handle, field = super().get_route_handler(), self.body_field
        if field is None:
            return handle

        def read(body: bytes) -> Any:
            given = _parsed(body)
            value, errors = field.validate(given, {}, loc=("body",))
            if errors:
                raise RequestValidationError(errors, body=given)
            return value

        async def handle_read(request: Request) -> Response:
            if request.headers.get("content-type", "").startswith("multipart/"):
                return await handle(request)
            body = await request.body()
            if body:
                value = await off_loop(body, lambda: read(body))
                request = _Read(request, value)
            return await handle(request)

        return handle_read


class _Read(Request):
    """A request whose body is a model already."""

    def __init__(self, request: Request, value: Any) -> None:
        super().__init__(request.scope, request.receive)
        self._body = request._body
        self._value = value

    async def json(self) -> Any:
        return self._value


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except json.JSONDecodeError as e:
        why = {"type": "json_invalid", "loc": ("body", e.pos), "msg": "JSON decode error"}
        raise RequestValidationError([{**why, "input": {}, "ctx": {"error": e.msg}}]) from None
    except (ValueError, RecursionError):  # no UTF-8, too deep, a number of thousands of digits
        raise HTTPException(400, "the body cannot be read as JSON") from None
