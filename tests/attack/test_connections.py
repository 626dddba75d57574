"""What comes before any key, and what is sent to nobody: each connection has a little room and time.

Bounds: 64 KiB and 128 headers a request; a head within `read_seconds`, a body of 4 KiB/s at least;
so many connections; what nobody takes within `send_seconds` is dropped.
"""

import contextlib
import socket
import time

import httpx2
import pytest

from tests.attack.victim import victim

pytestmark = pytest.mark.xdist_group("attack")
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
JSON = b"content-type: application/json\r\n"
CONNECTIONS = 30
LATEST = 30  # seconds on a machine that has much else to do; without limits it is never


@pytest.fixture(scope="module")
def server():
    limits = {"connections": CONNECTIONS, "running": 1}
    with victim(read_seconds=0.5, send_seconds=1000, **limits) as found:
        yield found


def connected(server, receive=None):
    line = socket.socket()
    line.settimeout(LATEST)
    if receive:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
    line.connect(("127.0.0.1", server.port))
    return contextlib.closing(line)


def answer(line):
    """All that comes until the other side closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := line.recv(1 << 16):
            got += data
    return got


def flood(line, pieces):
    """The pieces as long as somebody takes them; the bytes that were taken."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            line.sendall(piece)
            sent += len(piece)
    return sent


@pytest.mark.parametrize(
    "head",
    [
        CHAT + b"a: " + b"b" * (1 << 20),
        CHAT + b"b" * (1 << 20),
        b"GET /" + b"b" * (1 << 20),
        CHAT + b"".join(b"h%d: 1\r\n" % i for i in range(129)) + b"\r\n",
        CHAT + b"".join(b"h%d: %s\r\n" % (i, b"x" * 999) for i in range(80)) + b"\r\n",
    ],
    ids=["value", "name", "url", "count", "sum"],
)
def test_heads_are_short(server, head):
    with connected(server) as line:
        flood(line, [head])
        assert b" 200 " not in answer(line)[:20]


def test_endless_heads_take_no_memory(server):
    """Of a gigabyte in one header no more is taken than buffers hold."""
    resident = server.resident
    with connected(server) as line:
        sent = flood(line, [CHAT + b"a: ", *([b"b" * (1 << 20)] * 1000)])
    assert sent < 32 << 20
    assert server.resident - resident < 16 << 20


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET",
        CHAT + b"content-le",
        CHAT + JSON + b"content-length: 1000\r\n\r\n{",
    ],
    ids=["nothing", "method", "head", "body"],
)
def test_slow_ones_are_closed(server, begun):
    begin = time.monotonic()
    with connected(server) as line:
        line.sendall(begun)
        answer(line)
    assert time.monotonic() - begin < LATEST


def test_a_body_that_drips_is_closed(server):
    head = CHAT + JSON + b"content-length: 1000000\r\n\r\n"

    def drips():
        yield head
        begin = time.monotonic()
        while time.monotonic() - begin < LATEST:
            yield b" "
            time.sleep(0.05)

    with connected(server) as line:
        assert flood(line, drips()) < len(head) + LATEST * 20


def test_pipelined_requests_are_few(server):
    with connected(server) as line:
        flood(line, [b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 5000])
        with contextlib.suppress(OSError):  # it is closed already
            line.shutdown(socket.SHUT_WR)
        assert answer(line).count(b"HTTP/1.1 200") < 100


def test_connections_are_counted(server):
    """What is open beyond the most allowed is told so; what was there before goes on."""
    before = server.descriptors
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(connected(server)) for _ in range(CONNECTIONS + 20)]
        refused = [line for line in lines if b" 503 " in answer(line)]
        assert len(refused) >= 20
    until = time.monotonic() + LATEST
    while server.descriptors > before + 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert httpx2.get(server.url + "/health").status_code == 200


def unread(server):
    """A stream of some megabytes that its client does not read."""
    body = b'{"prompt":"%s","echo":true,"logprobs":20,"stream":true,"max_tokens":2}' % (
        b"a b " * 100
    )
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n" + JSON
    line = connected(server, receive=4096)
    line.thing.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
    assert line.thing.recv(12) == b"HTTP/1.1 200"
    return line


def ask(server):
    body = {"prompt": "hi", "max_tokens": 2}
    return httpx2.post(server.url + "/v1/completions", json=body, timeout=LATEST)


def test_an_unread_stream_gives_its_place_back(server):
    """The only place is another's as soon as the engine is done, whoever reads or not."""
    with unread(server):
        assert ask(server).status_code == 200


@pytest.mark.slow
def test_what_nobody_takes_is_dropped():
    with victim(running=1, send_seconds=1) as server:
        assert ask(server).status_code == 200
        before = server.descriptors
        with unread(server):
            until = time.monotonic() + LATEST
            while server.descriptors > before and time.monotonic() < until:
                time.sleep(0.05)
            assert server.descriptors <= before
