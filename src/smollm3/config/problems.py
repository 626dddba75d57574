"""What is wrong with a value from outside: pydantic's errors as places and plain sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

Path = tuple[str | int, ...]


LONGEST_WORD = 100  # characters of a key; comparing takes time by their square


@dataclass(frozen=True)
class Problem:
    """path: keys and indexes that lead to it in the value; empty: the value as a whole.

    message: what is wrong there, a phrase that stands behind the path.
    value: what stands there; quotes: whether it belongs into the line.
    """

    kind: Literal["unknown", "missing", "invalid"]
    path: Path
    message: str
    value: Any = None
    quotes: bool = False

    @property
    def key(self) -> str:
        """The path with dots: stages.sft.lr.peak."""
        return ".".join(map(str, self.path))


def problems(errors: Sequence[Any], value: Any, model: Any = None) -> list[Problem]:
    """Pydantic's `errors` about `value`, the most telling first.

    Where a value could have had one of several forms, the telling error lies deepest: it belongs to
    the form that fits best. A misspelt key is also a missing one; its spelling is what helps.
    model: what was to be made of the value; with it an unknown key gets a suggestion.
    """
    found = [_problem(error, value, model) for error in errors]
    return sorted(found, key=lambda p: (-len(p.path), p.kind != "unknown"))


def suggestion(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' where something known is close."""
    close = difflib.get_close_matches(word, list(known), n=1) if len(word) <= LONGEST_WORD else []
    return f"; did you mean '{close[0]}'?" if close else ""


def _problem(error: Any, value: Any, model: Any) -> Problem:
    loc, kind, context = error["loc"], error["type"], error.get("ctx", {})
    path = _path(loc, value, kind == "missing")
    match kind:
        case "extra_forbidden":
            known = suggestion(str(loc[-1]), _keys(model, path[:-1], value))
            return Problem("unknown", path, f"unknown key{known}")
        case "missing":
            return Problem("missing", path, "is required")
        case "union_tag_invalid":
            expected = context["expected_tags"].replace("'", "").split(", ")
            hint = suggestion(str(context["tag"]), expected)
            name = context["discriminator"].strip("'")
            message = f"unknown {name} '{context['tag']:.100}'{hint}; known: {', '.join(expected)}"
        case "union_tag_not_found":
            message = f"has no `{context['discriminator'].strip(chr(39))}`"
        case "value_error":
            message = str(context["error"])
        case _:
            said = error["msg"].replace("tuple", "list")
            message = f"{said[0].lower()}{said[1:]}"
            return Problem("invalid", path, message, error["input"], quotes=True)
    return Problem("invalid", path, message)


def _path(loc: Sequence[int | str], value: Any, missing: bool) -> Path:
    """pydantic's location without the names of types and tags that it puts between keys.

    missing: its last part is a key that the value has not.
    """
    path: list[str | int] = []
    for part in loc[: len(loc) - missing]:
        if part in value if isinstance(value, dict) else _is_index(part, value):
            path.append(part)
            value = value[part]
    return (*path, *loc[len(loc) - missing :])


def _is_index(part: int | str, value: Any) -> bool:
    return isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)


def _keys(model: Any, path: Path, value: Any) -> list[str]:
    """The keys that `model` allows in `value` at `path`; none where there is no model."""
    forms = _forms(model)
    for part in path:
        inside = [_inside(form, part) for form in forms if _fits(form, value)]
        forms = [form for forms in inside for form in forms]
        value = value[part]
    fitting = [form for form in forms if _fits(form, value) and hasattr(form, "model_fields")]
    return [field.alias or name for form in fitting for name, field in form.model_fields.items()]


def _forms(annotation: Any) -> list[Any]:
    """The types that an annotation allows."""
    if get_origin(annotation) is Annotated:
        return _forms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [form for option in get_args(annotation) for form in _forms(option)]
    return [annotation]


def _inside(form: Any, part: int | str) -> list[Any]:
    """The types of what stands at `part` in a value of this type."""
    if hasattr(form, "model_fields"):
        found = [f for name, f in form.model_fields.items() if part in (name, f.alias)]
        return [inner for field in found for inner in _forms(field.annotation)]
    arguments = get_args(form)
    return _forms(arguments[1 if get_origin(form) is dict else 0]) if arguments else []


def _fits(form: Any, value: Any) -> bool:
    """Whether `value` says nothing else of what a model's fields of one word are: its kind."""
    if not (hasattr(form, "model_fields") and isinstance(value, dict)):
        return True
    words = {
        name: get_args(field.annotation)
        for name, field in form.model_fields.items()
        if get_origin(field.annotation) is Literal
    }
    return all(value.get(name, known[0]) in known for name, known in words.items())
