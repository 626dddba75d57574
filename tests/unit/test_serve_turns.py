"""A second turn: the dialects send the same conversation, and the engine reads the same prompt."""

import pytest
from tests.support.serving import Settings, events, local, noted_prompts, speaking

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SCRIPT = {
    "sum": f"<think>\nplus\n</think>\nwait\n{CALL}",
    "3": "it is 3",
    "more": "all of it",
    "go": " one two three",
}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
FUNCTION = {"name": "add", "description": "Adds.", "parameters": ADD}


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine:
        yield engine


@pytest.fixture
def client(engine):
    with local(engine) as client:
        yield client


@pytest.fixture
def prompts(engine, monkeypatch):
    return noted_prompts(engine, monkeypatch)


def post(client, path, **body):
    response = client.post(path, json={"temperature": 0, **body})
    assert response.status_code == 200, response.text
    return response.json()


def chat_turns(client):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "sum"}]
    options = {"tools": [{"type": "function", "function": FUNCTION}], "reasoning_effort": "high"}
    message = post(client, "/v1/chat/completions", messages=messages, **options)["choices"][0][
        "message"
    ]
    [call] = message["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "3"}
    answer = post(client, "/v1/chat/completions", messages=[*messages, message, result], **options)
    return answer["choices"][0]["message"]["content"]


def responses_turns(client, previous=False):
    options = {
        "instructions": "Be brief.",
        "tools": [{"type": "function", **FUNCTION}],
        "reasoning": {"effort": "high"},
    }
    first = post(client, "/v1/responses", input="sum", **options)
    call = first["output"][-1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
    if previous:
        options["previous_response_id"] = first["id"]
        given = [result]
    else:
        given = [{"role": "user", "content": "sum"}, *first["output"], result]
    return post(client, "/v1/responses", input=given, **options)["output"][-1]["content"][0]["text"]


def messages_turns(client):
    options = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "tools": [{"name": "add", "description": "Adds.", "input_schema": ADD}],
        "thinking": {"type": "adaptive"},
        "max_tokens": 200,
    }
    messages = [{"role": "user", "content": "sum"}]
    first = post(client, "/v1/messages", messages=messages, **options)
    call = first["content"][-1]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "3"}
    messages += [
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    counted = {k: v for k, v in options.items() if k != "max_tokens"}
    count = post_count(client, messages=messages, **counted)
    answer = post(client, "/v1/messages", messages=messages, **options)
    used = answer["usage"]
    assert used["input_tokens"] + used["cache_read_input_tokens"] == count
    return answer["content"][-1]["text"]


def post_count(client, **body):
    response = client.post("/v1/messages/count_tokens", json=body)
    assert response.status_code == 200, response.text
    return response.json()["input_tokens"]


def test_the_second_prompt_is_the_same(client, prompts):
    for turns in (chat_turns, responses_turns, lambda c: responses_turns(c, True), messages_turns):
        assert turns(client) == "it is 3"
    assert len(prompts) == 8
    assert len(set(prompts[::2])) == 1
    assert len(set(prompts[1::2])) == 1, prompts[1::2]
    assert "plus" in prompts[1]
    assert '{"name": "add", "arguments": {"a": 1, "b": 2}}' in prompts[1]


def test_responses_are_kept(client, engine):
    first = post(client, "/v1/responses", input="more")
    kept = client.get(f"/v1/responses/{first['id']}")
    assert kept.json() == first
    streamed = client.post("/v1/responses", json={"input": "more", "stream": True})
    last = events(streamed)[0][-1]["response"]
    assert client.get(f"/v1/responses/{last['id']}").json() == last
    assert client.delete(f"/v1/responses/{first['id']}").json()["deleted"]
    gone = client.get(f"/v1/responses/{first['id']}")
    assert gone.status_code == 404
    later = {"input": "x", "previous_response_id": first["id"]}
    assert client.post("/v1/responses", json=later).status_code == 404
    unkept = post(client, "/v1/responses", input="more", store=False)
    assert client.get(f"/v1/responses/{unkept['id']}").status_code == 404


def test_only_so_many_are_kept_and_each_for_its_key(engine):
    keys = ["a" * 20, "b" * 20]
    settings = Settings(stored_responses=2)
    with local(engine, settings, keys) as client:
        first, second = ({"x-api-key": key} for key in keys)
        made = [
            client.post("/v1/responses", json={"input": "more"}, headers=first).json()["id"]
            for _ in range(3)
        ]
        found = [client.get(f"/v1/responses/{id}", headers=first).status_code for id in made]
        assert found == [404, 200, 200]
        assert client.get(f"/v1/responses/{made[2]}", headers=second).status_code == 404
        assert client.delete(f"/v1/responses/{made[2]}", headers=second).status_code == 404
    with local(engine, Settings(stored_bytes=10)) as client:
        id = post(client, "/v1/responses", input="more")["id"]
        assert client.get(f"/v1/responses/{id}").status_code == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"input": []}, "input"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "top_logprobs": 2}, "top_logprobs"),
        ("/v1/responses", {"input": "x", "include": ["everything"]}, "include.0"),
        (
            "/v1/responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        (
            "/v1/messages",
            {"messages": [{"role": "assistant", "content": "x"}], "max_tokens": 1},
            None,
        ),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}]}, None),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "container": "x"},
            None,
        ),
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 1,
                "thinking": {"type": "enabled"},
            },
            None,
        ),
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 1,
                "tool_choice": {"type": "tool"},
            },
            None,
        ),
        (
            "/v1/messages",
            {
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 1,
                "tool_choice": {"type": "any"},
            },
            None,
        ),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": ""}, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"prompt": [[1], [2]], "glass_box": True}, "glass_box"),
        ("/v1/completions", {"prompt": [9999]}, None),
        ("/v1/completions", {"prompt": "x", "n": 16, "logprobs": 99}, "top_logprobs"),
        ("/v1/completions", {"prompt": ["x"] * 65}, "n"),
    ],
)
def test_what_is_not_supported_is_said(client, path, body, param):
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"]
    if param:
        assert error["param"] == param, error


def test_an_error_of_a_tool_is_told(client, prompts):
    use = {"type": "tool_use", "id": "1", "name": "add", "input": {}}
    result = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": "no such file",
        "is_error": True,
    }
    text = {"type": "text", "text": "what now?"}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, text, text]},
    ]
    post(client, "/v1/messages", messages=messages, max_tokens=1)
    assert "Error: no such file" in prompts[-1]
    assert "what now?\nwhat now?" in prompts[-1]


def test_leading_system_messages_are_one(client, prompts):
    messages = [
        {"role": "system", "content": "first"},
        {"role": "developer", "content": [{"type": "text", "text": "second"}]},
        {"role": "user", "content": "x"},
    ]
    post(client, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert "first\n\nsecond" in prompts[-1]


def test_texts_and_tokens_are_continued(client, engine):
    ids = engine.tokenizer.encode("go")
    options = {"logprobs": 1, "max_tokens": 8}
    [one] = post(client, "/v1/completions", prompt="go", **options)["choices"]
    _, two = post(client, "/v1/completions", prompt=[[5, *ids], ids], **options)["choices"]
    assert one["text"] == two["text"] == " one two"
    assert one["finish_reason"] == "length"
    told = one["logprobs"]
    assert "".join(told["tokens"]) == one["text"]
    assert told["text_offset"][:2] == [0, len(told["tokens"][0])]
    assert all(len(top) in (1, 2) for top in told["top_logprobs"])
    body = {"prompt": ids, "stream": True, "stream_options": {"include_usage": True}, "logprobs": 1}
    response = client.post("/v1/completions", json=body | {"temperature": 0, "max_tokens": 8})
    chunks, done = events(response)
    assert done
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert "".join(part["text"] for part in parts) == one["text"]
    offsets = [at for part in parts if part["logprobs"] for at in part["logprobs"]["text_offset"]]
    assert offsets == told["text_offset"]
    assert parts[-1]["finish_reason"] == "length"
    assert chunks[-1]["usage"]["completion_tokens"] == 8


def test_every_place_has_as_many_alternatives_as_asked(client):
    """Also where they are parts of characters; the token's own figure is always among them."""
    asked = {"temperature": 2, "seed": 1, "max_tokens": 40, "ignore_eos": True}
    for top in (0, 1, 5, 20):
        [one] = post(client, "/v1/completions", prompt="noise", logprobs=top, **asked)["choices"]
        told = one["logprobs"]
        rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        for token, logprob, likeliest in rows:
            assert len(likeliest) == max(top, 1) + (
                min(likeliest, key=likeliest.get) == token and top > 0 and len(likeliest) > top
            )
            assert likeliest[token] == logprob
        assert top < 20 or any("bytes:" in key for row in told["top_logprobs"] for key in row)
        chat = {"messages": [{"role": "user", "content": "noise"}], "logprobs": True}
        said = post(client, "/v1/chat/completions", top_logprobs=top, **chat, **asked)
        for token in said["choices"][0]["logprobs"]["content"]:
            likeliest = [(one["bytes"], one["logprob"]) for one in token["top_logprobs"]]
            assert len(likeliest) in ((top, top + 1) if top else (0,))
            assert not top or (token["bytes"], token["logprob"]) in likeliest


def test_an_echo_has_the_figures_of_the_prompt(client, engine):
    ids = engine.tokenizer.encode("go été")
    body = {"prompt": "go été", "echo": True, "logprobs": 2, "max_tokens": 4, "ignore_eos": True}
    [one] = post(client, "/v1/completions", **body)["choices"]
    plain = post(client, "/v1/completions", **body | {"echo": False})["choices"][0]
    assert one["text"] == "go été" + plain["text"]
    told = one["logprobs"]
    assert len(told["tokens"]) == len(ids) + 4
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    assert told["token_logprobs"][1 : len(ids)] == pytest.approx(engine.score(ids), abs=1e-4)
    assert told["text_offset"][len(ids)] == len("go été")
    for logprob, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert logprob in top.values()
        assert len(top) in (2, 3)
    read = post(client, "/v1/completions", **body | {"max_tokens": 0, "prompt": [ids, [5]], "n": 2})
    assert [choice["text"] for choice in read["choices"]][:2] == ["go été"] * 2
    assert read["choices"][0]["logprobs"] == {k: v[: len(ids)] for k, v in told.items()}
    assert read["usage"]["prompt_tokens"] == len(ids) + 1
    assert read["usage"]["completion_tokens"] == 0
    for prompt, count in (("go été", 1), ([ids, ids], 2)):
        chunks, done = events(
            client.post(
                "/v1/completions", json=body | {"prompt": prompt, "stream": True, "temperature": 0}
            )
        )
        assert done
        parts = [part for chunk in chunks for part in chunk["choices"]]
        for index in range(count):
            mine = [part for part in parts if part["index"] == index]
            assert "".join(part["text"] for part in mine) == one["text"]
            offsets = [
                at for part in mine if part["logprobs"] for at in part["logprobs"]["text_offset"]
            ]
            assert offsets == told["text_offset"]


def test_a_stop_text_ends_a_continued_text(client):
    [answer] = post(client, "/v1/completions", prompt="go", stop=["two"], max_tokens=50)["choices"]
    assert answer["text"] == " one "
    assert answer["finish_reason"] == "stop"


def test_a_token_is_changed_and_the_rest_goes_on(client):
    asked = {"messages": [{"role": "user", "content": "more"}], "glass_box": True}
    first = post(client, "/v1/chat/completions", reasoning_effort="none", **asked)
    prompt = [token["id"] for token in first["prompt_tokens_detail"]]
    said = [token["id"] for token in first["choices"][0]["tokens"]]
    again = post(
        client, "/v1/completions", prompt=[*prompt, *said[:3]], glass_box=True, max_tokens=99
    )
    assert [token["id"] for token in again["choices"][0]["tokens"]] == said[3:]
    assert any(token["cached"] for token in again["prompt_tokens_detail"])
    body = {"prompt": [*prompt, *said[:3]], "glass_box": True, "max_tokens": 99, "stream": True}
    chunks, _ = events(client.post("/v1/completions", json=body | {"temperature": 0}))
    assert [t["id"] for chunk in chunks for t in chunk.get("tokens", ())] == said[3:]
    assert sum("prompt_tokens_detail" in chunk for chunk in chunks) == 1


def test_a_form_of_the_answer(client):
    pick = post(
        client, "/v1/completions", prompt="x", structured_outputs={"choice": ["red", "blue"]}
    )
    assert pick["choices"][0]["text"] in ("red", "blue")
    for form in ({"regex": "[0-9]{3}"}, {"grammar": 'start: "a" "b"'}, {"json": {"const": 1}}):
        answer = post(
            client,
            "/v1/chat/completions",
            messages=[{"role": "user", "content": "x"}],
            structured_outputs=form,
            reasoning_effort="none",
        )
        assert answer["choices"][0]["finish_reason"] == "stop"
    bad = {"prompt": "x", "structured_outputs": {"regex": "(", "choice": ["a"]}}
    assert client.post("/v1/completions", json=bad).status_code == 400
    bad["structured_outputs"] = {"regex": "("}
    assert client.post("/v1/completions", json=bad).status_code == 400
