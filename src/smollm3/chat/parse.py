"""From what a model wrote in its turn to a message: reasoning, content, tool calls."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from smollm3.chat.message import Message, ToolCall

_THINK = re.compile(r"\s*<think>(.*?)(?:</think>|\Z)", re.DOTALL)
_JSON = json.JSONDecoder()
_OPEN_CALL = re.compile(r"\s*(?={)")
_END = re.compile(r"</tool_call>|(?=<tool_call>)|\Z")
_CLOSE_CALL = re.compile(rf"\s*(?:{_END.pattern})")


def parse(text: str, *, xml: bool = True, python: bool = False) -> Message:
    """Read the text of an assistant's turn, from after its header to before its stop token.

    A reasoning block comes first, closed or not; what it says is never a call. Then calls are
    looked for in the styles that were offered: `xml` `<tool_call>{"name", "arguments"}</tool_call>`
    (JSON, or a Python dict), `python` `<code>...</code>`, a call of the tool `python` with
    {"code": ...}. A block may be unclosed. A block that is no call stays in the content.
    """
    reasoning = None
    if think := _THINK.match(text):
        reasoning = think[1].strip("\n") or None
        text = text[think.end() :]
    openings = [tag for tag, offered in (("<tool_call>", xml), ("<code>", python)) if offered]
    content, calls, position = "", [], 0
    while opening := _first(text, openings, position):
        begin, tag = opening
        content += text[position:begin]
        position = begin + len(tag)
        found = (_xml_call if tag == "<tool_call>" else _python_call)(text, position)
        if found:
            call, position = found
            calls.append(call)
        else:
            content += tag
    content += text[position:]
    return Message("assistant", content.strip("\n"), reasoning, tuple(calls))


def _first(text: str, tags: list[str], position: int) -> tuple[int, str] | None:
    """Where the first of the tags begins, and which it is."""
    found = [(begin, tag) for tag in tags if (begin := text.find(tag, position)) >= 0]
    return min(found, default=None)


def _xml_call(text: str, begin: int) -> tuple[ToolCall, int] | None:
    """The call written at `begin` and where its block ends."""
    opening = _OPEN_CALL.match(text, begin)
    if not opening:
        return None
    begin = opening.end()
    try:
        # Not up to the next closing tag: an argument may quote one.
        value, end = _JSON.raw_decode(text, begin)
        closed = _CLOSE_CALL.match(text, end)
    except (ValueError, RecursionError):
        closed = None
    if closed:
        end = closed.end()
    else:
        edge = next(_END.finditer(text, begin))  # matches at the latest at the text's end
        end = edge.end()
        try:
            value = ast.literal_eval(text[begin : edge.start()].strip())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None
    call = _tool_call(value)
    return (call, end) if call else None


def _tool_call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    try:
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        json.dumps(arguments, allow_nan=False)  # a Python literal can hold sets, bytes, 1e999
    except (ValueError, TypeError, RecursionError):
        return None
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _python_call(text: str, begin: int) -> tuple[ToolCall, int] | None:
    code, tag, _ = text[begin:].partition("</code>")
    if not code.strip():
        return None
    return ToolCall("python", {"code": code.strip("\n")}), begin + len(code) + len(tag)
