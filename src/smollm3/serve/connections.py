"""Connections before there is a request: how many, and how long and how slow their bytes may be.

uvicorn bounds none of this, and what a stranger sends before any key is looked at costs memory and
descriptors.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from smollm3.serve.settings import Settings

HEAD_BYTES = 1 << 16  # of a request line with its headers
HEADERS = 128
PIPELINED = 16  # requests that wait behind the one that is answered
SLOWEST = 4 << 10  # bytes a second of a body
_SAID = {
    400: "Bad Request",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Connection(HttpToolsProtocol):
    """uvicorn's, within limits."""

    def __init__(self, *arguments: Any, settings: Settings, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._settings = settings
        self._head: int | None = 0  # bytes of the one that comes; None: a body does, or nothing
        self._body = 0  # bytes since the last look
        self._watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        settings, address = self._settings, self.client[0] if self.client else ""
        others = [other for other in self.connections if isinstance(other, Connection)]
        here = sum(1 for other in others if other.client and other.client[0] == address)
        crowded = here > settings.connections_per_address and not _is_loopback(address)
        if crowded or len(self.connections) > settings.connections:
            self._end(503)
        else:
            self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES:
            self._end(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = self._head or 0
        self._look_later()
        if len(self.pipeline) > PIPELINED:
            self._end(400)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES or len(self.headers) > HEADERS:
            self._end(431)
        if self.transport.is_closing():
            raise ConnectionAbortedError  # the parser stops
        self._head = None
        self._body = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._look_no_more()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def _look_later(self) -> None:
        self._look_no_more()
        self._watch = self.loop.call_later(self._settings.read_seconds, self._look)

    def _look_no_more(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _look(self) -> None:
        """After a while: the head is there by now, and the body comes."""
        enough = self._head is None and self._body >= self._settings.read_seconds * SLOWEST
        if enough or self.flow.read_paused:
            self._body = 0
            self._look_later()
        else:
            self._end(408)

    def _end(self, status: int) -> None:
        if self.cycle is None or self.cycle.response_complete:
            head = f"HTTP/1.1 {status} {_SAID[status]}\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: 0\r\n\r\n".encode())
        self.transport.close()


def _is_loopback(address: str) -> bool:
    """Also of a proxy here, behind which there may be anybody; and of sockets without one."""
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback
