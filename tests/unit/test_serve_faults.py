"""What goes wrong on the way is told in each dialect's words; streams say that they live."""

import threading

import httpx2
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from tests.support.serving import Settings, events, listening, local, speaking

from smollm3.errors import UserError
from smollm3.serve import answering as told_by
from smollm3.serve import page

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "ignore_eos": True}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hi", "max_tokens": 60, "ignore_eos": True},
    "/v1/responses": {"input": "hi", "max_output_tokens": 60},
    "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 60},
}
DIALECTS = pytest.mark.parametrize("path", REQUESTS)


@pytest.fixture
def engine(tokenizer):
    with speaking(tokenizer, {"hi": "one two three " * 50}) as engine:
        yield engine
        engine.backend.gate.set()


def message(path, data):
    """The error's message of an event or body."""
    if path == "/v1/responses" and "response" in data:
        assert data["type"] == "response.failed"
        assert data["response"]["status"] == "failed"
        return data["response"]["error"]["message"]
    if path == "/v1/messages":
        assert data["type"] == "error"
    return data["error"]["message"]


def fail_after(engine, steps, error):
    """The model fails once it has run so often."""
    left = [steps]

    def fail(batch):
        left[0] -= 1
        if left[0] < 0:
            raise error

    engine.backend.fail = fail


@DIALECTS
def test_a_fault_of_the_engine(engine, path):
    body = REQUESTS[path]
    with local(engine) as client:
        fail_after(engine, 1, ValueError("secret"))
        response = client.post(path, json=body)
        assert response.status_code == 500
        assert "secret" not in response.text
        message(path, response.json())
        fail_after(engine, 4, ValueError("secret"))
        response = client.post(path, json=body | {"stream": True})
        assert response.status_code == 200
        found, done = events(response)
        assert not done
        assert len(found) > 2
        assert message(path, found[-1]) == "the engine failed on this request"
        assert "secret" not in response.text
        fail_after(engine, 10**9, None)
        assert client.post(path, json=body).status_code == 200
        assert client.service.admission.running == 0


@DIALECTS
def test_what_turns_out_too_much_on_the_way(engine, path):
    with local(engine) as client:
        fail_after(engine, 0, UserError("does not fit"))
        response = client.post(path, json=REQUESTS[path])
        assert response.status_code == 400
        assert message(path, response.json()) == "does not fit"


@DIALECTS
def test_an_answer_that_takes_too_long(engine, path):
    """The engine goes on only after the reply: how busy the machine is decides nothing."""
    with local(engine, Settings(request_seconds=0.05)) as client:
        engine.backend.gate.clear()
        try:
            response = client.post(path, json=REQUESTS[path])
            assert response.status_code == 504
            assert "longer than 0.05 s" in message(path, response.json())
            found, _ = events(client.post(path, json=REQUESTS[path] | {"stream": True}))
            assert "longer than 0.05 s" in message(path, found[-1])
        finally:
            engine.backend.gate.set()


@DIALECTS
def test_a_quiet_stream_says_that_it_lives(engine, path, monkeypatch):
    """The engine goes on only when the client has read the sign of life."""
    monkeypatch.setattr(told_by, "QUIET_SECONDS", 0.02)
    body = REQUESTS[path] | {"stream": True}
    with listening(engine) as (url, _), httpx2.Client(base_url=url, timeout=60) as client:
        engine.backend.gate.clear()
        try:
            with client.stream("POST", path, json=body) as response:
                lines = response.iter_lines()
                assert next(lines) == ": working"
                engine.backend.gate.set()
                assert any(line.startswith("data: ") for line in lines)
        finally:
            engine.backend.gate.set()


@DIALECTS
def test_at_the_end_nothing_new_is_begun(engine, path):
    with local(engine) as client:
        assert client.get("/ready").status_code == 200
        client.service.drain()
        response = client.post(path, json=REQUESTS[path])
        assert response.status_code == 503
        assert "shutting down" in message(path, response.json())
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


@DIALECTS
def test_what_runs_at_the_end_is_told(engine, path):
    with listening(engine) as (url, service), httpx2.Client(base_url=url, timeout=20) as client:
        engine.backend.gate.clear()
        got = []
        body = REQUESTS[path] | {"stream": True}
        thread = threading.Thread(target=lambda: got.append(client.post(path, json=body)))
        thread.start()
        while not service._live:
            thread.join(0.01)
        loop = next(iter(service._live))._tasks[0].get_loop()
        loop.call_soon_threadsafe(service.end_all)
        thread.join(20)
        engine.backend.gate.set()
        found, _ = events(got[0])
        assert "shutting down" in message(path, found[-1])


def test_websockets_are_refused(engine):
    with (
        local(engine) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/x"),
    ):
        pass


PYTHON = "<think>\na\n</think>\nlook\n<code>\nadd(1, 2)\n</code>"


def test_python_as_a_call(tokenizer):
    tool = {"name": "add", "parameters": {"type": "object", "properties": {}}}
    for kind, script in (("python_tools", PYTHON), ("xml_tools", "plain")):
        with speaking(tokenizer, {"hi": script}) as engine, local(engine) as client:
            asked = CHAT | {
                "temperature": 0,
                "chat_template_kwargs": {kind: [tool]},
                "ignore_eos": False,
            }
            response = client.post("/v1/chat/completions", json=asked)
            assert response.status_code == 200, response.text
            choice = response.json()["choices"][0]
            if kind == "python_tools":
                [call] = choice["message"]["tool_calls"]
                assert call["function"] == {"name": "python", "arguments": '{"code": "add(1, 2)"}'}
                assert choice["finish_reason"] == "tool_calls"
            asked["chat_template_kwargs"] = {"xml_tools": [{"no": "name"}]}
            assert client.post("/v1/chat/completions", json=asked).status_code == 400


def test_the_page_of_the_api_names_every_field(engine):
    with local(engine) as client:
        text = client.get("/docs").text
        assert "<script" not in text
        for name in ("messages", "reasoning_effort", "stop_sequences", "previous_response_id"):
            assert f"<code>{name}</code>" in text


def test_without_a_chat_page_the_root_says_so(engine, monkeypatch, tmp_path):
    def at(folder):
        app = FastAPI(docs_url=None)
        page.add(app, folder)
        return TestClient(app)

    shown = at(tmp_path)
    assert "/docs" in shown.get("/").text
    assert "no chat page in this installation" in shown.get("/").text
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<p>the page")  # made while the server runs
    (tmp_path / "assets" / "app.js").write_text("1")
    assert shown.get("/").text == "<p>the page"
    assert shown.get("/assets/app.js").text == "1"
    assert shown.get("/assets/../../settings.py").status_code == 404


def test_the_command_that_makes_the_page_is_named(tmp_path):
    (checkout := tmp_path / "my code" / "ui").mkdir(parents=True)
    (checkout / "page.py").touch()
    command = f"make -C '{tmp_path}/my code' ui"
    assert page.how_to_get(tmp_path, checkout.parent).endswith(command)
    assert "pip install" in page.how_to_get(tmp_path, tmp_path)
    (tmp_path / "index.html").touch()
    assert page.how_to_get(tmp_path, tmp_path) == ""
