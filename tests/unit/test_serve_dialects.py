"""All dialects give the same message, and in each of them a stream adds up to the whole answer."""

import json

import anthropic.types
import jsonschema
import openai.types
import openai.types.chat
import openai.types.responses
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic_core import from_json
from tests.support.serving import added_up, events, local, speaking

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "say", "arguments": {"text": "été"}}\n</tool_call>'
SCRIPT = {
    "greet": "<think>\nwho is it\n</think>\nhello there, été 日本",
    "call": f"<think>\na sum\n</think>\nwait\n{CALL}\n{OTHER}",
    "only": CALL,
    "json": '{"a": 12}',
    "count": "one two three four five",
    "empty": "",
}
ADD = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
SAY = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
TOOLS = [("add", ADD), ("say", SAY)]


@pytest.fixture(scope="module")
def client(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine, local(engine) as client:
        yield client


# One request in the words of each dialect. choice: none, auto, required or a tool's name.


def chat_body(words, think, choice, schema, stop, limit, parallel):
    body = {"messages": [{"role": "user", "content": words}]}
    body["reasoning_effort"] = "high" if think else "none"
    if choice:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "parameters": schema}}
            for name, schema in TOOLS
        ]
        named = {"type": "function", "function": {"name": choice}}
        body["tool_choice"] = choice if choice in ("none", "auto", "required") else named
    if schema:
        form = {"name": "x", "schema": schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    body |= {"stop": stop} if stop else {}
    body |= {} if parallel else {"parallel_tool_calls": False}
    return body | {"max_tokens": limit}


def responses_body(words, think, choice, schema, stop, limit, parallel):
    body = {"input": words, "reasoning": {"effort": "high" if think else "none"}}
    if choice:
        body["tools"] = [
            {"type": "function", "name": name, "parameters": schema} for name, schema in TOOLS
        ]
        named = {"type": "function", "name": choice}
        body["tool_choice"] = choice if choice in ("none", "auto", "required") else named
    if schema:
        body["text"] = {"format": {"type": "json_schema", "name": "x", "schema": schema}}
    body |= {} if parallel else {"parallel_tool_calls": False}
    return body | {"max_output_tokens": limit}


def messages_body(words, think, choice, schema, stop, limit, parallel):
    body = {"messages": [{"role": "user", "content": words}]}
    body["thinking"] = {"type": "adaptive" if think else "disabled"}
    if choice:
        body["tools"] = [{"name": name, "input_schema": schema} for name, schema in TOOLS]
        kind = {"none": "none", "auto": "auto", "required": "any"}.get(choice)
        body["tool_choice"] = {"type": kind} if kind else {"type": "tool", "name": choice}
        if not parallel and kind != "none":
            body["tool_choice"]["disable_parallel_tool_use"] = True
    if schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    body |= {"stop_sequences": [stop]} if stop else {}
    return body | {"max_tokens": limit}


# What each dialect's answer says: reasoning, content, calls, why it ended.


def partial(text):
    """Arguments of a call, perhaps cut off, as Anthropic's client reads them."""
    return from_json(text or "{}", allow_partial=True)


def chat_message(answer):
    openai.types.chat.ChatCompletion.model_validate(answer, strict=True)
    [choice] = answer["choices"]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        message.get("reasoning_content", ""),
        message["content"] or "",
        [(call["name"], partial(call["arguments"])) for call in calls],
        choice["finish_reason"],
    )


def responses_message(answer):
    openai.types.responses.Response.model_validate(answer)
    texts, calls = {"reasoning": "", "message": ""}, []
    for item in answer["output"]:
        if item["type"] == "function_call":
            calls.append((item["name"], partial(item["arguments"])))
        else:
            texts[item["type"]] += "".join(part["text"] for part in item["content"])
    done = "tool_calls" if calls else "stop"
    ended = {"incomplete": "length"}.get(answer["status"], done)
    return texts["reasoning"], texts["message"], calls, ended


def messages_message(answer):
    anthropic.types.Message.model_validate(answer)
    texts, calls = {"thinking": "", "text": ""}, []
    for block in answer["content"]:
        if block["type"] == "tool_use":
            calls.append((block["name"], block["input"]))
        else:
            texts[block["type"]] += block[block["type"]]
    reasons = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
    ended = reasons.get(answer["stop_reason"], "tool_calls")
    return texts["thinking"], texts["text"], calls, ended


# The same of what a stream adds up to.


def chat_stream(response):
    chunks, done = events(response)
    assert done
    for chunk in chunks:
        openai.types.chat.ChatCompletionChunk.model_validate(chunk)
    [choice] = added_up(chunks)
    message = choice["message"]
    calls = [(call["name"], partial(call["arguments"])) for call in message.get("tool_calls", ())]
    texts = message.get("reasoning_content", ""), message.get("content", "")
    return *texts, calls, choice["finish_reason"]


EVENT = pydantic.TypeAdapter(ResponseStreamEvent)


def responses_stream(response):
    told, _ = events(response)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    assert [event["type"] for event in told[:2]] == ["response.created", "response.in_progress"]
    items = []
    for event in told:
        EVENT.validate_python(event)
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(items)
                items.append([event["item"]["id"], ""])
            case "response.reasoning_text.delta" | "response.output_text.delta":
                assert event["item_id"] == items[-1][0]
                items[-1][1] += event["delta"]
            case "response.function_call_arguments.delta":
                items[-1][1] += event["delta"]
            case "response.output_item.done":
                item = event["item"]
                texts = [part["text"] for part in item.get("content", ())]
                assert "".join([*texts, item.get("arguments", "")]) == items[-1][1]
    last = told[-1]
    assert [item["id"] for item in last["response"]["output"]] == [id for id, _ in items]
    return responses_message(last["response"])


def messages_stream(response):
    told, _ = events(response)
    message, texts = told[0]["message"], []
    for event in told[1:]:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(message["content"])
                message["content"].append(event["content_block"])
                texts.append("")
            case "content_block_delta":
                delta = event["delta"]
                if delta["type"] == "signature_delta":
                    message["content"][-1]["signature"] += delta["signature"]
                else:
                    texts[-1] += delta.get("text") or delta.get("thinking") or delta["partial_json"]
            case "message_delta":
                message |= event["delta"] | {"usage": message["usage"] | event["usage"]}
    assert told[-1]["type"] == "message_stop"
    for block, text in zip(message["content"], texts, strict=True):
        match block["type"]:
            case "tool_use":
                block["input"] = partial(text)
            case kind:
                block[kind] = text
    return messages_message(message)


DIALECTS = {
    "/v1/chat/completions": (chat_body, chat_message, chat_stream),
    "/v1/responses": (responses_body, responses_message, responses_stream),
    "/v1/messages": (messages_body, messages_message, messages_stream),
}
STOPS = {"/v1/chat/completions", "/v1/messages"}
OBJECT = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 99}},
    "required": ["a"],
    "additionalProperties": False,
}


CHOICES = ("auto", "required", "say")


def told(client, *case):
    """What every dialect says to one request, whole and streamed."""
    found = {}
    for path, (make, whole, stream) in DIALECTS.items():
        if case[4] and path not in STOPS:
            continue
        body = make(*case) | {"temperature": 0, "seed": 5}
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        found[path] = whole(response.json())
        found[path, "stream"] = stream(client.post(path, json=body | {"stream": True}))
    return found


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize(
    ("words", "choice", "schema", "stop", "limit", "parallel"),
    [
        ("greet", None, None, None, 200, True),
        ("greet", None, None, "there", 200, True),
        ("greet", None, None, None, 9, True),
        ("empty", None, None, None, 200, True),
        ("json", None, OBJECT, None, 200, True),
        ("json", None, OBJECT, "12", 200, True),
        ("json", "none", OBJECT, None, 200, True),
        ("call", "none", None, None, 90, True),
        *[("call", choice, None, None, 200, True) for choice in CHOICES],
        *[("call", choice, None, "wait", 200, False) for choice in CHOICES],
        *[
            pytest.param("call", choice, None, *rest, marks=pytest.mark.slow)
            for choice in CHOICES
            for rest in (("wait", 200, True), (None, 200, False), ("wait", 40, True))
        ],
    ],
)
def test_one_message_in_every_dialect(client, words, think, choice, schema, stop, limit, parallel):
    found = told(client, words, think, choice, schema, stop, limit, parallel)
    messages = set(map(repr, found.values()))
    assert len(messages) == 1, found
    reasoning, content, calls, ended = next(iter(found.values()))
    if not think:
        assert reasoning == ""
    if choice in ("required", "say") and ended != "length":
        assert calls
        assert content == ""
        assert ended == "tool_calls"
    if choice in (None, "none"):
        assert not calls
    if not parallel:
        assert len(calls) <= 1
    if choice == "say" and calls:
        assert {name for name, _ in calls} == {"say"}
    for name, arguments in calls if ended != "length" else ():
        assert set(arguments) == set(dict(TOOLS)[name]["required"])
    if schema and not stop:
        jsonschema.validate(json.loads(content), schema)
    if stop and not calls:
        assert stop not in content
