"""The Berkeley function-calling leaderboard (v4): its single-turn Python categories.

Data: the files of the package bfcl-eval. The checker judges calls by the rules of its AST checker:
the name, no unknown and no missing argument, types (an int may stand for a float), and values among
those that the file allows, texts without regard to case and punctuation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.local import read_text
from smollm3.eval.target import Answered, Ask, Prompt, Settings, ask_by
from smollm3.files import packaged_file

CATEGORIES = (
    "simple_python",
    "multiple",
    "parallel",
    "parallel_multiple",
    "irrelevance",
    "live_simple",
    "live_multiple",
    "live_parallel",
    "live_parallel_multiple",
    "live_irrelevance",
    "live_relevance",
)
_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_JSON_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string"}
_IGNORED = re.compile(r"[ ,./\-_*^]")
Call = tuple[str, Mapping[str, Any]]  # name, arguments


@dataclass(frozen=True)
class Question:
    """functions: as the file has them; answers: each {name: {argument: allowed values}}; None
    where no call is right (`calls` False) or any is (True)."""

    id: str
    messages: list[dict[str, Any]]
    functions: list[dict[str, Any]]
    answers: list[dict[str, Any]] | None
    calls: bool


def questions(category: str) -> list[Question]:
    """UserError where the package is not installed."""
    if category not in CATEGORIES:
        raise UserError(f"bfcl: {category!r} is not one of {', '.join(CATEGORIES)}")
    name = f"BFCL_v4_{category}.json"
    rows = list(json_rows(packaged_file("bfcl_eval", f"data/{name}")))
    relevance = "relevance" in category
    right = {}
    if not relevance:
        file = packaged_file("bfcl_eval", f"data/possible_answer/{name}")
        right = {row["id"]: row["ground_truth"] for row in json_rows(file)}
    calls = "irrelevance" not in category
    return [
        Question(r["id"], r["question"][0], r["function"], right.get(r["id"]), calls) for r in rows
    ]


def json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Of a file of bfcl-eval."""
    for line in read_text(file).split("\n"):
        if line.strip():
            yield json.loads(line)


def tool_name(name: str) -> str:
    """A function's name as models are shown it: without dots, as OpenAI's API wants it."""
    return name.replace(".", "_")


def tools(functions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As JSON Schemas, for the chat template."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool_name(function["name"]),
                "description": function["description"],
                "parameters": json_schema(function["parameters"]),
            },
        }
        for function in functions
    ]


def tool_messages(
    text: str, calls: Sequence[tuple[str, Any]], results: Sequence[str], step: int
) -> list[dict[str, Any]]:
    """An answer's calls (name as shown, arguments) and what they gave, as OpenAI's API spells it.
    step: of the conversation, from 1: the calls' ids are of it."""
    ids = [f"call_{step}_{i}" for i in range(len(calls))]
    made = [
        {
            "id": id_,
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for id_, (name, arguments) in zip(ids, calls, strict=True)
    ]
    told = [
        {"role": "tool", "tool_call_id": id_, "name": name, "content": result}
        for id_, (name, _), result in zip(ids, calls, results, strict=True)
    ]
    return [{"role": "assistant", "content": text, "tool_calls": made}, *told]


def json_schema(schema: Any) -> Any:
    """BFCL's types by their names in JSON Schema, at any depth."""
    if isinstance(schema, list):
        return [json_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, dict):  # whose names may be "type"
            out[key] = {name: json_schema(each) for name, each in value.items()}
        elif key == "type" and isinstance(value, str):
            out[key] = _JSON_TYPES.get(value, value)
        else:
            out[key] = json_schema(value)
    return out


def right(question: Question, calls: Sequence[Call]) -> bool:
    """Whether a model's calls answer a question."""
    if question.answers is None:
        return bool(calls) == question.calls
    if len(calls) != len(question.answers):
        return False
    described = {tool_name(f["name"]): f for f in question.functions}
    free = list(calls)
    for answer in question.answers:
        ((name, allowed),) = answer.items()
        function = described.get(tool_name(name))
        found = next((c for c in free if function and _fits(function, allowed, c)), None)
        if found is None:
            return False
        free.remove(found)
    return True


def _fits(function: Mapping[str, Any], allowed: Mapping[str, list[Any]], call: Call) -> bool:
    name, arguments = call
    parameters = function["parameters"]
    if name != tool_name(function["name"]):
        return False
    if any(needed not in arguments for needed in parameters.get("required", ())):
        return False
    for key, value in arguments.items():
        if key not in parameters["properties"] or key not in allowed:
            return False
        if not _value_fits(parameters["properties"][key], allowed[key], value):
            return False
    # What the file allows to be left out has "" among its values.
    return all(key in arguments or "" in values for key, values in allowed.items())


def _value_fits(schema: Mapping[str, Any], allowed: Sequence[Any], value: Any) -> bool:
    kind = schema["type"]
    wanted = _TYPES[kind]
    inner = _TYPES[schema["items"]["type"]] if kind in ("array", "tuple") else None
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if kind == "float" and type(value) is int:
        value = float(value)
    # A file that allows another type than the schema's means the name of a variable.
    meant = next((type(a) for a in allowed if a != ""), None)
    variable = meant is not None and meant is not wanted
    if type(value) is wanted:
        if inner is not None and not _items_fit(inner, allowed, value):  # type: ignore[arg-type]
            return False
    elif meant is not None and type(value) is meant:
        variable = True
    else:
        return False
    if variable:
        return value in allowed
    if wanted is dict:
        return any(_dict_fits(a, value) for a in allowed if a != "")
    if wanted is list and inner is dict:
        return any(_dicts_fit(a, value) for a in allowed)
    if wanted is str:
        return _plain(value) in [_plain(a) for a in allowed if type(a) is str]
    if wanted is list:
        return _plain_items(value) in [_plain_items(a) for a in allowed]
    return value in allowed


def _items_fit(inner: type, allowed: Sequence[Any], value: Sequence[Any]) -> bool:
    """Whether every item has the type `inner`, or that of the items of some allowed list."""
    for each in allowed:
        if type(each) is not list:
            return True
        meant = next((type(a) for a in each if a != ""), None)
        if all(type(item) is inner or type(item) is meant for item in value):
            return True
    return False


def _dict_fits(allowed: Mapping[str, Any], value: Any) -> bool:
    if type(value) is not dict:
        return False
    for key, each in value.items():
        if key not in allowed or _plain(each) not in [_plain(a) for a in _list(allowed[key])]:
            return False
    return all(key in value or "" in _list(values) for key, values in allowed.items())


def _list(allowed: Any) -> list[Any]:
    """The values that a file allows: a few places have the one value itself."""
    return allowed if isinstance(allowed, list) else [allowed]


def _dicts_fit(allowed: Sequence[Any], value: Sequence[Any]) -> bool:
    if len(allowed) != len(value):
        return False
    return all(a != "" and _dict_fits(a, v) for a, v in zip(allowed, value, strict=True))


def _plain(value: Any) -> Any:
    """A text without what makes no difference; anything else as it is."""
    if type(value) is not str:
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')


def _plain_items(value: Sequence[Any]) -> list[Any]:
    return [_plain(item) for item in value]


def samples(
    asked: Sequence[Question], settings: Settings, max_tokens: int, answer: Answered
) -> list[dict[str, Any]]:
    """Ask and judge: samples in the harness's form."""
    written = answer([_ask(question, settings, max_tokens) for question in asked])
    return [_judged(question, w) for question, w in zip(asked, written, strict=True)]


def _ask(question: Question, settings: Settings, max_tokens: int) -> Ask:
    prompt = Prompt(messages=tuple(question.messages), tools=tuple(tools(question.functions)))
    return ask_by(settings, prompt, max_tokens)


def _judged(question: Question, written: Mapping[str, Any]) -> dict[str, Any]:
    calls = [(call["name"], call["arguments"]) for call in written["calls"]]
    return {
        "doc_id": question.id,
        "doc": {"question": question.messages, "functions": question.functions},
        "target": question.answers if question.answers is not None else question.calls,
        "resps": [[written["text"]]],
        "filtered_resps": [written["calls"]],
        "filter": "none",
        "accuracy": float(right(question, calls)),
    }
