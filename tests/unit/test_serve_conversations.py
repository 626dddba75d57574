"""Conversations kept here, and what there is around a response."""

import base64

import openai
import pytest
from tests.support.serving import Settings, listening, local, post, speaking

SCRIPT = {
    "first": "<think>\nhm\n</think>\none",
    "second": "two",
    "Write nothing else.": "They counted to two.",
}
KEYS = ("k" * 16, "l" * 16)


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with local(engine) as client:
        yield client


def get(client, path, status=200):
    response = client.get(path)
    assert response.status_code == status, response.text
    return response.json()


def respond(client, words, **fields):
    return post(client, "/v1/responses", input=words, temperature=0, **fields)


def prompt_of(client, **fields):
    return post(client, "/v1/responses/input_tokens", **fields)["input_tokens"]


def test_a_conversation_goes_on(client):
    made = post(
        client,
        "/v1/conversations",
        metadata={"a": "b"},
        items=[{"type": "message", "role": "user", "content": "hello"}],
    )
    path = f"/v1/conversations/{made['id']}"
    assert get(client, path) == made
    first = respond(client, "first", conversation=made["id"])
    assert first["conversation"] == {"id": made["id"]}
    second = respond(client, "second", conversation={"id": made["id"]}, store=False)
    assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
    items = get(client, f"{path}/items?order=asc")["data"]
    kinds = [item["type"] for item in items]
    assert kinds == ["message", "message", "reasoning", "message", "message", "message"]
    texts = [item["content"][0]["text"] for item in items if item["type"] == "message"]
    assert texts == ["hello", "first", "one", "second", "two"]
    assert len({item["id"] for item in items}) == len(items)
    newest = get(client, f"{path}/items?limit=2")
    assert newest["data"][0] == items[-1]
    assert newest["has_more"]
    rest = get(client, f"{path}/items?limit=100&after={newest['last_id']}")
    assert rest["data"] == items[::-1][2:]
    one = items[0]
    assert get(client, f"{path}/items/{one['id']}") == one
    assert client.delete(f"{path}/items/{one['id']}").json()["id"] == made["id"]
    get(client, f"{path}/items/{one['id']}", 404)
    added = post(client, f"{path}/items", items=[{"role": "user", "content": "more"}])
    assert get(client, f"{path}/items?limit=1")["data"] == added["data"]
    assert post(client, path, metadata={"c": "d"})["metadata"] == {"c": "d"}
    assert client.delete(path).json()["deleted"]
    get(client, path, 404)
    error = post(client, "/v1/responses", 404, input="x", conversation=made["id"])["error"]
    assert error["code"] == "conversation_not_found"


def test_a_stream_adds_to_the_conversation_too(client):
    made = client.post("/v1/conversations").json()
    body = {"input": "second", "temperature": 0, "conversation": made["id"], "stream": True}
    assert client.post("/v1/responses", json=body).status_code == 200
    items = get(client, f"/v1/conversations/{made['id']}/items?order=asc")["data"]
    assert [item["role"] for item in items if item["type"] == "message"] == ["user", "assistant"]


def test_the_input_of_a_response(client):
    first = respond(client, "first")
    second = respond(
        client, [{"role": "user", "content": "second"}], previous_response_id=first["id"]
    )
    items = get(client, f"/v1/responses/{second['id']}/input_items?order=asc")["data"]
    assert items[0]["content"] == [{"type": "input_text", "text": "first"}]
    assert items[1:-1] == first["output"]
    assert items[-1]["content"] == [{"type": "input_text", "text": "second"}]
    whole = respond(client, items)
    assert whole["output"][-1]["content"] == second["output"][-1]["content"]
    assert prompt_of(client, input=items) == second["usage"]["input_tokens"]
    assert prompt_of(client, input="second", previous_response_id=first["id"]) == prompt_of(
        client, input=items
    )
    get(client, "/v1/responses/resp_none/input_items", 404)


def test_nothing_runs_in_the_background(client):
    first = respond(client, "first")
    response = client.post(f"/v1/responses/{first['id']}/cancel")
    assert response.status_code == 400
    assert "background" in response.json()["error"]["message"]
    assert client.post("/v1/responses/resp_none/cancel").status_code == 404


def test_a_kept_response_is_no_stream(client):
    first = respond(client, "first")
    told = get(client, f"/v1/responses/{first['id']}?stream=true&starting_after=1", 400)
    assert told["error"]["param"] == "stream"


def test_a_shorter_past(client):
    first = respond(client, "first")
    told = post(
        client,
        "/v1/responses/compact",
        input="second",
        previous_response_id=first["id"],
        instructions="Count.",
        temperature=0,
    )
    assert told["object"] == "response.compaction"
    *users, kept = told["output"]
    assert [item["content"][0]["text"] for item in users] == ["first", "second"]
    assert base64.b64decode(kept["encrypted_content"]).decode() == "They counted to two."
    again = [*told["output"], {"role": "user", "content": "second"}]
    assert respond(client, again)["output"][-1]["content"][0]["text"] == "two"
    alone = post(client, "/v1/responses/compact", previous_response_id=first["id"], temperature=0)
    assert [item["type"] for item in alone["output"]] == ["message", "compaction"]
    foreign = {"type": "compaction", "encrypted_content": "gAAAA*"}
    post(client, "/v1/responses", 400, input=[foreign, {"role": "user", "content": "x"}])


def test_what_is_wrong_is_said(client):
    first = respond(client, "first")
    both = {"previous_response_id": first["id"], "conversation": "conv_1"}
    assert "together" in post(client, "/v1/responses", 400, input="x", **both)["error"]["message"]
    post(client, "/v1/conversations", 400, items=[{"role": "nobody", "content": "x"}])
    post(client, "/v1/conversations", 400, metadata={str(i): "" for i in range(17)})


def test_only_the_newest_are_kept_and_each_with_its_key(engine):
    mine, yours = ({"authorization": f"Bearer {key}"} for key in KEYS)
    with local(engine, Settings(stored_responses=2), keys=KEYS) as client:
        names = [
            client.post("/v1/conversations", json={}, headers=mine).json()["id"] for _ in range(3)
        ]
        assert client.get(f"/v1/conversations/{names[0]}", headers=mine).status_code == 404
        assert client.get(f"/v1/conversations/{names[2]}", headers=mine).status_code == 200
        assert client.get(f"/v1/conversations/{names[2]}", headers=yours).status_code == 404
    with local(engine, Settings(stored_bytes=1500)) as client:
        name = post(client, "/v1/conversations")["id"]
        post(
            client,
            f"/v1/conversations/{name}/items",
            items=[{"role": "user", "content": "x" * 500}],
        )
        get(client, f"/v1/conversations/{name}", 404)


def test_openais_client(engine):
    with (
        listening(engine) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        kept = client.conversations.create(
            items=[{"type": "message", "role": "user", "content": "x"}]
        )
        first = client.responses.create(
            model="tiny", input="first", conversation=kept.id, temperature=0
        )
        assert first.output_text == "one"
        assert len(list(client.conversations.items.list(kept.id, order="asc", limit=2))) == 4
        assert len(list(client.responses.input_items.list(first.id))) == 2
        assert client.responses.input_tokens.count(model="tiny", input="first").input_tokens > 0
        short = client.responses.compact(model="tiny", input="first")
        assert short.output[-1].type == "compaction"
        again = client.responses.create(
            model="tiny",
            input=[short.output[-1], {"role": "user", "content": "second"}],
            temperature=0,
        )
        assert again.output_text == "two"
        assert client.conversations.delete(kept.id).deleted
