"""What clients send: recorded requests, fields by the rule, and histories in every spelling."""

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
from anthropic.types.beta import message_count_tokens_params, message_create_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params
from tests.support.serving import Settings, events, local, speaking

from smollm3.infer.backends import BLOCK
from smollm3.serve.dialects import rule
from smollm3.serve.dialects.anthropic_body import CountBody, MessagesBody
from smollm3.serve.dialects.openai_chat_body import ChatBody
from smollm3.serve.dialects.openai_completions import CompletionBody
from smollm3.serve.dialects.openai_items import ResponseBody

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
            (item["type"], item.get("name"), item.get("arguments"), texts(item.get("content")))
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
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        plain = [message.get(key) or "" for key in ("content", "reasoning_content", "text")]
        told.append((*plain, [(call["name"], call["arguments"]) for call in calls]))
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
            {"type": "function_call_output", "call_id": item["call_id"], "output": "42"}
            for item in answer["output"]
            if item["type"] == "function_call"
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
    text = {"type": "text", "text": "a text"}
    user = {"role": "user", "content": [text | given]}
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
        case "content":
            yield CHAT, {"messages": [user]}, name
            yield BLOCKS, {"messages": [user], "max_tokens": 8}, name
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
    ],
)
def test_every_parameter_of_the_vendors_libraries_is_decided(place, model, params):
    """Read, accepted or turned away with its reason; these two are headers."""
    known = set(model.model_fields) | set(rule.rows(place)) | {"workspace_id", "echo"}
    assert set(params.__annotations__) <= known


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
