"""Two hundred clients at once on this machine: nothing fails but honest refusals, memory is flat."""

import asyncio
import re
import time
from pathlib import Path

import httpx2
import pytest

from .test_serve import HI, model, serving  # noqa: F401  (a fixture)

CLIENTS = 200
SECONDS = 120
QUEUE_SECONDS = 20
CONFIG = f"running: 64\nqueue: 100\nqueue_seconds: {QUEUE_SECONDS}\n"


def resident(pid):
    """MiB that a process holds in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) / 1024


class Crowd:
    def __init__(self, url):
        self.url = url
        self.done = self.refused = self.vanished = self.tokens = 0
        self.failed, self.waits = [], []

    async def client(self, number, until):
        limits = httpx2.Limits(max_connections=1)
        async with httpx2.AsyncClient(base_url=self.url, timeout=90, limits=limits) as client:
            turn = 0
            while time.monotonic() < until:
                turn += 1
                await self.ask(client, number * 1000 + turn)

    async def ask(self, client, seed):
        body = {
            "messages": [{"role": "user", "content": f"question {seed}"}],
            "max_tokens": 20 + seed % 100,
            "ignore_eos": True,
            "seed": seed,
            "stream": True,
        }
        begun = time.monotonic()
        last = ""
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            self.waits.append(time.monotonic() - begun)
            if response.status_code == 429:
                self.refused += 1
                await response.aread()
                await asyncio.sleep(int(response.headers["retry-after"]))
                return
            if response.status_code != 200:
                self.failed.append((response.status_code, (await response.aread())[:200]))
                return
            async for line in response.aiter_lines():
                last = line or last
                self.tokens += line.startswith("data: {")
                if seed % 17 == 0 and self.tokens % 5 == 0:
                    self.vanished += 1
                    return
        if last == "data: [DONE]":
            self.done += 1
        else:
            self.failed.append((200, last[:200]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_two_hundred_clients(model, tmp_path, capsys):  # noqa: F811
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG)

    async def scene(server):
        crowd, pid = Crowd(server.url), server.process.pid
        until = time.monotonic() + SECONDS
        tasks = [asyncio.create_task(crowd.client(i, until)) for i in range(CLIENTS)]
        await asyncio.sleep(SECONDS * 2 / 3)  # the cache has been filled by then
        warm = resident(pid)
        await asyncio.gather(*tasks)
        return crowd, warm, resident(pid)

    with serving(model, "--quiet", "--config", config) as server:
        crowd, warm, end = asyncio.run(scene(server))
        figures = httpx2.get(f"{server.url}/metrics").text
        for gauge in ("answers_running", "answers_waiting", "engine_requests_running"):
            assert re.search(rf"^smollm3_{gauge} 0\.0$", figures, re.MULTILINE), gauge
        answer = httpx2.post(
            f"{server.url}/v1/chat/completions", json={"messages": HI, "max_tokens": 3}
        )
        assert answer.status_code == 200
    with capsys.disabled():
        print(
            f"\n{crowd.done} answers, {crowd.refused} refused, {crowd.vanished} hung up, "
            f"{crowd.tokens / SECONDS:.0f} chunks/s, longest wait {max(crowd.waits):.1f} s, "
            f"{warm:.0f} MiB after two thirds, {end:.0f} MiB at the end"
        )
    assert crowd.failed == []
    assert crowd.done > CLIENTS
    assert crowd.refused > 0
    assert max(crowd.waits) < QUEUE_SECONDS + 5
    assert end < warm * 1.05
