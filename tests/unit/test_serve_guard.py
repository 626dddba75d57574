"""Who may come in: names, origins, keys, bodies; and the queue."""

import asyncio
import json
import logging
import re
import threading
import time

import httpx2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.support.serving import listening, local, speaking

from smollm3.errors import UserError
from smollm3.serve.admission import AdmissionQueue
from smollm3.serve.bodies import whole_text
from smollm3.serve.errors import ApiError
from smollm3.serve.settings import Keys, Settings, is_loopback, read_keys

KEY = "k" * 24
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, {"hi": "hello"}) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    return local(engine, Settings(max_body_bytes=2000))


@pytest.fixture(scope="module")
def locked(engine):
    return local(engine, Settings(allowed_origins=("https://good.example",)), [KEY, "other" * 5])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:8000", 200),
        ("127.0.0.1:1", 200),
        ("[::1]:8000", 200),
        ("127.9.9.9", 200),
        ("page.localhost", 200),
        ("evil.example", 403),  # rebound to 127.0.0.1
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost@evil.example", 403),
        ("evil.example@localhost", 403),
        ("0.0.0.0", 403),
        ("192.168.0.9", 403),
        ("[::", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/", "/v1/models"])
def test_only_loopback_names_without_a_key(client, host, status, path):
    assert client.get(path, headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://localhost:8000"}, 403),  # another page on this machine
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:8000.evil.example"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_pages_from_elsewhere_are_turned_away(client, headers, status):
    response = client.post(CHAT, json=BODY, headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"],
)
def test_what_a_form_can_send_is_refused(client, kind):
    response = client.post(CHAT, content=b'{"messages": []}', headers={"content-type": kind})
    assert response.status_code == 415


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # as libraries send it that know Ollama's server
        ({"origin": "http://127.0.0.1:8000"}, 415),
        ({"sec-fetch-site": "same-site"}, 415),
    ],
)
def test_without_a_kind_a_body_is_json_unless_a_page_sends_it(client, headers, status):
    response = client.post(CHAT, content=json.dumps(BODY), headers=headers)
    assert response.status_code == status


def test_large_bodies_are_refused_unread(client):
    large = {"messages": [{"role": "user", "content": "x" * 3000}]}
    assert client.post(CHAT, json=large).status_code == 413

    def pieces():
        yield b'{"messages": "'
        for _ in range(9):
            yield b"x" * 1000

    kind = {"content-type": "application/json"}
    assert client.post(CHAT, content=pieces(), headers=kind).status_code == 413
    said = {**kind, "content-length": "-1"}
    assert client.post(CHAT, content=b"{}", headers=said).status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 1900, b'{"a": NaN}'])
def test_broken_json_is_one_line(client, body):
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert "\n" not in response.json()["error"]["message"]


def test_every_answer_has_the_policy(client):
    for path in ("/", "/docs", "/health", "/nothing", "/v1/models"):
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert client.get("/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/messages").json()["type"] == "error"
    assert "server" not in client.get("/").headers


def test_head_is_get_without_the_body(client, locked):
    """Agents and watchers ask so whether anybody is there; what only takes POST does not."""
    for path in ("/", "/health", "/v1/models", "/api/tags", "/api/version", "/docs"):
        asked, told = client.head(path), client.get(path)
        assert asked.status_code == told.status_code == 200
        assert asked.content == b""
        assert asked.headers["content-type"] == told.headers["content-type"]
        assert asked.headers["content-length"] == told.headers["content-length"]
    assert client.head(CHAT).status_code == 405
    assert client.head("/nothing").status_code == 404
    assert locked.head("/v1/models").status_code == 401
    assert locked.head("/").status_code == 200
    assert client.head("/slots").status_code == 200
    assert 'path="/slots",status="200"' in client.get("/metrics").text


def test_a_key_opens(locked):
    assert locked.post(CHAT, json=BODY).status_code == 401
    wrong = {"authorization": "Bearer " + "w" * 24}
    assert locked.post(CHAT, json=BODY, headers=wrong).status_code == 401
    refusal = locked.post("/v1/messages", json=BODY, headers=wrong)
    assert refusal.json()["error"]["type"] == "authentication_error"
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert locked.post(CHAT, json=BODY, headers=headers).status_code == 200
        named = {**headers, "host": "model.example"}
        assert locked.post(CHAT, json=BODY, headers=named).status_code == 200
    assert locked.get("/metrics").status_code == 401
    assert locked.get("/health").status_code == 200
    assert locked.get("/").status_code == 200


def test_pages_that_are_allowed(locked):
    headers = {"authorization": f"Bearer {KEY}", "origin": "https://good.example"}
    response = locked.post(CHAT, json=BODY, headers=headers)
    assert response.headers["access-control-allow-origin"] == "https://good.example"
    wanted = "authorization, x-stainless-os, anthropic-version, openai-organization"
    asked = {"origin": "https://good.example", "access-control-request-method": "DELETE"}
    asked["access-control-request-headers"] = f"{wanted}, no name"
    response = locked.options(CHAT, headers=asked)
    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == wanted
    assert "DELETE" in response.headers["access-control-allow-methods"]
    other = locked.options(CHAT, headers={**asked, "origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_prefixes_of_two_keys_are_kept_apart(locked):
    body = {"messages": [{"role": "user", "content": "a long text " * 20}], "max_tokens": 1}

    def cached(key):
        response = locked.post(CHAT, json=body, headers={"x-api-key": key})
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(KEY) < 150 < cached(KEY)
    assert cached("other" * 5) == 0


def test_keys_are_checked_before_the_start(tmp_path):
    file = tmp_path / "keys"
    with pytest.raises(UserError, match="needs a key"):
        read_keys(Settings(host="0.0.0.0"), {})
    assert read_keys(Settings(host="0.0.0.0"), {"SMOLLM3_API_KEY": KEY})
    assert not read_keys(Settings(), {})
    with pytest.raises(UserError, match="at least 16"):
        read_keys(Settings(), {"SMOLLM3_API_KEY": "short"})
    file.write_text(f"{KEY}\n\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        read_keys(Settings(api_key_file=str(file)), {})
    file.chmod(0o600)
    assert read_keys(Settings(api_key_file=str(file)), {}).salt(KEY)
    file.write_text("\n")
    with pytest.raises(UserError, match="no key"):
        read_keys(Settings(api_key_file=str(file)), {})
    with pytest.raises(UserError):
        read_keys(Settings(api_key_file=str(tmp_path / "none")), {})
    assert Keys([KEY]).salt("x") is None


def test_loopback():
    assert is_loopback("localhost.")
    assert is_loopback("::1")
    assert not is_loopback("localhost.example")


def test_nothing_that_was_said_is_logged(engine, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    client = local(engine)
    secret = {"messages": [{"role": "user", "content": "zebra secret"}], "max_tokens": 2}
    assert client.post(CHAT, json=secret).status_code == 200

    text = "zebra in the message"

    def fail(batch):
        raise ValueError(text)

    monkeypatch.setattr(engine.backend, "fail", fail)
    assert client.post(CHAT, json=secret).status_code == 500
    assert client.post(CHAT, json=secret | {"stream": True}).text.count("engine failed") == 1
    monkeypatch.undo()
    assert client.post(CHAT, json=secret).status_code == 200
    text = client.get("/metrics").text
    assert "zebra" not in caplog.text + text
    assert f"POST {CHAT} 200" in caplog.text
    assert 'smollm3_requests_total{path="/v1/chat/completions",status="200"}' in text
    assert "smollm3_time_to_first_token_seconds_count" in text
    assert "smollm3_decode_tokens_total" in text


def run(coroutine):
    asyncio.run(asyncio.wait_for(coroutine, 10))


def test_the_queue_is_bounded_and_in_order():
    async def scene():
        gate, order = AdmissionQueue(2, 3, 60), []

        async def enter(name, count):
            await gate.enter(count)
            order.append(name)

        await enter("a", 2)
        waiting = [asyncio.create_task(enter(name, n)) for name, n in (("b", 2), ("c", 1))]
        await asyncio.sleep(0)
        assert (gate.running, gate.waiting) == (2, 3)
        with pytest.raises(ApiError) as e:
            await gate.enter(1)
        assert e.value.status == 429
        assert e.value.headers["retry-after"] == "6"
        with pytest.raises(ApiError):
            await gate.enter(3)
        gate.leave(1)
        await asyncio.sleep(0)
        assert order == ["a"]  # c would fit, and waits for b
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        assert order == ["a", "c"]
        gate.leave(2)
        assert (gate.running, gate.waiting) == (0, 0)

    run(scene())


def test_at_the_end_whoever_waits_is_told():
    async def scene():
        gate = AdmissionQueue(1, 3, 60)
        await gate.enter(1)
        waiting = [asyncio.create_task(gate.enter(1)) for _ in range(2)]
        await asyncio.sleep(0)
        gate.refuse_waiting(ApiError(503, "over"))
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert result.status == 503
        assert (gate.running, gate.waiting) == (1, 0)
        gate.leave(1)
        assert gate.running == 0

    run(scene())


def test_nobody_waits_too_long():
    async def scene():
        gate = AdmissionQueue(1, 3, 0.05)
        await gate.enter(1)
        with pytest.raises(ApiError) as e:
            await gate.enter(1)
        assert e.value.status == 429
        assert gate.waiting == 0
        gate.leave(1)
        await gate.enter(1)

    run(scene())


def test_a_full_queue_over_http(tokenizer):
    with speaking(tokenizer, {"hi": "hello"}) as engine:
        settings = Settings(running=1, queue=1, queue_seconds=30)
        with listening(engine, settings) as (url, service):
            engine.backend.gate.clear()
            got = []
            with httpx2.Client(base_url=url, timeout=30) as client:
                post = lambda: got.append(client.post(CHAT, json=BODY))  # noqa: E731
                threads = [threading.Thread(target=post) for _ in range(2)]
                for thread in threads:
                    thread.start()
                while service.admission.waiting < 1:
                    threads[0].join(0.01)
                refused = client.post(CHAT, json=BODY)
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) > 0
                assert refused.json()["error"]["code"] == "queue_full"
                engine.backend.gate.set()
                for thread in threads:
                    thread.join(30)
            assert [response.status_code for response in got] == [200, 200]
            assert service.admission.running == 0


@given(st.text(st.characters() | st.characters(categories=["Cs"]) | st.sampled_from('\\u"d8😀')))
@example("\ud83d\ude00")
@example("\\ud83d")
@example("\ude00\ud83d")
@settings(max_examples=200)
def test_every_text_comes_in_whole(text):
    """Whatever is spelled as escapes or in bytes: only halves of characters are replaced."""
    escaped = json.dumps([text]).encode()
    raw = json.dumps([text], ensure_ascii=False).encode("utf-8", "surrogatepass")
    [paired] = json.loads(escaped)  # two halves in a row are one character
    assert json.loads(whole_text(escaped)) == [re.sub("[\ud800-\udfff]", "�", paired)]
    found = whole_text(raw)
    assert len(found) == len(raw)
    assert json.loads(found) == [re.sub("[\ud800-\udfff]", "�", text)]


@given(st.binary())
@settings(max_examples=200)
def test_other_bytes_are_left_alone(data):
    data = data.replace(b"\xed", b"") + b"\\u00e9\\"
    assert whole_text(data) == data


def test_halves_are_found_in_linear_time():
    for piece in (b"\\ud83d", b"\\n", b"\xed\xa0\xbd", b"\\\\", b"\xed\x9f\xbf", b"a\\u"):
        start = time.process_time()
        whole_text(piece * 500_000 + b"\\u")
        assert time.process_time() - start < 5
