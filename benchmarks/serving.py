"""Our server and llama.cpp's own on the same file: many streams at once, interleaved, medians.

    python -m benchmarks.serving --llama-server PATH [--quick]

PATH is `llama-server`, built on this machine (GGML_NATIVE=ON). Both servers read the same GGUF file
and answer the same prompts by OpenAI's completions API, greedily, every token streamed, no guesses
ahead. llama.cpp runs at the best of a sweep over its settings. The client, one for both, takes its
share of the same cores. Writes benchmarks/results/serving.json.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smollm3.checkpoint import locate
from smollm3.files import write_json

RESULTS = Path(__file__).parent / "results" / "serving.json"
MODEL = "smollm2-135m"
STREAMS = 32
TOKENS = 96
CONTEXT = 512  # of a stream
ROUNDS = 5
SWEEP: Sequence[Sequence[str]] = (
    [],
    ["--flash-attn", "off"],
    ["--kv-unified"],
    ["--ubatch-size", "128"],
    ["--no-repack"],
)
PROMPT = (
    "The lighthouse keeper number {} of the northern coast wrote in his diary every evening. "
    "On that day the wind had turned, the boats stayed in the harbour, and"
)


class Server:
    """A server on a port of its own, until `end`."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"does not start: {' '.join(command)}")
            time.sleep(0.2)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)


async def stream(port: int, prompt: str) -> int:
    """One answer; the chunks with text that came."""
    body = json.dumps(
        {
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    data = bytearray()
    while piece := await reader.read(1 << 16):
        data += piece
    writer.close()
    used = re.findall(rb'"completion_tokens":\s*(\d+)', bytes(data))
    if not used or b"[DONE]" not in data:
        raise SystemExit(f"an answer broke off: {bytes(data[-300:])!r}")
    return int(used[-1])


def tokens_a_second(port: int, first: int) -> float:
    async def all_streams() -> int:
        asked = (stream(port, PROMPT.format(first + i)) for i in range(STREAMS))
        return sum(await asyncio.gather(*asked))

    begun = time.perf_counter()
    count = asyncio.run(all_streams())
    if count != STREAMS * TOKENS:
        raise SystemExit(f"{count} tokens instead of {STREAMS * TOKENS}")
    return count / (time.perf_counter() - begun)


def ours(file: Path, port: int, threads: int) -> list[str]:
    words = [sys.executable, "-m", "smollm3", "serve", str(file), "--port", str(port), "--quiet"]
    return [*words, "--no-speculation", "--threads", str(threads)]


def theirs(program: str, file: Path, port: int, threads: int, more: Sequence[str]) -> list[str]:
    words = [program, "-m", str(file), "--port", str(port), "--parallel", str(STREAMS)]
    words += ["--ctx-size", str(STREAMS * CONTEXT), "--threads", str(threads)]
    return [*words, "--no-webui", "--cont-batching", *more]


def best_settings(program: str, file: Path, threads: int) -> tuple[list[str], dict[str, float]]:
    """Each setting by itself, and then all those together that helped."""
    found: dict[str, float] = {}

    def reading(settings: Sequence[str]) -> float:
        server = Server(theirs(program, file, 8101, threads, settings), 8101)
        try:
            best = max(tokens_a_second(8101, 1000 * n) for n in range(3))
        finally:
            server.end()
        found[" ".join(settings) or "its defaults"] = round(best, 1)
        print(f"llama.cpp {settings}: {best:.0f} tok/s", flush=True)
        return best

    plain = reading(SWEEP[0])
    helpful = [setting for setting in SWEEP[1:] if reading(setting) > plain * 1.01]
    together = [word for setting in helpful for word in setting]
    if len(helpful) > 1:
        reading(together)
    best = max(found, key=lambda name: found[name])
    return [] if best == "its defaults" else best.split(), found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--quick", action="store_true", help="one round, no sweep")
    options = parser.parse_args()
    file, threads = locate(MODEL), os.cpu_count() or 1
    settings, swept = (
        ([], {}) if options.quick else best_settings(options.llama_server, file, threads)
    )
    servers = {
        "ours": Server(ours(file, 8100, threads), 8100),
        "llama.cpp": Server(theirs(options.llama_server, file, 8101, threads, settings), 8101),
    }
    rates: dict[str, list[float]] = {name: [] for name in servers}
    try:
        for server in servers.values():
            tokens_a_second(server.port, 0)  # warms it up
        for n in range(1 if options.quick else ROUNDS):
            for name, server in servers.items():
                rates[name].append(tokens_a_second(server.port, 100 * (n + 1)))
                print(f"{name}: {rates[name][-1]:.0f} tok/s", flush=True)
    finally:
        for server in servers.values():
            server.end()
    medians = {name: statistics.median(each) for name, each in rates.items()}
    ratio = medians["ours"] / medians["llama.cpp"]
    print(f"{STREAMS} streams: {medians} tok/s, {ratio:.2f}x")
    version = subprocess.run(
        [options.llama_server, "--version"], capture_output=True, text=True, check=True
    )
    told: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.platform(),
        "cores": threads,
        "model": f"{MODEL}, {file.name}",
        "streams": STREAMS,
        "tokens": TOKENS,
        "rounds": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "median": {name: round(rate, 1) for name, rate in medians.items()},
        "ratio": round(ratio, 2),
        "llama.cpp": {
            "version": version.stderr.splitlines()[0],
            "settings": settings,
            "sweep": swept,
        },
    }
    if not options.quick:
        write_json(RESULTS, told)


if __name__ == "__main__":
    main()
