"""Who may come in, and with what: the first thing that sees a request, the last that sees a reply.

A web page can make the browser of whoever reads it send requests to this machine. So without a key
only loopback names are served (a page's own name may be rebound to 127.0.0.1), and pages from
elsewhere are turned away.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smollm3.serve.bodies import off_loop, readable
from smollm3.serve.errors import ApiError, dialect_of
from smollm3.serve.service import Gone, Service
from smollm3.serve.settings import is_loopback

log = logging.getLogger("smollm3.serve")
requests = logging.getLogger("smollm3.serve.requests")
CSP = (
    "default-src 'self'; img-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
FAULT = "the server has failed on this request; its log says where"
GONE = 499  # the client has hung up; for the log and the figures only
UPLOADS = "/v1/files"
MULTIPART = 1 << 16  # bytes around an uploaded file
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,80}")
# What says nothing about anybody.
OPEN_PATHS = frozenset(("/health", "/ready"))


class Guard:
    """ASGI middleware around everything."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        reply = _Reply(send, Headers(scope=scope).get("origin"), self._service, state)
        path = scope["path"]
        try:
            state["salt"] = self._check(scope, path)
            if scope["method"] == "OPTIONS" and reply.foreign:
                await _preflight(scope, receive, reply.send)
            else:
                await self._app(scope, await self._read(scope, receive), reply.send)
        except Gone:
            reply.status = GONE
        except ApiError as e:
            await _refuse(e, path, scope, receive, reply)
        except Exception as e:
            log.error("%s %s: %s", scope["method"], _route(scope), _trace(e))
            if not reply.complete:
                await _refuse(ApiError(500, FAULT), path, scope, receive, reply)
        finally:
            self._note(scope, reply)

    def _check(self, scope: Scope, path: str) -> str:
        """The salt of the request's key. Raises ApiError where it may not come in."""
        headers, keys = Headers(scope=scope), self._service.keys
        if not keys:
            if not _is_loopback_name(headers.get("host", "")):
                raise ApiError(
                    403, "only localhost is served without a key; set one to be reached by name"
                )
            if not self._is_welcome(headers):
                raise ApiError(403, "a web page from elsewhere may not use this server")
            return ""
        if path in OPEN_PATHS or is_page(path) or scope["method"] == "OPTIONS":
            return ""
        bearer = headers.get("authorization", "")
        given = bearer[7:].strip() if bearer[:7].lower() == "bearer " else headers.get("x-api-key")
        salt = keys.salt(given) if given else None
        if salt is None:
            raise ApiError(401, "give the server's key as bearer token", code="invalid_api_key")
        return salt

    def _is_welcome(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site") != "cross-site" or (
                headers.get("sec-fetch-mode") == "navigate"
            )
        own = origin.lower() in (f"http://{headers['host']}", f"https://{headers['host']}")
        return own or origin in self._service.settings.allowed_origins

    async def _read(self, scope: Scope, receive: Receive) -> Receive:
        """The body, read and measured, to be received again."""
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return receive
        headers, most = Headers(scope=scope), self._service.settings.max_body_bytes
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        upload = kind == "multipart/form-data" and scope["path"] == UPLOADS
        if upload:
            most = self._service.settings.max_file_bytes + MULTIPART
        elif not kind and not _is_of_page(headers):
            MutableHeaders(scope=scope)["content-type"] = "application/json"
        elif kind != "application/json" and (kind or _has_body(headers)):
            raise ApiError(415, "send the body as content-type: application/json")
        length = headers.get("content-length", "0")
        too_large = ApiError(413, f"the body is larger than {most} bytes")
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise too_large
        if upload:
            return _measured(receive, most, too_large)
        collected = bytearray()  # a list of parts of one byte would be forty times as large
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise Gone
            collected += message.get("body", b"")
            if len(collected) > most:
                raise too_large
            if not message.get("more_body"):
                break
        whole = bytes(collected)
        body = await off_loop(whole, lambda: readable(whole))
        again: list[Message] = [{"type": "http.request", "body": body}]

        async def replay() -> Message:
            return again.pop() if again else await receive()

        return replay

    def _note(self, scope: Scope, reply: _Reply) -> None:
        path = _route(scope)
        seconds = time.perf_counter() - reply.started
        metrics = self._service.metrics
        metrics.requests.labels(path, str(reply.status)).inc()
        metrics.seconds.labels(path).observe(seconds)
        requests.info("%s %s %d %.3f s", scope["method"], path, reply.status, seconds)


def _route(scope: Scope) -> str:
    """The path without what strangers write in it, which would fill logs and memory."""
    return getattr(scope.get("route"), "path", None) or "other"


def _is_of_page(headers: Headers) -> bool:
    """Whether a browser sends it for a page, which could leave out the kind of its body."""
    return "origin" in headers or "sec-fetch-site" in headers


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _measured(receive: Receive, most: int, too_large: ApiError) -> Receive:
    """A body that its reader keeps on a disk, and that is not longer than it may be."""
    size = 0

    async def measured() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise too_large
        return message

    return measured


class _Reply:
    """What goes out, with the headers that everything has."""

    def __init__(
        self, send: Send, origin: str | None, service: Service, state: dict[str, Any]
    ) -> None:
        self._send = send
        self._state = state
        self._seconds = service.settings.send_seconds
        self.started = time.perf_counter()
        self.status = 0
        self.complete = False
        self.foreign = origin if origin in service.settings.allowed_origins else None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY)
            headers.setdefault("cache-control", "no-store")
            lines = [f"{what} is left out" for what in self._state.get("left_out") or ()]
            if lines := [*lines, *(self._state.get("warnings") or ())]:
                headers["warning"] = _warning(lines)
            if self.foreign:
                headers["access-control-allow-origin"] = self.foreign
                headers["access-control-expose-headers"] = "retry-after, warning"
                headers["vary"] = "origin"
        try:
            async with asyncio.timeout(self._seconds):
                await self._send(message)
        except TimeoutError:
            raise Gone from None
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body")


def _warning(lines: Sequence[str]) -> str:
    """In the form of RFC 7234: 299 is one that stays true."""
    texts = (
        line.encode("ascii", "replace").decode().replace("\\", "").replace('"', "'")
        for line in lines
    )
    printable = ("".join(c for c in text if c.isprintable())[:200] for text in texts)
    return ", ".join(f'299 smollm3 "{text}"' for text in printable)[:2000]


def _trace(error: BaseException | None) -> str:
    """Where it comes from, without messages: they may quote what somebody wrote."""
    told = []
    while error is not None:
        trace = "".join(traceback.format_tb(error.__traceback__))
        told.append(f"{type(error).__name__}\n{trace}")
        error = error.__cause__
    return "caused by ".join(told)


def is_page(path: str) -> bool:
    """Whether it is the chat page or a part of it, which the server tells anybody."""
    return path == "/" or path.startswith("/assets/")


def _is_loopback_name(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return "@" not in host and is_loopback(name or "")


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    """Whoever may come in may send what headers they like: clients' libraries send their own."""
    asked = Headers(scope=scope).get("access-control-request-headers", "")
    names = [name.strip() for name in asked.split(",")]
    allowed = {
        "access-control-allow-methods": "GET, HEAD, POST, DELETE",
        "access-control-allow-headers": ", ".join(filter(_HEADER_NAME.fullmatch, names)),
        "access-control-max-age": "600",
    }
    await Response(status_code=204, headers=allowed)(scope, receive, send)


async def _refuse(
    error: ApiError, path: str, scope: Scope, receive: Receive, reply: _Reply
) -> None:
    if reply.status:  # too late: it has begun, and ends without its end
        return
    response = JSONResponse(error.body(dialect_of(path)), error.status, error.headers)
    await response(scope, receive, reply.send)
