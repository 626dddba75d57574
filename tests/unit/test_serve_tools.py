"""Tools that the server runs: its Python in responses, calls that ask first, whose variables are whose."""

import json
import time

import httpx2
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.support.serving import Settings, events, listening, local, speaking

from smollm3.agent import Agent
from smollm3.agent.sandbox import find_sandbox
from smollm3.cli.serving import read_settings
from smollm3.errors import UserError
from smollm3.serve.run import own_tools
from smollm3.serve.tool_executor import MOST

SCRIPT = {
    "count": "let me see <code>\nx = 6\nx * 7\n</code>",
    "x * 7": "<code>\nx * 7\n</code>",
    "42": "it is 42",
    "burn": '<code>\nerase("a")\n</code>',
    "consent": "I may not",
    "error": "an error",
    "NameError": "it is gone",
    "long": "<code>\nimport time; time.sleep(60)\n</code>",
}
EVENT = TypeAdapter(ResponseStreamEvent)
PYTHON = {"type": "code_interpreter", "container": {"type": "auto"}}
erased = []


def erase(name: str) -> str:
    """Erase something."""
    erased.append(name)
    return f"{name} is erased"


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine:
        yield engine


@pytest.fixture(scope="module")
def agent(engine):
    try:
        find_sandbox()
    except UserError as e:
        pytest.skip(str(e))
    with Agent(engine, python_tools=[erase]) as agent:
        yield agent


@pytest.fixture
def client(engine, agent):
    with local(engine, agent=agent) as client:
        yield client


def ask(client, text="count", **body):
    body = {
        "input": text,
        "tools": [PYTHON],
        "temperature": 0,
        "reasoning": {"effort": "none"},
    } | body
    response = client.post("/v1/responses", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def outputs(response):
    items = (item for item in response["output"] if item["type"] == "code_interpreter_call")
    return [item["outputs"][0]["logs"] for item in items]


def said(response):
    return response["output"][-1]["content"][0]["text"]


class TestResponses:
    def test_code_is_run_and_the_answer_goes_on(self, client):
        response = ask(client)
        Response.model_validate(response)
        assert [item["type"] for item in response["output"]] == [
            "message",
            "code_interpreter_call",
            "message",
        ]
        run = response["output"][1]
        assert (run["code"], run["status"]) == ("x = 6\nx * 7", "completed")
        assert outputs(response) == ["42"]
        assert said(response) == "it is 42"
        assert response["status"] == "completed"
        assert response["tools"] == [PYTHON]

    def test_a_stream_adds_up(self, client):
        body = {"input": "count", "tools": [PYTHON], "temperature": 0, "stream": True}
        told, _ = events(
            client.post("/v1/responses", json=body | {"reasoning": {"effort": "none"}})
        )
        for event in told:
            EVENT.validate_python(event)
        assert [event["sequence_number"] for event in told] == list(range(len(told)))
        kinds = [event["type"] for event in told]
        name = "response.code_interpreter_call"
        order = [f"{name}.in_progress", f"{name}_code.done", f"{name}.interpreting"]
        order += [f"{name}.completed", "response.completed"]
        assert [kind for kind in kinds if kind in order] == order
        done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
        assert done == told[-1]["response"]["output"]
        whole = ask(client)
        drop = lambda item: {k: v for k, v in item.items() if k not in ("id", "container_id")}  # noqa: E731
        assert [drop(i) for i in done] == [drop(i) for i in whole["output"]]
        assert told[-1]["response"]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]

    def test_variables_are_those_of_the_conversation(self, client):
        first = ask(client)
        later = ask(client, "x * 7", previous_response_id=first["id"])
        assert outputs(later) == ["42"]
        assert later["output"][0]["container_id"] == first["output"][1]["container_id"]
        assert "NameError" in outputs(ask(client, "x * 7"))[0]
        named = PYTHON | {"container": "mine"}
        ask(client, tools=[named])
        assert outputs(ask(client, "x * 7", tools=[named])) == ["42"]

    def test_what_is_not_kept_lives_for_the_request(self, client, agent):
        before = len(agent.interpreters)
        assert outputs(ask(client, store=False)) == ["42"]
        deadline = time.monotonic() + 60
        while len(agent.interpreters) > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_nothing_is_replayed(self, client, agent, engine, monkeypatch):
        first = ask(client)
        with monkeypatch.context() as patch:
            patch.setattr(agent.interpreters, "_idle", 0.0)
            agent.interpreters._sweep()
        later = ask(client, "x * 7", previous_response_id=first["id"])
        [text] = outputs(later)
        assert text.startswith("(The interpreter is a new one")
        assert "NameError" in text

    def test_keys_do_not_share(self, engine, agent):
        keys = ["a" * 20, "b" * 20]
        with local(engine, keys=keys, agent=agent) as client:
            named = {"tools": [PYTHON | {"container": "one"}], "temperature": 0}
            named["reasoning"] = {"effort": "none"}
            for key, text in ((keys[0], "count"), (keys[1], "x * 7")):
                response = client.post(
                    "/v1/responses", json=named | {"input": text}, headers={"x-api-key": key}
                )
            assert "NameError" in outputs(response.json())[0]

    def test_nobody_is_asked_so_nothing_is_changed(self, client):
        erased.clear()
        [text] = outputs(ask(client, "burn"))
        assert "needs a person's consent" in text
        assert erased == []

    def test_a_functions_call_is_the_clients(self, client):
        tool = {"type": "function", "name": "python", "parameters": {"type": "object"}}
        body = {"input": "x", "tools": [PYTHON, tool]}
        response = client.post("/v1/responses", json=body)
        assert response.status_code == 400
        assert "python" in response.json()["error"]["message"]

    def test_it_ends_without_another_call(self, client, monkeypatch):
        monkeypatch.setattr("smollm3.turn.loop.MAX_STEPS", 3)
        response = ask(client, "x * 7", store=False, max_output_tokens=400)
        assert len(outputs(response)) <= 2
        assert response["output"][-1]["type"] == "message"

    def test_tokens_count_together(self, client, engine):
        whole = ask(client)["usage"]["output_tokens"]
        texts = (SCRIPT["count"], SCRIPT["42"])
        assert whole == sum(len(engine.tokenizer.encode_markup(text)) + 1 for text in texts)
        cut = ask(client, max_output_tokens=whole - 3)
        assert cut["status"] == "incomplete"
        assert cut["usage"]["output_tokens"] == whole - 3

    def test_items_are_sent_back(self, client):
        first = ask(client, store=False)
        given = [{"role": "user", "content": "count"}, *first["output"]]
        later = ask(client, [*given, {"role": "user", "content": "more"}], store=False)
        assert later["status"] in ("completed", "incomplete")

    def test_without_python_it_is_refused(self, engine):
        with local(engine) as client:
            response = client.post("/v1/responses", json={"input": "x", "tools": [PYTHON]})
        assert response.status_code == 400
        assert "--python-tools" in response.json()["error"]["message"]


def call(client, name="python", stream=False, conversation=None, **arguments):
    body = {"name": name, "arguments": arguments, "stream": stream}
    return client.post(
        "/v1/tools/call", json=body | ({"conversation": conversation} if conversation else {})
    )


class TestCalls:
    def test_what_there_is(self, client, engine):
        told = client.get("/v1/tools").json()
        assert told["data"] == []
        assert told["python"]["asks"] == ["erase"]
        assert told["python"]["functions"][0]["name"] == "erase"
        with Agent(engine, [erase]) as agent, local(engine, agent=agent) as other:
            [tool] = other.get("/v1/tools").json()["data"]
            assert (tool["function"]["name"], tool["read_only"]) == ("erase", False)
        with local(engine) as none:
            assert none.get("/v1/tools").json() == {"object": "list", "data": [], "python": None}
            assert call(none, code="1").status_code == 400

    def test_variables_live_with_their_conversation(self, client):
        assert call(client, conversation="c", code="y = 1").json()["ok"]
        assert call(client, conversation="c", code="y").json()["content"] == "1"
        assert "NameError" in call(client, conversation="d", code="y").json()["content"]
        assert call(client, code="z = 1").json()["ok"]
        assert not call(client, code="z").json()["ok"]

    def test_what_is_not_read_only_is_refused_where_nobody_is_asked(self, client):
        erased.clear()
        told = call(client, code='erase("x")').json()
        assert not told["ok"]
        assert "consent" in told["content"]
        assert erased == []

    @pytest.mark.parametrize("allow", [True, False])
    def test_it_waits_for_the_answer(self, engine, agent, allow):
        erased.clear()
        body = {"name": "python", "arguments": {"code": 'erase("b")'}, "stream": True}
        with listening(engine, agent=agent) as (url, _), httpx2.Client(base_url=url) as client:
            told = []
            with client.stream("POST", "/v1/tools/call", json=body) as response:
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    told.append(json.loads(line[6:]))
                    if told[-1]["type"] == "question":
                        assert erased == []
                        answer = {"id": told[-1]["id"], "allow": allow}
                        assert client.post("/v1/tools/answer", json=answer).status_code == 200
                        assert client.post("/v1/tools/answer", json=answer).status_code == 404
            assert [event["type"] for event in told] == ["question", "result"]
            assert (told[0]["name"], told[0]["arguments"]) == ("erase", {"name": "b"})
            assert told[0]["from_code"]
            assert told[1]["ok"] is allow
            assert erased == (["b"] if allow else [])

    def test_who_leaves_has_said_no(self, engine, agent):
        erased.clear()
        body = {"name": "python", "arguments": {"code": 'erase("b")'}, "stream": True}
        with (
            listening(engine, agent=agent) as (url, service),
            httpx2.Client(base_url=url) as client,
        ):
            with client.stream("POST", "/v1/tools/call", json=body) as response:
                next(response.iter_lines())
            deadline = time.monotonic() + 60
            while service.tools._running:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert erased == []

    def test_a_question_is_its_own_keys(self, engine, agent):
        erased.clear()
        mine, other = ({"x-api-key": key * 20} for key in "ab")
        body = {"name": "python", "arguments": {"code": 'erase("b")'}, "stream": True}
        with (
            listening(engine, keys=["a" * 20, "b" * 20], agent=agent) as (url, _),
            httpx2.Client(base_url=url) as client,
            client.stream("POST", "/v1/tools/call", json=body, headers=mine) as response,
        ):
            line = next(line for line in response.iter_lines() if line.startswith("data: {"))
            answer = {"id": json.loads(line[6:])["id"], "allow": True}
            denied = client.post("/v1/tools/answer", json=answer, headers=other)
            assert denied.status_code == 404
        assert erased == []

    def test_only_so_many_at_once(self, client):
        host = client.service.tools
        host._running = MOST
        assert call(client, code="1").status_code == 429
        host._running = 0

    def test_tools_of_its_own(self, engine):
        with Agent(engine, [erase]) as agent, local(engine, agent=agent) as client:
            told = call(client, "erase", stream=False, name_="x").json()
            assert not told["ok"]
            assert "there is no tool" in call(client, "other").json()["content"]


ATTACKS = [
    ({"host": "evil.example"}, "application/json", 403),
    ({"origin": "https://evil.example"}, "application/json", 403),
    ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, "application/json", 403),
    ({}, "application/x-www-form-urlencoded", 415),
    ({}, "text/plain", 415),
]


@pytest.mark.parametrize(("headers", "kind", "status"), ATTACKS)
@pytest.mark.parametrize("path", ["/v1/tools/call", "/v1/tools/answer", "/v1/responses"])
def test_no_web_page_reaches_the_tools(client, path, headers, kind, status, agent):
    before = len(agent.interpreters)
    body = json.dumps({"name": "python", "arguments": {"code": "1"}, "conversation": "evil"})
    response = client.post(path, content=body, headers={"content-type": kind, **headers})
    assert response.status_code == status
    assert len(agent.interpreters) == before


def test_from_the_settings(tmp_path, engine, monkeypatch):
    (tmp_path / "mine.py").write_text("def hello() -> str:\n    'Greets.'\n    return 'hi'\n")
    target = f"{tmp_path / 'mine.py'}:hello"
    with own_tools(Settings())(engine) as none:
        assert none is None
    with own_tools(Settings(tools=(target,)))(engine) as agent:
        assert list(agent.tools) == ["hello"]
        assert agent.sandbox is None
    config = tmp_path / "serve.yaml"
    config.write_text(f"tools: [{target}]\npython_tools: true\n")
    find_sandbox()
    with own_tools(read_settings(config, {}))(engine) as agent:
        assert list(agent.functions) == ["hello"]
    with pytest.raises(UserError, match="there is no file"):
        own_tools(Settings(tools=("none.py:f",)))
