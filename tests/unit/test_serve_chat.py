"""Chats over HTTP: streams add up to whole answers, reasoning and calls come apart from content."""

import json

import pytest
from tests.support.serving import Settings, added_up, events, local, plain, speaking

from smollm3.errors import UserError
from smollm3.infer import Json, SamplingParams
from smollm3.infer.errors import BrokenAnswer

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "add", "arguments": {"a": 3, "b": 4}}\n</tool_call>'
SCRIPT = {
    "greet": "<think>\nwho is it\n</think>\nhello there, été 日本",
    "call": f"<think>\na sum\n</think>\nwait\n{CALL}\n{OTHER}",
    "json": '{"a": 12}',
    "count": "one two three four five",
    "numbers": "[1, 2]",
    "twice": "[1, 1]",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


@pytest.fixture(scope="module")
def client(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine, local(engine) as client:
        yield client


def ask(words, **fields):
    fields.setdefault("temperature", 0)
    return {"messages": [{"role": "user", "content": words}], **fields}


def whole(client, words, **fields):
    response = client.post("/v1/chat/completions", json=ask(words, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client, words, **fields):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post("/v1/chat/completions", json=ask(words, **fields) | options)
    assert response.status_code == 200, response.text
    chunks, done = events(response)
    assert done
    assert len({chunk["id"] for chunk in chunks}) == 1
    return chunks


def test_reasoning_apart_from_content(client):
    answer = whole(client, "greet")
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "who is it"
    assert message["content"] == "hello there, été 日本"
    assert answer["choices"][0]["finish_reason"] == "stop"
    used = answer["usage"]
    assert 0 < used["completion_tokens_details"]["reasoning_tokens"] < used["completion_tokens"]


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        ("greet", {}),
        ("greet", {"n": 2, "logprobs": True, "top_logprobs": 2}),
        ("call", {"tools": [TOOL]}),
        ("call", {"tools": [TOOL], "parallel_tool_calls": False}),
        ("call", {"tools": [TOOL], "tool_choice": "none", "max_tokens": 20, "seed": 3}),
        ("count", {"stop": ["three"]}),
        ("count", {"max_tokens": 3}),
        ("json", {"response_format": {"type": "json_object"}, "reasoning_effort": "none"}),
    ],
)
def test_a_stream_adds_up(client, words, fields):
    answer, chunks = whole(client, words, **fields), streamed(client, words, **fields)
    found = added_up(chunks)
    assert len(found) == len(answer["choices"])
    for choice, one in zip(answer["choices"], found, strict=True):
        assert plain(choice["message"]) == {k: v for k, v in one["message"].items() if v}
        assert choice["finish_reason"] == one["finish_reason"]
        told = choice["logprobs"]["content"] if choice["logprobs"] else []
        assert told == one["logprobs"]
    assert chunks[-1]["usage"]["completion_tokens"] == answer["usage"]["completion_tokens"]


def test_calls(client):
    choice = whole(client, "call", tools=[TOOL])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "wait"
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [json.loads(call["arguments"]) for call in calls] == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    one = whole(client, "call", tools=[TOOL], parallel_tool_calls=False)["choices"][0]
    assert len(one["message"]["tool_calls"]) == 1


UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


def formed(words, schema=UNIQUE, **fields):
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    return ask(words, response_format=form, reasoning_effort="none", **fields)


def test_what_is_not_enforced_is_said_and_checked(client):
    """Before it is written in a header; where it turns out wrong, at the end."""
    good = client.post("/v1/chat/completions", json=formed("numbers"))
    assert good.json()["choices"][0]["message"]["content"] == "[1, 2]"
    assert (
        good.headers["warning"] == '299 smollm3 "schema: uniqueItems is not enforced while writing"'
    )
    bad = client.post("/v1/chat/completions", json=formed("twice"))
    assert bad.status_code == 422
    error = bad.json()["error"]
    assert error["code"] == "answer_breaks_schema"
    assert "unique" in error["message"]
    streamed = client.post("/v1/chat/completions", json=formed("twice", stream=True))
    assert streamed.headers["warning"] == bad.headers["warning"]
    assert events(streamed)[0][-1]["error"] == error
    cut = client.post("/v1/chat/completions", json=formed("twice", max_tokens=2))
    assert cut.json()["choices"][0]["finish_reason"] == "length"
    plain = client.post("/v1/chat/completions", json=formed("json", {"type": "object"}))
    assert "warning" not in plain.headers


def test_outside_the_server_it_is_an_error_too(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine:
        asked = {"enable_thinking": False, "constraint": Json(UNIQUE)}
        params = SamplingParams(temperature=0)
        with pytest.raises(BrokenAnswer, match="unique"):
            engine.chat(ask("twice")["messages"], params=params, **asked)
        assert engine.chat(ask("numbers")["messages"], params=params, **asked).content == "[1, 2]"


def test_a_tool_that_cannot_be_supported(client):
    bad = {
        "type": "function",
        "function": {
            "name": "bad",
            "parameters": {"type": "object", "properties": {"a": {"type": "nonsense"}}},
        },
    }
    told = client.post("/v1/chat/completions", json=ask("call", tools=[TOOL, bad]))
    assert told.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert "tools: bad: parameters" in told.headers["warning"]
    named = {"type": "function", "function": {"name": "bad"}}
    assert (
        client.post(
            "/v1/chat/completions", json=ask("call", tools=[TOOL, bad], tool_choice=named)
        ).status_code
        == 400
    )
    named["function"] = {"name": "add"}
    assert (
        client.post(
            "/v1/chat/completions", json=ask("call", tools=[TOOL, bad], tool_choice=named)
        ).status_code
        == 200
    )


def test_stop_texts_end_content_only(client):
    answer = whole(client, "count", stop=["three"])["choices"][0]
    assert answer["message"]["content"] == "one two "
    assert answer["finish_reason"] == "stop"
    thinking = whole(client, "greet", stop=["who"])["choices"][0]
    assert thinking["message"]["reasoning_content"] == "who is it"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"frobnicate": 1}, "frobnicate"),
        ({"temperature": 9}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 99}, "n"),
        ({"stop": ["x"] * 99}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"template": "x"}}, "chat_template_kwargs.template"),
        ({"reasoning_effort": "none", "thinking_budget": 3}, "thinking_budget"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_wrong_is_said(client, fields, param):
    response = client.post("/v1/chat/completions", json=ask("greet", **fields))
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


def test_deep_and_large_schemas_are_refused(client):
    deep = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"a": deep}}
    for schema in (deep, {"enum": ["x" * 70_000]}):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        response = client.post("/v1/chat/completions", json=ask("x", response_format=wanted))
        assert response.status_code == 400


def test_a_seed_gives_one_answer(client):
    one, two, other = (
        whole(client, "noise", temperature=1, seed=seed, max_tokens=12)["choices"][0]["message"]
        for seed in (1, 1, 2)
    )
    assert one == two != other


def test_models_and_tokens(client):
    models = client.get("/v1/models").json()["data"]
    assert models[0]["id"] == "tiny"
    assert client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert client.get("/v1/models/other").status_code == 404
    text = "the model été"
    ids = client.post("/tokenize", json={"prompt": text, "add_special": False}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": ids}).json()["prompt"] == text
    chat = client.post("/tokenize", json={"messages": ask("x")["messages"]}).json()
    assert chat["count"] == whole(client, "x", max_tokens=1)["usage"]["prompt_tokens"]
    assert client.post("/tokenize", json={}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [99_999]}).status_code == 400


def test_an_alias_is_answered_under_its_name(tokenizer):
    settings = Settings(aliases=("gpt-*",), name="mine")
    with speaking(tokenizer, SCRIPT) as engine, local(engine, settings) as client:
        assert whole(client, "count", model="gpt-9")["model"] == "gpt-9"
        assert whole(client, "count", model="mine")["model"] == "mine"
        response = client.post("/v1/chat/completions", json=ask("count", model="other"))
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"


def test_the_glass_box_tells_every_token(client):
    answer = whole(client, "count", glass_box=True, reasoning_effort="none")
    tokens = answer["choices"][0]["tokens"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
    assert len(answer["prompt_tokens_detail"]) == answer["usage"]["prompt_tokens"]
    assert "".join(t["text"] for t in tokens).startswith("one two three")
    assert all(len(t["top"]) == 5 for t in tokens)
    chunks = streamed(client, "count", glass_box=True, reasoning_effort="none")
    assert [t["id"] for c in chunks for t in c.get("tokens", ())] == [t["id"] for t in tokens]


def test_one_call_only_where_no_grammar_sees_to_it(client, monkeypatch):
    def unsupported(*_):
        raise UserError("tools: no grammar")

    monkeypatch.setattr("smollm3.infer.constrain.masks.Constraints._compiled", unsupported)
    both = whole(client, "call", tools=[TOOL])["choices"][0]["message"]["tool_calls"]
    assert len(both) == 2
    choice = whole(client, "call", tools=[TOOL], parallel_tool_calls=False)["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


def test_a_prompt_is_counted_once(client):
    one, two = (whole(client, "count", n=n)["usage"] for n in (1, 2))
    assert two["prompt_tokens"] == one["prompt_tokens"]
    assert two["completion_tokens"] == 2 * one["completion_tokens"]
