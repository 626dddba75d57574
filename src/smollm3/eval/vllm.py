"""`--engine vllm`: vLLM's own server on the model, for as long as an evaluation takes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from smollm3.checkpoint import digest, locate
from smollm3.errors import UserError
from smollm3.eval.remote import UrlTarget
from smollm3.eval.target import Settings

HOST = "127.0.0.1"
POLL_SECONDS, END_SECONDS = 0.5, 60
LAST_LINES = 3  # of what it said, where it ended


class VllmTarget(UrlTarget):
    """A model in a server that is gone afterwards: items belong to the model and not to its URL."""

    def __init__(self, url: str, model: str, origin: str, settings: Settings) -> None:
        super().__init__(url, settings)
        self.name, self._origin = model, origin

    def origin(self) -> str:
        return self._origin


@contextmanager
def serving(model: str, settings: Settings, options: Mapping[str, Any]) -> Iterator[VllmTarget]:
    """vLLM on a port of this computer alone. options: of the engine, those that vLLM knows.
    UserError with its last words where it ends before it answers."""
    folder = locate(model)
    words = [sys.executable, "-m", "smollm3", "serve", str(folder), "--engine", "vllm"]
    for key, value in options.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    words += ["--host", HOST, "--port", str(port)]
    environment = {k: v for k, v in os.environ.items() if k != "SMOLLM3_API_KEY"}
    url = f"http://{HOST}:{port}/v1"
    made_with = "".join(f", {key} {value}" for key, value in sorted(options.items()))
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
        )
        try:
            while not _answers(url):
                if process.poll() is not None:
                    said.seek(0)
                    lines = said.read().decode("utf-8", "replace").strip().splitlines()
                    last = " / ".join(lines[-LAST_LINES:]).removeprefix("error: ")
                    raise UserError(f"vLLM ended with code {process.returncode}: {last}")
                time.sleep(POLL_SECONDS)
            yield VllmTarget(url, model, f"vllm {digest(folder)}{made_with}", settings)
        finally:
            process.terminate()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/models", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
