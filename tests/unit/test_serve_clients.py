"""What clients send: recorded requests, fields by the rule, and histories in every spelling."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import pytest
from anthropic.types.beta import message_count_tokens_params, message_create_params
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.conversations import conversation_create_params
from openai.types.responses import (
    input_token_count_params,
    response_compact_params,
    response_create_params,
)
from tests.clients import try_clients
from tests.support.serving import ScriptedBackend, Settings, events, local, noted_prompts, speaking

from smollm3.infer import Engine
from smollm3.infer.backends import BLOCK
from smollm3.infer.speculation import PromptLookup
from smollm3.serve.dialects import rule
from smollm3.serve.dialects.anthropic_body import CountBody, MessagesBody
from smollm3.serve.dialects.openai_chat_body import ChatBody
from smollm3.serve.dialects.openai_completions import CompletionBody
from smollm3.serve.dialects.openai_conversations import ConversationBody
from smollm3.serve.dialects.openai_items import ResponseBody
from smollm3.serve.dialects.reading import EmbeddingBody

ROOT = Path(__file__).parents[2]
RECORDED = [
    pytest.param(request["path"], request["body"], id=f"{file.stem}-{i}")
    for file in sorted((ROOT / "tests" / "clients").glob("*.jsonl"))
    for i, request in enumerate(map(json.loads, file.read_text().splitlines()))
]
CHAT, TEXTS = "/v1/chat/completions", "/v1/completions"
ITEMS, BLOCKS = "/v1/responses", "/v1/messages"
COUNT = f"{BLOCKS}/count_tokens"
SCRIPT = {
    "text": "an answer",
    "json": '{"a": true}',
    "muse": "<think>\nwell\n</think>\nan answer",
    "add": '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
}
ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, SCRIPT, blocks=1024, context=16_384) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    settings = Settings(max_tokens=24, aliases=("*",), think=False)
    with local(engine, settings) as client:
        yield client


# one more turn


def answer_of(path, response, stream):
    """The answer, a stream's added up by what each dialect says of it."""
    if not stream:
        return response.json()
    told, _ = events(response)
    if path == ITEMS:
        return told[-1]["response"]
    if path == BLOCKS:
        return blocks_of(told)
    choices = defaultdict(lambda: defaultdict(str))
    for chunk in told:
        for part in chunk["choices"]:
            delta = part.get("delta", part)
            for key in ("content", "reasoning_content", "text"):
                choices[part["index"]][key] += delta.get(key) or ""
            for call in delta.get("tool_calls", ()):
                calls = choices[part["index"]].setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append(call)
                elif "custom" in call:
                    calls[-1]["custom"]["input"] += call["custom"]["input"]
                else:
                    calls[-1]["function"]["arguments"] += call["function"]["arguments"]
    return {"choices": [{"index": i, "message": m} for i, m in sorted(choices.items())]}


def blocks_of(told):
    message = told[0]["message"]
    for event in told:
        if event["type"] == "content_block_start":
            message["content"].append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            block, delta = message["content"][-1], event["delta"]
            for key in ("text", "thinking", "signature"):
                block[key] = block.get(key, "") + delta.get(key, "")
            block["json"] += delta.get("partial_json", "")
    return message


def said_in(path, answer):
    """What the answer says, to compare: texts, and calls by name and arguments."""
    if path == ITEMS:
        return [
            (
                item["type"],
                item.get("name"),
                item.get("arguments") or item.get("input"),
                texts(item.get("content") or item.get("summary")),
            )
            for item in answer["output"]
        ]
    if path == BLOCKS:
        return [
            (block["type"], block.get("text"), block.get("thinking"), block.get("name"))
            if block["type"] == "tool_use"
            else (block["type"], block.get("text") or block.get("thinking"))
            for block in answer["content"]
        ]
    told = []
    for choice in answer["choices"]:
        message = choice.get("message") or choice
        calls = [list(call[call["type"]].items()) for call in message.get("tool_calls") or ()]
        plain = [message.get(key) or "" for key in ("content", "reasoning_content", "text")]
        told.append((*plain, calls))
    return told


def texts(content):
    return "".join(part["text"] for part in content or ())


def next_turn(path, body, answer):
    """The request that goes on from the answer, as clients make it."""
    body = {k: v for k, v in body.items() if k not in ("tool_choice", "stream", "stream_options")}
    if path == ITEMS:
        given = body["input"]
        items = [{"role": "user", "content": given}] if isinstance(given, str) else [*given]
        results = [
            {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "42"}
            for item in answer["output"]
            if item["type"] in ("function_call", "custom_tool_call")
        ]
        more = {"role": "user", "content": "a text"}
        return body | {"input": [*items, *answer["output"], *results, more]}
    if path == BLOCKS:
        uses = [block for block in answer["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": b["id"], "content": "42"} for b in uses]
        more = [*results, {"type": "text", "text": "a text"}]
        said = [{"role": "assistant", "content": answer["content"]}] if answer["content"] else []
        return body | {"messages": [*body["messages"], *said, {"role": "user", "content": more}]}
    message = answer["choices"][0]["message"]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        for call in message.get("tool_calls") or ()
    ]
    more = {"role": "user", "content": "a text"}
    told = {k: v for k, v in body.items() if k not in ("continue_final_message",)}
    return told | {"messages": [*body["messages"], message, *results, more]}


def check_turns(client, path, body):
    """No fault; a stream says what the whole answer says; the answer may be sent back. The
    status."""
    fixed = body | {"temperature": 0}
    whole = client.post(path, json=fixed | {"stream": False} if path != COUNT else body)
    assert whole.status_code < 500, whole.text
    if whole.status_code != 200:
        error = whole.json()["error"]
        assert error["message"]
        return whole.status_code
    if path == COUNT:
        return 200
    streamed = client.post(path, json=fixed | {"stream": True})
    if streamed.status_code != 200:  # best_of
        assert streamed.status_code == 400
        return 200
    answer, told = whole.json(), answer_of(path, streamed, stream=True)
    assert said_in(path, told) == said_in(path, answer)
    if path != TEXTS:
        after = client.post(path, json=next_turn(path, fixed, answer) | {"stream": False})
        assert after.status_code == 200, after.text
        if "tool_choice" not in body and not body.get("previous_response_id"):
            read, _ = usage(path, answer)
            assert usage(path, after.json())[1] >= (read // BLOCK - 1) * BLOCK
    return 200


def usage(path, answer):
    """Tokens of the prompt, and those of them that the prefix cache had."""
    used = answer["usage"]
    if path == BLOCKS:
        cached = used["cache_read_input_tokens"]
        return used["input_tokens"] + cached, cached
    kind = "input" if path == ITEMS else "prompt"
    return used[f"{kind}_tokens"], used[f"{kind}_tokens_details"]["cached_tokens"]


@pytest.mark.parametrize(("path", "body"), RECORDED)
def test_recorded_requests(client, path, body):
    assert check_turns(client, path, shortened(path, body)) == 200


def shortened(path, body):
    """With a short answer: how many tokens are allowed changes nothing else."""
    limits = {CHAT: ("max_tokens", "max_completion_tokens"), TEXTS: ("max_tokens",)}
    limits |= {ITEMS: ("max_output_tokens",), BLOCKS: ("max_tokens",), COUNT: ()}
    return body | {k: 12 for k in limits[path] if isinstance(body.get(k), int) and body[k] > 12}


# the rule


BODIES = {
    "chat": (CHAT, {"messages": [{"role": "user", "content": "a text"}]}),
    "completions": (TEXTS, {"prompt": "a text"}),
    "responses": (ITEMS, {"input": "a text"}),
    "messages": (BLOCKS, {"messages": [{"role": "user", "content": "a text"}], "max_tokens": 8}),
}


def places(place, name, value):
    """Requests that have this field at this place of the rule: (path, body, the field's path)."""
    given = {name: value}
    if place in BODIES:
        path, body = BODIES[place]
        yield path, body | given, name
    function = {"name": "add", "parameters": ADD}
    tool = {"type": "function", "function": function}
    match place:
        case "stream_options":
            for key in ("chat", "completions", "responses"):
                path, body = BODIES[key]
                yield path, body | {"stream": True, place: given}, f"{place}.{name}"
        case "tool":
            flat = {"type": "function"} | function
            yield CHAT, BODIES["chat"][1] | {"tools": [tool | given]}, f"tools.0.{name}"
            yield ITEMS, BODIES["responses"][1] | {"tools": [flat | given]}, f"tools.0.{name}"
            own = {"name": "add", "input_schema": ADD} | given
            yield BLOCKS, BODIES["messages"][1] | {"tools": [own]}, f"tools.0.{name}"
        case "reasoning" | "text":
            yield ITEMS, BODIES["responses"][1] | {place: given}, f"{place}.{name}"
        case "thinking":
            on = {"type": "adaptive"} | given
            yield BLOCKS, BODIES["messages"][1] | {place: on}, f"{place}.{name}"
        case "output_config":
            yield BLOCKS, BODIES["messages"][1] | {place: given}, f"{place}.{name}"


FIELDS = [
    (place, name, row) for row in rule.RULE for place in row.places for name in sorted(row.names)
]


@pytest.mark.parametrize(("place", "name", "row"), FIELDS)
def test_the_rule_is_kept(client, place, name, row):
    """A label may be anything; another field only what changes nothing, and null is absent."""
    accepted = [{"any": ["thing", 1]}, "x", True] if row.only is None else [*row.only]
    refused = [] if row.only is None else ["other", {"other": 1}, 7]
    requests = list(places(place, name, None))
    assert requests, f"no request has a place {place}"
    for value in [None, *accepted[:2]]:
        for path, body, _ in places(place, name, value):
            response = client.post(path, json=body)
            assert response.status_code == 200, (value, response.text)
    for value in refused[: None if row.only == () else 1]:
        for path, body, field in places(place, name, value):
            response = client.post(path, json=body)
            assert response.status_code == 400, (value, response.text)
            assert response.json()["error"]["message"].startswith(f"{field}: not supported: ")
            if path != BLOCKS:
                assert response.json()["error"]["param"] == field


def test_the_rule_is_in_the_docs():
    page = (ROOT / "docs" / "serving.md").read_text()
    for row in rule.RULE:
        assert told(row) in page


def told(row):
    names = " ".join(f"`{name}`" for name in row.names)
    only = "any" if row.only is None else " ".join(f"`{json.dumps(v)}`" for v in row.only) or "none"
    return f"| {', '.join(row.places)} | {names} | {only} | {row.why} |\n"


def test_no_field_has_two_rows():
    pairs = [(place, name) for place, name, _ in FIELDS]
    assert len(pairs) == len(set(pairs))
    for place, model in (
        ("chat", ChatBody),
        ("completions", CompletionBody),
        ("responses", ResponseBody),
        ("messages", MessagesBody),
    ):
        assert not set(rule.rows(place)) & set(model.model_fields)


@pytest.mark.parametrize(
    ("place", "model", "params"),
    [
        ("chat", ChatBody, chat_create_params.CompletionCreateParamsBase),
        ("completions", CompletionBody, completion_create_params.CompletionCreateParamsBase),
        ("responses", ResponseBody, response_create_params.ResponseCreateParamsBase),
        ("messages", MessagesBody, message_create_params.MessageCreateParamsBase),
        ("messages", CountBody, message_count_tokens_params.MessageCountTokensParams),
        ("responses", ResponseBody, input_token_count_params.InputTokenCountParams),
        ("responses", ResponseBody, response_compact_params.ResponseCompactParams),
        ("embeddings", EmbeddingBody, embedding_create_params.EmbeddingCreateParams),
        ("conversations", ConversationBody, conversation_create_params.ConversationCreateParams),
    ],
)
def test_every_parameter_of_the_vendors_libraries_is_decided(place, model, params):
    """Read, accepted or turned away with its reason; these two are headers."""
    known = set(model.model_fields) | set(rule.rows(place)) | {"workspace_id", "echo"}
    assert set(params.__annotations__) <= known


def test_null_is_absent(client):
    models = {"chat": ChatBody, "completions": CompletionBody}
    models |= {"responses": ResponseBody, "messages": MessagesBody}
    for place, model in models.items():
        path, body = BODIES[place]
        nulls = dict.fromkeys(field.alias or name for name, field in model.model_fields.items())
        response = client.post(path, json=nulls | body)
        assert response.status_code == 200, response.text


def test_a_slip_is_named(client):
    for path, body in BODIES.values():
        response = client.post(path, json=body | {"temprature": 1})
        assert response.status_code == 400
        assert "temprature: not supported" in response.json()["error"]["message"]


# any request


def union_of_fields():
    """path -> field -> the values that requests of clients have for it."""
    found = defaultdict(lambda: defaultdict(list))
    for parameter in RECORDED:
        path, body = parameter.values
        for key, value in body.items():
            if value not in found[path][key]:
                found[path][key].append(value)
    for place, name, row in FIELDS:
        if place in BODIES:
            found[BODIES[place][0]][name] += [None, *(("x",) if row.only is None else row.only)]
    found[CHAT] |= {
        "n": [1, 2],
        "stop": ["", [], ["a"], ["", "wer"]],
        "max_tokens": [-1, 5],
        "top_k": [-1, 0, 3],
        "min_tokens": [0, 4],
        "logit_bias": [{}, {"70": 1}],
        "seed": [None, 3],
        "reasoning_effort": ["none", "low"],
        "logprobs": [True, None],
        "response_format": [None, {"type": "text"}, {"type": "json_object"}],
        "continue_final_message": [True, False],
    }
    for path in (CHAT, ITEMS):
        found[path]["tools"] += [custom_request(path, *grammar)["tools"] for grammar in ASKED]
    found[TEXTS] |= {"best_of": [1, 2], "n": [1, 2], "logprobs": [None, 1], "stop": [None, ""]}
    found[BLOCKS] |= {"output_format": [None, {"type": "json_schema", "schema": ADD}]}
    found[BLOCKS] |= {"stop_sequences": [[], [""], ["wer"]]}
    return found


NEEDED = {CHAT: "messages", TEXTS: "prompt", ITEMS: "input", BLOCKS: "messages", COUNT: "messages"}


def made_up(source, fields):
    """A request of fields that some client has, in any combination."""
    path = source.choice(list(NEEDED))
    names = list(fields[path])
    chosen = {NEEDED[path], *source.sample(names, min(len(names), source.randrange(7)))}
    chosen |= {"max_tokens"} if path == BLOCKS else set()
    body = {name: source.choice(fields[path][name]) for name in sorted(chosen)}
    return path, shortened(path, body)


def check_many(client, count):
    source, fields = random.Random(20_261_127), union_of_fields()
    statuses = defaultdict(int)
    for _ in range(count):
        path, body = made_up(source, fields)
        statuses[path, check_turns(client, path, body)] += 1
    for path in NEEDED:
        assert statuses[path, 200] > 3 * statuses[path, 400], statuses


def test_combinations_of_fields(client):
    check_many(client, 100)


@pytest.mark.slow
def test_five_thousand_combinations_of_fields(client):
    check_many(client, 5000)


# what was said before


@pytest.fixture
def prompts(engine, monkeypatch):
    return noted_prompts(engine, monkeypatch)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
PDF = {"type": "document", "title": "b.pdf", "source": {"type": "base64", "data": "AAAA"}}
PAGE = {"type": "document", "title": "c", "source": {"type": "text", "data": "page one"}}
FOUND = {"type": "search_result", "source": "x", "title": "d", "content": [{"text": "found it"}]}
LINK = {"type": "image_url", "image_url": {"url": "data:image/gif;base64,AAAA"}}
READ = {"type": "input_image", "image_url": "data:image/webp;base64,AAAA"}
MADE = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "no json"}}


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (IMAGE, "[image image/png]"),
        (PDF, "[document b.pdf]"),
        (PAGE, "c\npage one"),
        (FOUND, "d\nfound it"),
        ({"type": "tool_reference", "tool_name": "edit"}, "[tool_reference edit]"),
        (LINK, "[image image/gif]"),
        (READ, "[image image/webp]"),
        ({"type": "input_file", "filename": "e.txt", "file_data": "AAAA"}, "[file e.txt]"),
        ({"type": "audio"}, "[audio]"),
    ],
)
def test_what_a_tool_gave_is_told_by_its_kind(client, prompts, part, shown):
    user, more = {"role": "user", "content": "x"}, {"role": "user", "content": "a text"}
    call = {"role": "assistant", "content": None, "tool_calls": [MADE]}
    result = {"role": "tool", "tool_call_id": "c1", "content": [part]}
    use = {"type": "tool_use", "id": "c1", "name": "add", "input": {}}
    given = {"type": "tool_result", "tool_use_id": "c1", "content": [part]}
    requests = {
        CHAT: {"messages": [user, call, result, more]},
        ITEMS: {
            "input": [
                user,
                {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "no json"},
                {"type": "function_call_output", "call_id": "c1", "output": [part]},
                more,
            ]
        },
        BLOCKS: {
            "messages": [
                user,
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [given]},
                more,
            ],
            "max_tokens": 8,
        },
    }
    for path, body in requests.items():
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        assert shown in prompts[-1]
    assert '"arguments": no json}' in prompts[0]


def test_what_is_asked_must_be_text_and_what_was_asked_may_be_anything(client, prompts):
    for part, readable in ((IMAGE, False), (LINK, False), (READ, False), (PAGE, True)):
        for path in (CHAT, ITEMS, BLOCKS):
            asked = {"role": "user", "content": [{"type": "text", "text": "a text"}, part]}
            key = "input" if path == ITEMS else "messages"
            limit = {"max_tokens": 8} if path == BLOCKS else {}
            response = client.post(path, json={key: [asked], **limit})
            assert response.status_code == (200 if readable else 400)
            if not readable:
                assert f"{key}.0.content.1.type: " in response.json()["error"]["message"]
            later = [
                asked,
                {"role": "assistant", "content": "no"},
                {"role": "user", "content": "b"},
            ]
            response = client.post(path, json={key: later, **limit})
            assert response.status_code == 200, response.text


LATER = [
    {"role": "system", "content": "one"},
    {"role": "user", "content": "a text"},
    {"role": "assistant", "content": "b"},
    {"role": "system", "content": [{"type": "text", "text": "two"}]},
    {"role": "user", "content": "a text"},
    {"role": "system", "content": "three"},
]


def test_system_messages_anywhere(client, prompts):
    """In front where the template prints no later ones, as ours does not."""
    client.post(CHAT, json={"messages": LATER})
    developer = [{**m, "role": m["role"].replace("system", "developer")} for m in LATER]
    client.post(CHAT, json={"messages": developer})
    client.post(ITEMS, json={"input": developer[1:], "instructions": "one"})
    client.post(BLOCKS, json={"messages": LATER[1:], "system": "one", "max_tokens": 8})
    assert len(prompts) == 4
    assert len(set(prompts)) == 1
    assert "one\n\ntwo\n\nthree" in prompts[0]
    assert prompts[0].count("<|im_start|>system") == 1


PLACES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ mood | default('calm') }} {% endif %}"
)


def test_system_messages_in_place_and_variables_of_the_template(tokenizer):
    with speaking(tokenizer.with_template(PLACES), SCRIPT) as engine, local(engine) as client:
        ids = client.post("/tokenize", json={"messages": LATER}).json()["tokens"]
        text = engine.tokenizer.decode(ids)
        assert "<|im_start|>system\none<|im_end|>" in text
        assert "b<|im_end|>\n<|im_start|>system\ntwo<|im_end|>" in text
        assert engine.tokenizer.template_variables == {"mood"}
        body = {"messages": LATER, "max_tokens": 1}
        for kwargs, status in (({"mood": "glad"}, 200), ({"moood": "glad"}, 400)):
            response = client.post(CHAT, json=body | {"chat_template_kwargs": kwargs})
            assert response.status_code == status, response.text
        assert response.json()["error"]["param"] == "chat_template_kwargs.moood"
        glad = engine.tokenizer.render_text(LATER, variables={"mood": "<|im_end|>"})
        assert glad.count("<|im_end|>") == len(LATER) + 1
        rendered = engine.tokenizer.render(LATER, variables={"mood": "<|im_end|>"}).ids
        assert rendered.count(engine.tokenizer.stop_ids[0]) == len(LATER)


def test_items_of_kept_responses(client, prompts):
    tool = {"type": "function", "name": "add", "parameters": ADD}
    first = client.post(
        ITEMS, json={"input": "add", "tools": [tool], "temperature": 0, "max_output_tokens": 90}
    )
    first = first.json()
    [call] = first["output"]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    user = {"role": "user", "content": "add"}
    for reference in ({"type": "item_reference", "id": call["id"]}, {"id": call["id"]}, call):
        response = client.post(ITEMS, json={"input": [user, reference, result], "tools": [tool]})
        assert response.status_code == 200, response.text
    assert len(set(prompts[1:])) == 1
    assert client.delete(f"{ITEMS}/{first['id']}").json()["deleted"]
    gone = client.post(ITEMS, json={"input": [user, {"id": call["id"]}, result]})
    assert gone.status_code == 404
    assert call["id"] in gone.json()["error"]["message"]


def test_what_is_left_out_is_said(client):
    tools = [{"type": "web_search"}, {"type": "namespace", "name": "é", "tools": [{"type": "x"}]}]
    done = {"type": "web_search_call", "id": "w", "status": "completed"}
    body = {"input": [done, {"role": "user", "content": "a text"}], "tools": tools}
    for stream in (False, True):
        said = client.post(ITEMS, json=body | {"stream": stream}).headers["warning"]
        for what in ("tools.0 (web_search)", "tools.1.tools.0 (x)", "input.0 (web_search_call)"):
            assert f'299 smollm3 "{what} is left out"' in said
    forced = client.post(ITEMS, json=body | {"tool_choice": "required"})
    assert forced.status_code == 400
    path, body = BODIES["messages"]
    server = {"type": "web_search_20250305", "name": "web_search"}
    said = client.post(path, json=body | {"tools": [server]}).headers["warning"]
    assert said == '299 smollm3 "tools.0 (web_search_20250305) is left out"'
    assert "warning" not in client.post(path, json=body).headers


CUSTOM = {"type": "custom", "name": "add", "format": {"type": "text"}}
PAINT = {"type": "namespace", "name": "paint é", "description": "Pictures."}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", ["custom", "function"])
def test_custom_tools_and_namespaces_are_called_and_told_by_their_names(
    client, prompts, kind, within, stream
):
    """And what was told may be sent back: the next turn reads what the model wrote."""
    tool = CUSTOM if kind == "custom" else {"type": "function", "name": "add", "parameters": ADD}
    offered = [PAINT | {"tools": [tool]}] if within else [tool]
    choice = {"type": "namespace" if within else kind, "name": "paint é" if within else "add"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [choice]}
    user = {"role": "user", "content": "add"}
    body = {"input": [user], "tools": offered, "tool_choice": allowed, "temperature": 0}
    body |= {"max_output_tokens": 300, "parallel_tool_calls": False}
    response = client.post(ITEMS, json=body | {"stream": stream})
    assert "warning" not in response.headers
    answer = answer_of(ITEMS, response, stream)
    [call] = answer["output"]
    name = "paint____add" if within else "add"
    assert f'"name": "{name}"' in prompts[-1]
    assert ("Pictures." in prompts[-1]) == within
    assert call["name"] == "add"
    assert call.get("namespace") == ("paint é" if within else None)
    key = "input" if kind == "custom" else "arguments"
    assert call["type"] == ("custom_tool_call" if kind == "custom" else "function_call")
    assert answer["tools"][0]["type"] == ("namespace" if within else kind)
    if stream:
        told, _ = events(response)
        parts = [e for e in told if e["type"].startswith(("response.custom", "response.function"))]
        assert "".join(e.get("delta", "") for e in parts) == call[key]
        assert parts[-1][key] == call[key]
    result = {"type": f"{call['type']}_output", "call_id": call["call_id"], "output": "42"}
    again = body | {"input": [user, call, result], "tool_choice": "auto"}
    after = client.post(ITEMS, json=again)
    assert after.status_code == 200, after.text
    made = {"name": name, "arguments": {"input": call[key]} if kind == "custom" else {"a": 1}}
    if kind == "custom" or call[key] == '{"a": 1}':
        assert json.dumps(made, ensure_ascii=False) in prompts[-1]


GRAMMARS = {  # by syntax: a definition, and in Python's syntax what it means
    "regex": ('^"[0-9]+" apples?\\n', '"[0-9]+" apples?\n'),
    "lark": (
        'start: say LF\nsay: "say \\"" /[a-z]{1,3}/ "\\""\n%import common.LF',
        'say "[a-z]{1,3}"\n',
    ),
}


ASKED = [(), *((syntax, definition) for syntax, (definition, _) in GRAMMARS.items())]


def custom_request(path, syntax=None, definition="", **more):
    """That must call the custom tool `add`."""
    grammar = {"syntax": syntax, "definition": definition}
    user = {"role": "user", "content": "add"}
    if path == ITEMS:
        form = {"type": "grammar", **grammar} if syntax else {"type": "text"}
        tool = {"type": "custom", "name": "add", "description": "Adds.", "format": form}
        named = {"type": "custom", "name": "add"}
        body = {"input": [user], "max_output_tokens": 300, "reasoning": {"effort": "none"}}
    else:
        form = {"type": "grammar", "grammar": grammar} if syntax else {"type": "text"}
        custom = {"name": "add", "description": "Adds.", "format": form}
        tool = {"type": "custom", "custom": custom}
        named = {"type": "custom", "custom": {"name": "add"}}
        body = {"messages": [user], "max_tokens": 300, "reasoning_effort": "none"}
    body |= {"tools": [tool], "tool_choice": named, "parallel_tool_calls": False}
    return body | {"temperature": 1, "seed": 5} | more


def input_in(path, answer):
    if path == ITEMS:
        [call] = answer["output"]
        assert call["type"] == "custom_tool_call"
        return call["input"]
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "custom"
    return call["custom"]["input"]


@pytest.mark.parametrize("path", [CHAT, ITEMS])
@pytest.mark.parametrize("syntax", GRAMMARS)
def test_a_custom_tools_grammar_is_kept_to(client, prompts, path, syntax):
    """Whole and in a stream; and the call may be sent back, as the model wrote it."""
    definition, meant = GRAMMARS[syntax]
    body = custom_request(path, syntax, definition)
    whole, streamed = (client.post(path, json=body | {"stream": s}) for s in (False, True))
    assert "warning" not in whole.headers
    assert f"this {syntax} grammar" in prompts[-1]
    answer = whole.json()
    text = input_in(path, answer)
    assert re.fullmatch(meant, text)
    assert said_in(path, answer_of(path, streamed, stream=True)) == said_in(path, answer)
    after = client.post(path, json=next_turn(path, body, answer))
    assert after.status_code == 200, after.text
    made = json.dumps({"name": "add", "arguments": {"input": text}}, ensure_ascii=False)
    assert made in prompts[-1]


@pytest.mark.parametrize("path", [CHAT, ITEMS])
@pytest.mark.parametrize("choice", ["auto", None])
@pytest.mark.parametrize(
    ("syntax", "definition", "what"),
    [
        ("lark", "start: /a", "lexer error"),
        ("lark", 'start: /.*b/ "\\n"', "cannot be told from what follows it"),
        ("regex", "(?=a)", "look-around"),
        ("regex", "[", "unclosed"),
    ],
)
def test_a_grammar_that_cannot_be_kept_to_is_refused(
    client, path, choice, syntax, definition, what
):
    more = {"tool_choice": choice} if choice else {}
    response = client.post(path, json=custom_request(path, syntax, definition, **more))
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert message.startswith("tools: add: format: ")
    assert what in message


@pytest.mark.parametrize("path", [CHAT, ITEMS])
def test_a_custom_tool_that_is_cut_off_tells_the_same_whole_and_in_a_stream(client, path):
    limit = {CHAT: "max_tokens", ITEMS: "max_output_tokens"}[path]
    for most in range(20, 85, 8):
        body = custom_request(path, "regex", "a{50}", **{limit: most})
        told = [client.post(path, json=body | {"stream": s}) for s in (False, True)]
        whole, streamed = (answer_of(path, r, s) for r, s in zip(told, (False, True), strict=True))
        assert said_in(path, streamed) == said_in(path, whole)
    assert set(input_in(path, whole)) == {"a"}


def test_custom_tools_of_chats(client):
    """Beside functions; chosen, allowed, and of a name that is taken."""
    body = custom_request(CHAT)
    function = {"type": "function", "function": {"name": "sub", "parameters": ADD}}
    body["tools"] = [*body["tools"], function]
    named = body["tool_choice"]
    listed = {"mode": "required", "tools": [named]}
    for choice in (named, {"type": "allowed_tools", "allowed_tools": listed}):
        response = client.post(CHAT, json=body | {"tool_choice": choice})
        assert input_in(CHAT, response.json()) is not None
    listed["tools"] = [{"type": "function", "function": {"name": "sub"}}]
    choice = {"type": "allowed_tools", "allowed_tools": listed}
    [made] = client.post(CHAT, json=body | {"tool_choice": choice}).json()["choices"]
    assert made["message"]["tool_calls"][0]["function"]["name"] == "sub"
    function["function"]["name"] = "add"
    assert "same name" in client.post(CHAT, json=body).json()["error"]["message"]
    flat = body | {"tools": [CUSTOM]}
    assert client.post(CHAT, json=flat).json()["error"]["param"].startswith("tools.0.")
    twice = {"input": "add", "tools": [CUSTOM, CUSTOM]}
    assert "same name" in client.post(ITEMS, json=twice).json()["error"]["message"]


@pytest.mark.parametrize("summary", ["auto", "detailed", None, "none"])
def test_reasoning_is_told_as_a_summary_where_one_is_asked_for(client, summary):
    """Some clients read nothing else; it is told once."""
    reasoning = {"effort": "high"} | ({} if summary is None else {"summary": summary})
    body = {"input": "muse", "reasoning": reasoning, "temperature": 0, "thinking_budget": 9}
    body |= {"max_output_tokens": 40}
    whole = client.post(ITEMS, json=body).json()["output"][0]
    asked = summary in ("auto", "detailed")
    assert bool(whole["summary"]) == asked
    assert bool(whole["content"]) != asked
    told, _ = events(client.post(ITEMS, json=body | {"stream": True}))
    [part] = whole["summary"] or whole["content"]
    kind = "reasoning_summary_text" if asked else "reasoning_text"
    deltas = [event["delta"] for event in told if event["type"] == f"response.{kind}.delta"]
    assert "".join(deltas) == part["text"]
    named = "reasoning_summary_part" if asked else "content_part"
    first = next(event for event in told if event["type"].endswith("_part.added"))
    assert first["type"] == f"response.{named}.added"
    assert first["summary_index" if asked else "content_index"] == 0
    [again] = [x["item"] for x in told if x["type"] == "response.output_item.done"][:1]
    assert {**again, "id": ""} == {**whole, "id": ""}


# what is asked


def test_only_allowed_tools_are_called(client):
    """All are shown, whatever may be called."""
    functions = [{"name": name, "parameters": ADD} for name in ("add", "sub")]
    chat = [{"type": "function", "function": function} for function in functions]
    flat = [{"type": "function", **function} for function in functions]
    for mode in ("auto", "required"):
        inner = {"mode": mode, "tools": [{"type": "function", "function": {"name": "sub"}}]}
        body = {"messages": [{"role": "user", "content": "add"}], "temperature": 0, "tools": chat}
        body["tool_choice"] = {"type": "allowed_tools", "allowed_tools": inner}
        body["max_tokens"] = 90
        message = client.post(CHAT, json=body).json()["choices"][0]["message"]
        names = {call["function"]["name"] for call in message.get("tool_calls") or ()}
        assert names <= {"sub"}
        assert names or mode == "auto"
        choice = {
            "type": "allowed_tools",
            "mode": mode,
            "tools": [{"type": "function", "name": "x"}],
        }
        refused = client.post(ITEMS, json={"input": "x", "tools": flat, "tool_choice": choice})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize("words", ["add", "json", "text"])
def test_tools_with_a_format(client, words):
    """The answer is calls, or it obeys the format; in every dialect."""
    form = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    form["additionalProperties"] = False
    ask = [{"role": "user", "content": words}]
    function = {"name": "add", "parameters": ADD}
    requests = {
        CHAT: {
            "messages": ask,
            "tools": [{"type": "function", "function": function}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": form},
            },
        },
        ITEMS: {
            "input": ask,
            "tools": [{"type": "function", **function}],
            "text": {"format": {"type": "json_schema", "name": "x", "schema": form}},
        },
        BLOCKS: {
            "messages": ask,
            "tools": [{"name": "add", "input_schema": ADD}],
            "output_format": {"type": "json_schema", "schema": form},
            "max_tokens": 90,
        },
    }
    for path, body in requests.items():
        limit = {CHAT: "max_tokens", ITEMS: "max_output_tokens", BLOCKS: "max_tokens"}[path]
        response = client.post(path, json=body | {limit: 90, "temperature": 0, "seed": 1})
        assert response.status_code == 200, response.text
        [said] = said_in(path, response.json())
        if words == "add" or (words == "text" and "add" in repr(said)):
            assert "add" in repr(said)
        else:
            [found] = [part for part in said if isinstance(part, str) and part.startswith("{")]
            assert set(json.loads(found)) == {"a"}


def test_a_begun_answer(client):
    """The reply is what follows; text and reply are one answer."""
    said = {"role": "assistant", "content": "an"}
    messages = [{"role": "user", "content": "a text"}, said]
    asked = {"messages": messages, "temperature": 0}
    answer = client.post(BLOCKS, json=asked | {"max_tokens": 9}).json()
    assert [block["text"] for block in answer["content"]] == [" answer"]
    going = asked | {"continue_final_message": True, "add_generation_prompt": False}
    prefixed = {"messages": [messages[0], said | {"prefix": True}], "temperature": 0}
    for body in (going, prefixed):
        message = client.post(CHAT, json=body).json()["choices"][0]["message"]
        assert message["content"] == " answer"
    refused = [
        (CHAT, asked | {"add_generation_prompt": False}),
        (CHAT, going | {"add_generation_prompt": True}),
        (CHAT, going | {"messages": messages[:1]}),
        (CHAT, going | {"messages": messages[1:]}),
        (CHAT, going | {"chat_template_kwargs": {"enable_thinking": True}}),
        (CHAT, going | {"messages": [messages[0], said | {"tool_calls": [MADE]}]}),
        (CHAT, going | {"response_format": {"type": "json_object"}}),
        (BLOCKS, asked | {"max_tokens": 9, "thinking": {"type": "adaptive"}}),
        (BLOCKS, asked | {"max_tokens": 9, "messages": messages[1:]}),
    ]
    for path, body in refused:
        assert client.post(path, json=body).status_code == 400, body


ESSAY = "the model answers the question that the model has: the answer is a text of the model"


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_prediction_changes_nothing_but_the_time(tokenizer, think, temperature):
    """Right, wrong in its middle, without its beginning, or another text altogether."""
    script = {"x": ("<think>\nwell\n</think>\n" if think else "") + ESSAY}
    backend = ScriptedBackend(tokenizer, script)
    wrong = ESSAY.replace("question that", "été of").replace("text", "日本")
    predictions = {"": 0, ESSAY: 30, wrong: 15, ESSAY[18:]: 20, "quite another": 0}
    with Engine(backend, tokenizer, drafter=PromptLookup) as engine, local(engine) as client:
        told = {}
        for content, least in predictions.items():
            before = len(backend.batches)
            said = [{"type": "text", "text": content}] if temperature else content
            body = {"messages": [{"role": "user", "content": "x"}], "temperature": temperature}
            body |= {"seed": 5, "logprobs": True, "reasoning_effort": "high" if think else "none"}
            body |= {"prediction": {"type": "content", "content": said}} if content else {}
            answer = client.post(CHAT, json=body).json()
            told[content] = answer["choices"]
            details = answer["usage"]["completion_tokens_details"]
            accepted, rejected = (
                details[f"{kind}_prediction_tokens"] for kind in ("accepted", "rejected")
            )
            assert accepted >= least
            assert (rejected > 0) == (content not in ("", ESSAY))
            if content == ESSAY:
                assert accepted > rejected
                assert len(backend.batches) - before < answer["usage"]["completion_tokens"] / 2
        assert told[""][0]["message"]["content"] == ESSAY
        assert all(choices == told[""] for choices in told.values())


def test_at_least_so_many_tokens(client):
    body = {"messages": [{"role": "user", "content": "a text"}], "temperature": 0}
    for least in (0, 3, 15):
        used = client.post(CHAT, json=body | {"min_tokens": least, "max_tokens": 20}).json()[
            "usage"
        ]
        assert used["completion_tokens"] >= least
    assert used["completion_tokens"] > 10  # beyond what the script says


def test_the_best_of_some(client):
    body = {"prompt": ["ab", "cd"], "max_tokens": 4, "temperature": 1, "seed": 7, "logprobs": 1}
    all_ = client.post(TEXTS, json=body | {"n": 4}).json()["choices"]
    best = client.post(TEXTS, json=body | {"n": 2, "best_of": 4}).json()
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    for i in range(2):
        likely = {c["text"]: sum(c["logprobs"]["token_logprobs"]) for c in all_[4 * i : 4 * i + 4]}
        expected = sorted(likely, key=likely.get, reverse=True)[:2]
        assert [choice["text"] for choice in best["choices"][2 * i : 2 * i + 2]] == expected
    assert best["usage"]["completion_tokens"] == 32
    nothing = body | {"n": 2, "best_of": 4, "max_tokens": 0, "echo": True}
    echoed = client.post(TEXTS, json=nothing).json()
    assert len(echoed["choices"]) == 4
    assert echoed["usage"]["prompt_tokens"] == best["usage"]["prompt_tokens"]
    for wrong in ({"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}):
        response = client.post(TEXTS, json=body | wrong)
        assert response.json()["error"]["param"] == "best_of"


# how it is said


LONG = "a long text " * 1600


def test_a_context_overflow_is_known_by_its_words(client):
    ask = [{"role": "user", "content": LONG}]
    for path, body in ((CHAT, {"messages": ask}), (ITEMS, {"input": LONG, "truncation": "auto"})):
        response = client.post(path, json=body)
        error = response.json()["error"]
        assert response.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert "maximum context length is 16384 tokens" in error["message"]
    response = client.post(BLOCKS, json={"messages": ask, "max_tokens": 8})
    found = re.fullmatch(
        r"prompt is too long: (\d+) tokens > (\d+) maximum", response.json()["error"]["message"]
    )
    assert int(found[1]) > int(found[2])


def test_an_overflow_is_known_by_its_message_alone(client):
    """As some clients tell nothing else of an error."""
    ask = [{"role": "user", "content": LONG}]
    for path, key in ((CHAT, "messages"), (ITEMS, "input")):
        message = client.post(path, json={key: ask}).json()["error"]["message"]
        assert "context_length_exceeded" in message
        assert "maximum context length" in message


def test_the_table_of_clients_has_what_the_script_tries():
    page = (ROOT / "docs" / "serving.md").read_text()
    found = page.split(try_clients.BEGIN)[1].split(try_clients.END)[0]
    works = {c: dict.fromkeys(c.features.split()) for c in try_clients.CLIENTS}
    assert found.strip() == try_clients.table(works)
    assert set(try_clients.FEATURES) == {f for features in works.values() for f in features}


def test_an_answer_may_ask_for_more_than_there_is_room_for(client):
    """Where the API makes it say how much: the rest of the room is what it gets."""
    path, body = BODIES["messages"]
    assert client.post(path, json=body | {"max_tokens": 999_999}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (ITEMS, {"input": [{"type": "function_call", "call_id": 1}]}, "input.0.call_id"),
        (ITEMS, {"input": [{"type": "function_call", "call_id": "1"}]}, "input.0.name"),
        (ITEMS, {"input": [{"type": "message", "role": "user"}]}, "input.0.content"),
        (ITEMS, {"input": [{"role": "x", "content": "a"}]}, "input.0.role"),
        (ITEMS, {"input": "a", "tools": [{"type": "function"}]}, "tools.0.name"),
        (ITEMS, {"input": "a", "tools": [{"type": "function", "name": "a", "x": 1}]}, "tools.0.x"),
        (ITEMS, {"input": "a", "tool_choice": {"type": "function"}}, "tool_choice.name"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "messages.0.content.0.type"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "messages.0.tool_call_id"),
        (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls.0.function"),
        (CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "messages.0: unknown role 'robot'"),
        (CHAT, {"messages": [{"content": "a"}]}, "messages.0: has no `role`"),
        (ITEMS, {"instructions": "a"}, "input"),
        (TEXTS, {"prompt": ["a", ""]}, "prompt.1: string"),
        (TEXTS, {"prompt": []}, "prompt: list should have at least 1 item"),
        (TEXTS, {"prompt": [[1], []]}, "prompt.1: list should"),
        (TEXTS, {"prompt": {"a": 1}}, "prompt: must be a text, a list of texts, token ids"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input.1: input should be a valid integer"),
        (CHAT, [], "the body must be a JSON object"),
        (BLOCKS, {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        (BLOCKS, {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "a"}]}]}, "messages.0.content.0.input"),
        (BLOCKS, {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "a"}]}, "tools.0.input_schema"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(client, path, body, field):
    body = body | {"max_tokens": 3} if path == BLOCKS else body
    response = client.post(path, json=body)
    assert response.status_code == 400, response.text
    named, message = field.partition(": ")[0], response.json()["error"]["message"]
    assert message.startswith(field if ": " in field or " " in field else f"{field}: "), message
    if path != BLOCKS:
        assert response.json()["error"]["param"] == (None if " " in named else named)


@pytest.mark.parametrize("half", [b"\\ud83d", b"\\uDE00", b"\xed\xa0\xbd"])
def test_half_a_character_stays_a_text(client, prompts, half):
    """Wherever it stands; a whole one and what only looks like one are left as they are."""
    for path, body in BODIES.values():
        spelled = json.dumps(body).replace("a text", r"😀 \\ud83d @ a text").encode()
        sent = spelled.replace(b"@", half)
        response = client.post(path, content=sent, headers={"content-type": "application/json"})
        assert response.status_code == 200, response.text
        assert "😀 \\ud83d � a text" in prompts[-1]
    tool = {"type": "function", "function": {"name": "add", "description": "@", "parameters": ADD}}
    made = {"name": "add", "arguments": '{"a": "@"}'}
    calls = [{"id": "@", "type": "function", "function": made}]
    said = {"role": "assistant", "content": "@", "tool_calls": calls, "reasoning_content": "@"}
    result = {"role": "tool", "tool_call_id": "@", "content": "@"}
    messages = [{"role": "user", "content": "a"}, said, result]
    body = json.dumps({"messages": messages, "tools": [tool], "stop": ["@"], "user": "@"})
    body = body.encode().replace(b"@", half)
    response = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text
