"""The text of one call, as models write it between its tags."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from smollm3.chat.tags import CALL

# Up to the first edge that is in no string of JSON.
TO_EDGE = re.compile(
    f'(?:[^"<]++|"(?:[^"\\\\]++|\\\\.)*+"|<(?!/?{CALL[1:]}))*+(?=</?{CALL[1:]})', re.DOTALL
)
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_DECODER = json.JSONDecoder()
DEEPEST = 500  # values in each other: how deep Python reads JSON differs by its version


def in_string(text: str) -> bool:
    """Whether a string of JSON is not closed."""
    return _ESCAPED.sub("", text).count('"') % 2 == 1


def read_call(body: str) -> tuple[str, str, int] | None:
    """Name and arguments (JSON) of a whole call as JSON, or as a Python dict, and where it ends:
    with the body, or before another object."""
    if not body.endswith("}"):
        return None
    length = len(body)
    try:
        value, length = _DECODER.raw_decode(body)
    except (ValueError, RecursionError):
        value = _python_literal(body)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if body[length:].lstrip()[:1] not in ("", "{"):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        return value["name"], arguments, length
    try:
        text = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):  # a Python literal can hold sets and bytes
        return None
    return None if json_object(text) is None else (value["name"], text, length)


def _python_literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's, of odd escapes
            return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def json_object(text: str) -> dict[str, Any] | None:
    """The object, if it is one that can be passed on: no NaN, infinities or lone surrogates, and
    not too deep."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and is_shallow(value) else None


def is_shallow(value: Any) -> bool:
    """Whether a JSON value has at most `DEEPEST` values in each other."""
    level = [value]
    for _ in range(DEEPEST):
        if not any(isinstance(x, dict | list) for x in level):
            return True
        level = inside(level)
    return False


def inside(level: list[Any]) -> list[Any]:
    """What the lists and objects among these values hold."""
    return [
        item
        for container in level
        if isinstance(container, dict | list)
        for item in (container.values() if isinstance(container, dict) else container)
    ]
