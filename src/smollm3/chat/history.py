"""Conversations as data sets and OpenAI's API write them, brought into the form a template reads.

Not every template prints all of a conversation: some pass over calls, reasoning and the results of
tools in silence, or want contents in parts. So a template is tried once with a marker in each, and
what it does not print is written into the text that it does print, as our own template would:

- reasoning in front of the content, between <think> and </think>, if these are tokens;
- calls behind the content, each between <tool_call> and </tool_call>, or <code> and </code>;
- results of tools as one turn of the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from smollm3.chat.message import Message
from smollm3.chat.tags import CALL, CODE, END_CALL, END_CODE, END_THINK, PYTHON, THINK
from smollm3.errors import UserError

SYSTEMS = ("system", "developer")
ROLES = (*SYSTEMS, "user", "assistant", "tool")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_MARK = "smollm3marker"

Chat = list[dict[str, Any]]


@dataclass(frozen=True)
class Reads:
    """What a template prints: contents as texts, or only as lists of parts; calls with arguments
    as objects, as JSON text, or not at all; reasoning; results of tools; system messages behind
    others."""

    parts: bool
    calls: Literal["object", "text"] | None
    reasoning: bool
    results: bool
    systems: bool


def probe(run: Callable[[Chat], str]) -> Reads:
    """run: renders messages, to "" if the template refuses them."""
    parts = False

    def printed(*messages: dict[str, Any]) -> str:
        chat = [{"role": "user", "content": "?"}, *messages]
        return run([_in_parts(message) for message in chat] if parts else chat)

    def prints(*messages: dict[str, Any]) -> bool:
        return _MARK in printed(*messages)

    def call(arguments: Any) -> dict[str, Any]:
        function = {"name": "f", "arguments": arguments}
        # Some templates insist on nine letters and digits.
        calls = [{"id": "call00001", "type": "function", "function": function}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    answer = {"role": "assistant", "content": _MARK}
    if not prints(answer):
        parts = True
        parts = prints(answer)
    as_object, as_text = call({_MARK: 1}), call(json.dumps({_MARK: 1}))
    calls: Literal["object", "text"] | None = None
    if prints(as_object) and f"{{'{_MARK}'" not in printed(as_object):  # not as Python's repr
        calls = "object"
    elif prints(as_text):
        calls = "text"
    caller = {"object": as_object, "text": as_text, None: answer | {"content": "!"}}[calls]
    result = {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": _MARK}
    thought = {"role": "assistant", "content": "!", **dict.fromkeys(_REASONING, _MARK)}
    later = {"role": "system", "content": _MARK}
    return Reads(
        parts,
        calls,
        reasoning=prints(thought),
        results=prints(caller, result),
        systems=prints({"role": "assistant", "content": "!"}, later),
    )


def normal(index: int, message: Mapping[str, Any] | Message) -> dict[str, Any]:
    """A message with one text as its content, and its calls as {"function": {"name", "arguments":
    an object if it is one}}."""
    chat = as_given(index, message)
    if chat.get("role") not in ROLES:
        raise UserError(f"message {index}: the role must be one of {', '.join(ROLES)}")
    content = chat.get("content", "")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_text_part(index, part) for part in content)
    chat["content"] = _text_part(index, content)
    if calls := chat.get("tool_calls"):
        calls = calls if isinstance(calls, Sequence) else [calls]
        chat["tool_calls"] = [_normal_call(index, call) for call in calls]
    return chat


def as_given(index: int, message: Mapping[str, Any] | Message) -> dict[str, Any]:
    """A message as it is, but without None, and with reasoning under the names that templates know:
    what transformers shows them."""
    if isinstance(message, Message):
        message = message.to_dict()
    if not isinstance(message, Mapping):
        raise UserError(f"message {index}: must be a mapping with role and content")
    given = {key: value for key, value in message.items() if value is not None}
    for key in _REASONING:
        if key in given:
            return {"thinking": given[key], **given, "reasoning_content": given[key]}
    return given


def is_system(message: Mapping[str, Any]) -> bool:
    return message["role"] in SYSTEMS


def gathered(chat: Chat, in_place: bool) -> Chat:
    """The system messages as one, in front: all of them or, where the template prints later ones,
    those that come first."""
    count = next((i for i, m in enumerate(chat) if not is_system(m)), len(chat))
    first = chat[:count] if in_place else [message for message in chat if is_system(message)]
    rest = chat[count:] if in_place else [message for message in chat if not is_system(message)]
    if not first:
        return rest
    texts = [message["content"] for message in first if message["content"]]
    return [{**first[0], "content": "\n\n".join(texts)}, *rest]


def rewrite(chat: Chat, reads: Reads, python: bool) -> Chat:
    """The same conversation in what the template prints. python: tools are called as code."""
    messages = [_rewritten(message, reads, python) for message in chat]
    if not reads.results:
        messages = _results_as_user(messages)
    return [_in_parts(message) for message in messages] if reads.parts else messages


def _results_as_user(chat: Chat) -> Chat:
    messages: Chat = []
    for is_result, group in groupby(chat, lambda message: message["role"] == "tool"):
        if is_result:
            results = "\n".join(message["content"] for message in group)
            messages.append({"role": "user", "content": results})
        else:
            messages.extend(group)
    return messages


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": [{"type": "text", "text": message["content"]}]}


def _rewritten(message: dict[str, Any], reads: Reads, python: bool) -> dict[str, Any]:
    message = dict(message)
    reasoning = message.get("reasoning_content")
    if reasoning and not reads.reasoning and not message["content"].startswith(THINK):
        message["content"] = f"{THINK}\n{reasoning}\n{END_THINK}\n{message['content']}"
    calls = message.get("tool_calls")
    if calls and reads.calls is None:
        del message["tool_calls"]
        blocks = [_block(call["function"], python) for call in calls]
        message["content"] = "\n".join(filter(None, [message["content"], *blocks]))
    elif calls and reads.calls == "text":
        message["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _json(call["function"])}}
            for call in calls
        ]
    return message


def _block(function: dict[str, Any], python: bool) -> str:
    """A call as our template writes it."""
    name, arguments = function["name"], function["arguments"]
    if python and name == PYTHON and isinstance(arguments, dict) and [*arguments] == ["code"]:
        return f"{CODE}\n{arguments['code']}\n{END_CODE}"
    name = json.dumps(name, ensure_ascii=False)
    call = f'{{"name": {name}, "arguments": {_json(function)}}}'
    return f"{CALL}\n{call}\n{END_CALL}"


def _json(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _normal_call(index: int, call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f'message {index}: a tool call must be {{"function": {{"name", ...}}}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    outer = {"type": "function", **call} if function is not call else {"type": "function"}
    function = {**function, "arguments": {} if arguments is None else arguments}
    return {**outer, "function": function}


def _text_part(index: int, part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise UserError(f"message {index}: content must be a text or a list of text parts")
    return text
