"""What llama-server and vLLM tell of themselves and of tokens, told alike."""

import pytest
from tests.support.serving import Settings, local, speaking


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, {}) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with local(engine, Settings(running=3)) as client:
        yield client


def post(client, path, status=200, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


TEXT = "été <|im_end|>"


def test_texts_as_each_reads_them(client, tokenizer):
    plain, markup = tokenizer.encode(TEXT), tokenizer.encode_markup(TEXT)
    assert plain != markup
    for body, ids in [
        ({"prompt": TEXT}, plain),
        ({"prompt": TEXT, "add_special_tokens": False}, plain),
        ({"prompt": TEXT, "parse_special": True}, markup),
        ({"content": TEXT}, markup),
        ({"content": TEXT, "parse_special": False, "add_special": True}, plain),
        ({"content": ""}, []),
        ({"content": TEXT, "prompt": TEXT}, plain),  # as who does not know which server this is
    ]:
        told = post(client, "/tokenize", **body)
        assert told == {"tokens": ids, "count": len(ids), "max_model_len": 2048}
    assert post(client, "/detokenize", tokens=markup) == {"content": TEXT, "prompt": TEXT}


def test_pieces(client, tokenizer):
    pieces = post(client, "/tokenize", content="日é", with_pieces=True)["tokens"]
    octets = b"".join(
        bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces
    )
    assert octets == "日é".encode()
    assert any(isinstance(p["piece"], list) for p in pieces)
    told = post(client, "/tokenize", prompt="the model", return_token_strs=True)
    assert "".join(told["token_strs"]) == "the model"


BEGUN = {"role": "assistant", "content": "It"}


def test_a_conversations_prompt_is_the_one_that_is_read(client, engine):
    chat = {"messages": [{"role": "user", "content": TEXT}]}
    for fields in (
        {},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}]},
        {"chat_template_kwargs": {"custom_instructions": "Be brief."}},
        {"tools": [{"type": "custom", "custom": {"name": "add"}}]},
        {"add_generation_prompt": True, "continue_final_message": False},
        {"continue_final_message": True, "messages": [*chat["messages"], BEGUN]},
    ):
        body = chat | fields
        prompt = post(client, "/apply-template", **body)["prompt"]
        asked = post(client, "/v1/chat/completions", **body, max_tokens=1, glass_box=True)
        read = [token["id"] for token in asked["prompt_tokens_detail"]]
        assert post(client, "/tokenize", **body)["tokens"] == read
        assert engine.tokenizer.decode(read) == prompt
    off = post(client, "/apply-template", **chat, reasoning_effort="none")["prompt"]
    assert off.endswith("<think>\n\n</think>\n")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "content": "b"}),
        ("/tokenize", {"prompt": "a", "model": "b"}),
        ("/detokenize", {"tokens": [99_999]}),
        ("/apply-template", {}),
        ("/apply-template", {"messages": []}),
    ],
)
def test_what_is_wrong_is_said(client, path, body):
    assert post(client, path, status=404 if "model" in body else 400, **body)["error"]["message"]


def test_what_the_server_is_like(client, tokenizer):
    props = client.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert props["total_slots"] == 3
    assert props["chat_template"] == tokenizer.template
    assert props["eos_token"] == "<|im_end|>"
    assert client.post("/props", json={}).status_code == 405
    client.service.admission._room = 1
    slots = client.get("/slots").json()
    client.service.admission._room = 3
    assert slots == [{"id": i, "n_ctx": 2048, "is_processing": i < 2} for i in range(3)]
