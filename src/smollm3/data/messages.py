"""One message of anybody's data set in one form: {"role", "content", "reasoning_content",
"tool_calls", "tool_call_id", "name", "train"}, of which only the first two are always there.

`train: False` marks an assistant's message that is context and no example (OpenAI's `weight: 0`).
What cannot be read in one way only is `Damaged`, so that its row is counted and not guessed at.
"""

from __future__ import annotations

import ast
import datetime
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

from smollm3.chat.calls import is_shallow
from smollm3.chat.tags import CALL, CODE, END_MARKS

Messages = list[dict[str, Any]]
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_CALLERS = {"function_call", "tool_call"}  # ShareGPT's words for an answer that is a call
_REASONING = ("reasoning_content", "thinking", "reasoning")
_CONTENT = ("content", "value", "text")
_MAX_PYTHON = 1 << 20  # characters; Python's parser takes a hundred times as much memory
_TRAINED = ("train", "training")
_OTHERS = (
    *("role", "from", "sender", "refusal", "tool_calls", "function_call", "tool_call_id", "name"),
    "weight",
)
KEYS = frozenset((*_CONTENT, *_REASONING, *_TRAINED, *_OTHERS))  # of a message that are read


class Damaged(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def normal_messages(value: Any) -> Messages:
    """The messages of a list, of one message, or of the JSON text of either."""
    value = from_json(value)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, str) and value.strip():
        raise Damaged("messages that are a text and no JSON")
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Damaged("without messages")
    messages = [_normal(message) for message in value]
    _check_results(messages)
    return messages


def from_json(value: Any) -> Any:
    """What a text of JSON spells, also where that is such a text again; others as they are."""
    for _ in range(3):
        if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{", '"')):
            return value
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _from_python(value)
    return value


def _from_python(text: str) -> Any:
    """Lists and dicts as Python writes them, which is how pandas puts them into CSV files."""
    if len(text) > _MAX_PYTHON or not text.lstrip().startswith(("[{'", "{'")):
        return text
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _normal(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise Damaged("a message that is no object")
    given = {key: value for key, value in given.items() if not is_absent(value)}
    said = given.get("role", given.get("from", given.get("sender")))
    role = _role(said)
    message: dict[str, Any] = {"role": role}
    raw = next((given[key] for key in _CONTENT if key in given), None)
    content, thought = _content(raw if raw is not None else given.get("refusal"), role)
    calls: list[dict[str, Any]] = []
    if role == "assistant":
        if str(said).strip().lower() in _CALLERS:
            calls, content = _calls(content), ""
        calls += _calls(given.get("tool_calls"))
        calls += _calls(given.get("function_call"))
        reasoning = next((given[key] for key in _REASONING if given.get(key)), thought)
        if reasoning is not None and not isinstance(reasoning, str):
            raise Damaged("reasoning that is no text")
        content = without_end_marks(content)
        if reasoning and reasoning.strip():
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        if not _is_trained(given) or not (content.strip() or reasoning or calls):
            message["train"] = False  # an empty answer would teach to say nothing
    message["content"] = content
    for key in ("tool_call_id", "name"):
        if isinstance(given.get(key), str):
            message[key] = given[key]
    return message


def is_absent(value: Any) -> bool:
    """None, and what programs for tables write for it: NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _role(said: Any) -> str:
    if not isinstance(said, str):
        raise Damaged("a message without a role")
    role = ROLES.get(said.strip().lower())
    if role is None:
        close = get_close_matches(said.strip().lower(), ROLES, 1)
        hint = f" (did you mean {ROLES[close[0]]}?)" if close else ""
        raise Damaged(f"the unknown role {said[:30]!r}{hint}")
    return role


def _is_trained(given: Mapping[str, Any]) -> bool:
    for key in _TRAINED:
        if key in given:
            if not isinstance(given[key], bool):
                raise Damaged(f"{key}: must be true or false")
            return bool(given[key])
    weight = given.get("weight", 1)
    if isinstance(weight, bool) or weight not in (0, 1):
        raise Damaged("weight: must be 0 or 1")
    return bool(weight)


def _content(value: Any, role: str) -> tuple[str, str | None]:
    """The text of a content, and reasoning that stands in parts of their own."""
    if value is None:
        return "", None
    if isinstance(value, bytes):
        return _decoded(value), None
    if isinstance(value, str):
        return value, None
    if role == "tool" and not _is_parts(value):
        return json.dumps(plain(value), ensure_ascii=False), None
    parts = [value] if isinstance(value, Mapping) else value
    if not isinstance(parts, Sequence):
        raise Damaged(f"a content that is no text ({type(value).__name__})")
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        kind, text = _part(part)
        if not isinstance(text, str):
            raise Damaged(f"a content that is no text ({kind[:30]})")
        (thoughts if kind in ("thinking", "reasoning") else texts).append(text)
    return "".join(texts), "".join(thoughts) or None


def _part(part: Any) -> tuple[str, Any]:
    """(type, text) of a part of a content."""
    if not isinstance(part, Mapping):
        return ("text" if isinstance(part, str) else type(part).__name__), part
    kind = str(part.get("type") or "text")
    key = kind if kind in ("refusal", "thinking", "reasoning") else "text"
    return kind, part.get(key, part.get("content"))


def _is_parts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(part, str) or (isinstance(part, Mapping) and "type" in part) for part in value
    )


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("bytes that are no text") from None


def without_end_marks(content: str) -> str:
    """A content without the end of a turn that some data sets leave in it."""
    shorter = content.rstrip()
    ends = [mark for mark in END_MARKS if shorter.endswith(mark) and "<s>" not in content]
    return without_end_marks(shorter.removesuffix(ends[0])) if ends else content


# Tools


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls in OpenAI's form; arguments as an object, or as the text that is none."""
    if value is None or value == "":
        return []
    value = from_json(value)
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise Damaged("a tool call that is no object")
    return [_call(call) for call in map(from_json, calls)]


def _call(call: Any) -> dict[str, Any]:
    function = from_json(call.get("function", call)) if isinstance(call, Mapping) else None
    if isinstance(function, str) and isinstance(call, Mapping):
        function = {**call, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Damaged("a tool call without a name")
    arguments = function.get("arguments", function.get("parameters", function.get("input")))
    arguments = from_json(arguments)
    if arguments is None or arguments == "":
        arguments = {}
    arguments = _from_pairs(arguments)
    if not isinstance(arguments, Mapping | str):
        raise Damaged("arguments of a tool call that are no object")
    if not is_shallow(arguments):
        raise Damaged("arguments of a tool call that are nested too deeply")
    normal: dict[str, Any] = {"type": "function"}
    if isinstance(call.get("id"), str):
        normal = {"id": call["id"], **normal}
    return {**normal, "function": {"name": function["name"], "arguments": plain(arguments)}}


def _from_pairs(value: Any) -> Any:
    """Arrow writes a map as a list of its pairs."""
    pairs = isinstance(value, list | tuple) and all(
        isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in value
    )
    return dict(value) if pairs and value else value


def normal_tools(value: Any) -> list[Any] | None:
    """Tools of a row, as dicts or as texts that are shown as they are; None for no tools."""
    value = from_json(value)
    if is_absent(value) or value in ("", [], {}):
        return None
    tools = [value] if isinstance(value, Mapping | str) else value
    if not isinstance(tools, Sequence) or not all(isinstance(t, str | Mapping) for t in tools):
        raise Damaged("tools that are no objects")
    return [tool if isinstance(tool, str) else _schema(plain(tool)) for tool in tools]


def _schema(value: Any) -> Any:
    """A tool's description without the nulls that Arrow adds: a schema has one only as a value."""
    if isinstance(value, dict):
        return {
            key: _schema(_from_pairs(item) if key == "properties" else item)
            for key, item in value.items()
            if item is not None or key in ("default", "const")
        }
    return [_schema(item) for item in value] if isinstance(value, list) else value


def without_padding(messages: Messages, tools: list[Any] | None) -> Messages:
    """The messages without arguments that are null although their tool's schema allows none: the
    members that Arrow adds because another call has them."""
    known: dict[str, Any] = {}
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else {}
        if isinstance(function, dict) and isinstance(function.get("parameters"), dict):
            known[str(function.get("name"))] = function["parameters"]
    for call in (call for message in messages for call in message.get("tool_calls", ())):
        function = call["function"]
        schema, arguments = known.get(function["name"]), function["arguments"]
        if schema is not None and isinstance(arguments, dict):
            function["arguments"] = {
                key: value
                for key, value in arguments.items()
                if value is not None or _may_be_null(schema, key)
            }
    return messages


def _may_be_null(schema: dict[str, Any], key: str) -> bool:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return True
    if key not in properties:
        return False
    return key in (schema.get("required") or ()) or "null" in json.dumps(properties[key])


def _check_results(messages: Messages) -> None:
    """A result answers a call that came before it."""
    called, ids = False, set()
    for message in messages:
        if message["role"] == "assistant":
            calls = message.get("tool_calls", ())
            content = message["content"]
            called |= bool(calls) or any(t in content for t in (CALL, CODE, "<function"))
            ids |= {call["id"] for call in calls if "id" in call}
        elif message["role"] == "tool":
            if not called:
                raise Damaged("a tool's result before any call")
            if ids and "tool_call_id" in message and message["tool_call_id"] not in ids:
                raise Damaged("a tool's result whose tool_call_id no call has")


# Values


def plain(value: Any) -> Any:
    """A value in JSON's types: dates as ISO texts, decimals as numbers, bytes as their text."""
    match value:
        case None | bool() | str() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise Damaged("a number that JSON has not (NaN or Infinity)")
            return value
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return _decoded(value)
    raise Damaged(f"a value that JSON has not ({type(value).__name__})")


def without_nulls(value: Any) -> Any:
    """A value of Arrow's without the members that it adds: the columns of a struct are there in
    every row, null where the row had none."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value
