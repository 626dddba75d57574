"""Whatever comes by chance: no fault of the server, no stall, no growth.

Bounds: no answer of 500 and above; memory grows by less than 48 MiB after the first tenth; while
/health is answered the server works for less than a quarter of a second on anything else, so that on
a machine of its own nobody waits longer. SMOLLM3_FUZZ_CASES sets how many, of each dialect and of raw
requests.
"""

import os
import random
import socket

import httpx2
import pytest

from tests.attack.fuzz import Bodies, encoded, mutated
from tests.attack.victim import Pulse, victim

pytestmark = pytest.mark.xdist_group("attack")
CASES = int(os.environ.get("SMOLLM3_FUZZ_CASES", "20_000"))
GROWTH = 48 << 20
STALL = 0.25  # seconds of processor time: other programs make a wait longer, and this not
DIALECTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/v1/conversations",
    "/api/chat",
    "/api/generate",
    "/tokenize",
    "/detokenize",
    "/rerank",
)
JSON = {"content-type": "application/json"}


def bodies(server, path, cases, seed):
    """The statuses of so many requests."""
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        made = Bodies(client.get("/openapi.json").json(), path, random.Random(seed))
        for number in range(cases):
            if number == cases // 10:
                resident = server.resident
            content = encoded(made.make())
            try:
                status = asked(client, path, content)
            except httpx2.RemoteProtocolError:  # kept alive for as long as this process slept
                status = asked(client, path, content)
            assert status < 500, content[:2000]
            yield status
    assert server.resident - resident < GROWTH


def asked(client, path, content):
    with client.stream("POST", path, content=content, headers=JSON) as response:
        for _ in response.iter_bytes():
            pass
    return response.status_code


def raw(server, cases, seed):
    """How many requests of raw bytes were answered."""
    rng, answered = random.Random(seed), 0
    for number in range(cases):
        if number == cases // 10:
            resident = server.resident
        data = mutated(rng)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as line:
            try:
                line.sendall(data)
                line.shutdown(socket.SHUT_WR)
                got = b""
                while part := line.recv(1 << 16):
                    got += part
            except ConnectionError:
                continue
        assert b"HTTP/1.1 5" not in got, data
        answered += got.startswith(b"HTTP/1.1 ")
    assert server.resident - resident < GROWTH
    return answered


def told(pulse):
    return f"longest wait {pulse.longest:.2f} s, most work in one {pulse.work:.2f} s"


@pytest.fixture(scope="module")
def fuzzed():
    with victim(max_tokens=2, read_seconds=5) as server:
        yield server


def test_first_visits():
    """What is made when it is first asked for is made beside the loop: for the OpenAPI document
    everybody waited half a second."""
    with victim() as server, Pulse(server) as pulse:
        for path in ("/openapi.json", "/docs", "/", "/metrics", "/v1/models", "/slots", "/props"):
            assert httpx2.get(server.url + path, timeout=60).status_code < 500
    assert pulse.work < STALL


@pytest.mark.parametrize("path", DIALECTS[:4])
def test_some_bodies(fuzzed, path):
    statuses = list(bodies(fuzzed, path, 20, 0))
    assert len(set(statuses)) > 1  # some are right


def test_some_raw_requests(fuzzed):
    assert raw(fuzzed, 100, 0) > 25


@pytest.mark.slow
@pytest.mark.parametrize("path", DIALECTS)
def test_many_bodies(fuzzed, path):
    with Pulse(fuzzed, pause=0.02) as pulse:
        statuses = list(bodies(fuzzed, path, CASES, 1))
    print(f"\n{path}: {len(statuses)}, {statuses.count(200)} right, {told(pulse)}")
    assert pulse.work < STALL


@pytest.mark.slow
def test_many_raw_requests(fuzzed):
    with Pulse(fuzzed, pause=0.02) as pulse:
        answered = raw(fuzzed, CASES, 1)
    print(f"\n{CASES} raw requests, {answered} answered, {told(pulse)}")
    assert pulse.work < STALL
