"""Our server and llama.cpp's own on the same file: many streams at once, interleaved, medians.

    make peers       builds llama.cpp's server for this machine, among others
    python -m benchmarks.serving [--llama-server PATH] [--quick]

Both servers read the same GGUF file
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
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import cpu_fields, machine, ratio, refusal, sweep

from smollm3.checkpoint import locate
from smollm3.files import write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "serving.json"
LLAMA_SERVER = HERE.parent / ".venv-peers" / "llama.cpp" / "bin" / "llama-server"
MODEL = "smollm2-135m"
STREAMS = 32
TOKENS = 96
CONTEXT = 512  # of a stream
ROUNDS = 5
# llama.cpp's settings, one axis after the other; the first of each is its default.
AXES: dict[str, Sequence[Sequence[str]]] = {
    "flash": ([], ["--flash-attn", "off"]),
    "unified": ([], ["--kv-unified"]),
    "ubatch": ([], ["--ubatch-size", "128"]),
    "repack": ([], ["--no-repack"]),
    "samplers": ([], ["--samplers", "temperature"]),
    "kept prompts": ([], ["--cache-ram", "0"]),
}
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
    command = [sys.executable, "-m", "smollm3", "serve", str(file), "--port", str(port), "--quiet"]
    return [*command, "--no-speculation", "--threads", str(threads)]


def theirs(program: Path, file: Path, port: int, threads: int, more: Sequence[str]) -> list[str]:
    command = [str(program), "-m", str(file), "--port", str(port), "--parallel", str(STREAMS)]
    command += ["--ctx-size", str(STREAMS * CONTEXT), "--threads", str(threads)]
    return [*command, "--no-webui", "--cont-batching", *more]


def information(program: Path, file: Path) -> dict[str, Any]:
    """What it says of itself when it starts."""
    command = [str(program), "-m", str(file), "--port", "8101", "--verbose"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if b"system_info" in line), b"")
        process.kill()
    return {"name": "llama.cpp", "vnni": b"AVX512_VNNI = 1" in said}


def words(settings: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for each in settings.values() for word in each]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-server", type=Path, default=LLAMA_SERVER)
    parser.add_argument("--quick", action="store_true", help="one round, no sweep")
    options = parser.parse_args()
    program, quick = options.llama_server, options.quick
    if not program.exists():
        raise SystemExit(f"{program}: no such file; run make peers")
    file, threads = locate(MODEL), os.cpu_count() or 1
    if why := refusal(cpu_fields().get("flags", "").split(), information(program, file)):
        raise SystemExit(f"no ratio: {why}")

    def reading(settings: Mapping[str, Sequence[str]]) -> float:
        server = Server(theirs(program, file, 8101, threads, words(settings)), 8101)
        try:
            best = max(tokens_a_second(8101, 1000 * n) for n in range(3))
        finally:
            server.end()
        print(f"llama.cpp {words(settings)}: {best:.0f} tok/s", flush=True)
        return best

    settings, swept = ({}, []) if quick else sweep(reading, AXES)
    servers = {
        "ours": Server(ours(file, 8100, threads), 8100),
        "llama.cpp": Server(theirs(program, file, 8101, threads, words(settings)), 8101),
    }
    rates: dict[str, list[float]] = {name: [] for name in servers}
    try:
        for server in servers.values():
            tokens_a_second(server.port, 0)  # warms it up
        for n in range(1 if quick else ROUNDS):
            for name, server in servers.items():
                rates[name].append(tokens_a_second(server.port, 100 * (n + 1)))
                print(f"{name}: {rates[name][-1]:.0f} tok/s", flush=True)
    finally:
        for server in servers.values():
            server.end()
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(threads),
        "model": f"{MODEL}, {file.name}",
        "streams": STREAMS,
        "tokens": TOKENS,
        "median": {name: statistics.median(each) for name, each in rates.items()},
        "rounds": rates,
        "ratio": ratio(rates["ours"], rates["llama.cpp"], lower_is_better=False),
        "llama.cpp": {"settings": words(settings), "sweep": swept},
    }
    print(json.dumps(found, indent=2))
    if not quick:
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
