"""Ollama's API: streams of lines add up to the whole answer, and what was sent can be sent back."""

import json

import pytest
from tests.support.serving import Settings, local, speaking

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SCRIPT = {
    "greet": "<think>\nwho is it\n</think>\nhello there, été 日本",
    "call": f"<think>\na sum\n</think>\nwait\n{CALL}",
    "result: 3": "it is three",
    "count": "one two three four five",
    "json": '{"a": 12}',
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}  # fmt: skip
COLD = {"options": {"temperature": 0}}


@pytest.fixture(scope="module")
def client(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine, local(engine) as client:
        yield client


def post(client, path, status=200, **body):
    response = client.post(path, json={"model": "tiny"} | body)
    assert response.status_code == status, response.text
    return response.json()


def lines(client, path, **body):
    response = client.post(path, json={"model": "tiny"} | body)
    assert response.headers["content-type"].startswith("application/x-ndjson")
    told = [json.loads(line) for line in response.text.splitlines()]
    assert [one["done"] for one in told] == [False] * (len(told) - 1) + [True]
    return told


def chat(words, **fields):
    return {"messages": [{"role": "user", "content": words}], **COLD, **fields}


TIMES = {"created_at", "total_duration", "prompt_eval_duration", "eval_duration"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", chat("greet")),
        ("/api/chat", chat("greet", think=False)),
        ("/api/chat", chat("greet", think="low", logprobs=True, top_logprobs=2)),
        ("/api/chat", chat("call", tools=[TOOL])),
        ("/api/chat", chat("count", options={"temperature": 0, "num_predict": 3})),
        ("/api/chat", chat("count", options={"temperature": 0, "stop": ["three"]})),
        ("/api/chat", chat("json", format="json", think=False)),
        ("/api/generate", {"prompt": "greet", **COLD}),
        ("/api/generate", {"prompt": "greet", "system": "Be kind.", **COLD}),
        ("/api/generate", {"prompt": "count", "raw": True, **COLD}),
    ],
)
def test_a_stream_adds_up(client, path, body):
    whole, parts = post(client, path, stream=False, **body), lines(client, path, **body)
    assert whole["done"]
    assert {
        k: v for k, v in parts[-1].items() if k not in TIMES | {"message", "response", "logprobs"}
    } == {
        k: v
        for k, v in whole.items()
        if k not in TIMES | {"message", "response", "thinking", "logprobs"}
    }
    both = [one.get("message", one) for one in (whole, *parts)]
    for key in ("content", "response", "thinking"):
        assert both[0].get(key, "") == "".join(one.get(key, "") for one in both[1:])
    calls = [call for one in both[1:] for call in one.get("tool_calls", ())]
    assert both[0].get("tool_calls", []) == calls
    assert whole.get("logprobs", []) == [row for one in parts for row in one.get("logprobs", ())]
    assert all(whole[key] >= 0 for key in TIMES - {"created_at"})


def test_answers(client):
    told = post(client, "/api/chat", stream=False, **chat("greet"))
    assert told["message"] == {
        "role": "assistant",
        "content": "hello there, été 日本",
        "thinking": "who is it",
    }
    assert told["done_reason"] == "stop"
    assert told["eval_count"] > 0 < told["prompt_eval_count"]
    cut = post(client, "/api/chat", stream=False, **chat("count", options={"num_predict": 2}))
    assert cut["done_reason"] == "length"
    schema = {
        "type": "object",
        "properties": {"a": {"const": 7}},
        "required": ["a"],
        "additionalProperties": False,
    }
    formed = post(client, "/api/chat", stream=False, **chat("greet", format=schema, think=False))
    assert json.loads(formed["message"]["content"]) == {"a": 7}


def test_what_was_sent_can_be_sent_back(client):
    asked = chat("call", tools=[TOOL], stream=False)
    message = post(client, "/api/chat", **asked)["message"]
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "add", "arguments": {"a": 1, "b": 2}}
    result = {"role": "tool", "tool_name": "add", "content": "result: 3"}
    history = [*asked["messages"], message, result]
    again = post(client, "/api/chat", **asked | {"messages": history})
    assert again["message"]["content"] == "it is three"
    lost = [*asked["messages"], {"role": "tool", "content": "result: 3"}]
    post(client, "/api/chat", **asked | {"messages": lost})


def test_a_model_that_is_only_named(client):
    assert post(client, "/api/chat", messages=[])["done_reason"] == "load"
    assert post(client, "/api/generate")["done_reason"] == "load"
    assert post(client, "/api/generate", keep_alive=0, prompt="")["response"] == ""


def test_names(client):
    for name in ("tiny", "tiny:latest"):
        assert post(client, "/api/chat", **chat("count", stream=False), model=name)["model"] == name
    error = post(client, "/api/chat", status=404, **chat("x"), model="other:latest")["error"]
    assert "'other'" in error


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (chat("x", options={"mirostat": 2}), "options.mirostat"),
        (chat("x", options={"nonsense": 2}), "options.nonsense"),
        (chat("x", format="yaml"), "format"),
        (chat("x", top_logprobs=2), "logprobs"),
        ({"messages": [{"role": "user", "content": "x", "images": ["QUJD"]}]}, "images"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "role"),
    ],
)
def test_what_is_not_supported_is_said(client, body, said):
    error = post(client, "/api/chat", status=400, **body)["error"]
    assert said in error


def test_only_texts_with_a_template_have_a_system_message(client):
    assert (
        "raw"
        in post(client, "/api/generate", status=400, prompt="x", raw=True, system="y")["error"]
    )


def test_embeddings(client):
    told = post(client, "/api/embed", input=["the model", "é"], dimensions=4)
    assert [len(vector) for vector in told["embeddings"]] == [4, 4]
    one = post(client, "/api/embed", input="the model")["embeddings"][0]
    assert post(client, "/api/embeddings", prompt="the model")["embedding"] == one
    assert post(client, "/v1/embeddings", input="the model")["data"][0]["embedding"] == one


def test_the_model_is_listed(client):
    [model] = client.get("/api/tags").json()["models"]
    assert model["name"] == "tiny:latest"
    [running] = client.get("/api/ps").json()["models"]
    assert running["digest"] == model["digest"]
    shown = post(client, "/api/show", model="tiny:latest")
    assert shown["capabilities"] == ["completion", "embedding", "tools", "thinking"]
    assert shown["model_info"]["smollm3.context_length"] == 2048
    assert post(client, "/api/show", name="tiny", model=None)["details"]["family"] == "smollm3"
    assert client.get("/api/version").json()["version"].count(".") == 2


def test_a_late_answer_is_told_as_a_line(tokenizer):
    with (
        speaking(tokenizer, SCRIPT) as engine,
        local(engine, Settings(request_seconds=0.001)) as client,
    ):
        engine.backend.gate.clear()
        response = client.post("/api/chat", json={"model": "tiny"} | chat("count"))
        engine.backend.gate.set()
        assert "took longer" in json.loads(response.text.splitlines()[-1])["error"]
