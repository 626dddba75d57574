"""A run's report while it is made: a page for this computer's browser that renews itself.

It only reads what the run writes anyway, so it can be opened and closed at any time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from smollm3.errors import UserError
from smollm3.report.html import render
from smollm3.report.run import read_run

HOST, PORT = "127.0.0.1", 8765
REFRESH = 5  # seconds until a browser asks again
SHARE = 0.1  # of the time, at most, that pages are made


class Watch(HTTPServer):
    """Answers one request after another, on this computer alone. url: where."""

    def __init__(self, folder: Path) -> None:
        """folder: of the run. The first free port from PORT on, or else any."""
        self.folder = folder
        self._page, self._until = b"", 0.0
        for port in (*range(PORT, PORT + 10), 0):
            try:
                super().__init__((HOST, port), _Handler)
                break
            except OSError:
                continue
        else:
            raise UserError("--watch: this computer has no free port")
        self.url = f"http://{HOST}:{self.server_port}/"

    def page(self) -> bytes:
        """The report as it is now, or as it was a moment ago."""
        began = time.monotonic()
        if began >= self._until:
            self._page = self._made()
            self._until = time.monotonic() + (time.monotonic() - began) / SHARE
        return self._page

    def _made(self) -> bytes:
        try:
            run = read_run(self.folder)
            ended = len(run.done) == len(run.stages)
            return render(run, refresh=None if ended else REFRESH).encode()
        except (UserError, OSError, ValueError, KeyError):
            # No run yet, or a folder was renamed between two looks: the next look sees it.
            wait = f'<meta http-equiv="refresh" content="{REFRESH}"><p>The run has not begun.</p>'
            return self._page or wait.encode()


class _Handler(BaseHTTPRequestHandler):
    timeout = 5  # for a client that opens a connection and says nothing
    server: Watch

    def do_GET(self) -> None:
        # A page from elsewhere whose name leads here would send that name.
        known = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in known:
            self.send_error(403)
        elif self.path != "/":
            self.send_error(404)
        else:
            body = self.server.page()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is the run's."""


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """Meanwhile the page is served; gives its address."""
    with Watch(folder) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()
