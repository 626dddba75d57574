"""The JSON schema of a function's arguments, from its signature, type hints and docstring."""

from __future__ import annotations

import functools
import inspect
import operator
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser
import pydantic
import typing_extensions

from smollm3.errors import UserError


def attribute(name: str) -> str:
    """A field's name in the model: parameters may be called as what a model has already."""
    return f"p_{name}"


def arguments_model(
    name: str, function: Callable[..., Any], descriptions: Mapping[str, str]
) -> type[pydantic.BaseModel]:
    """A model whose fields are the function's parameters, by their names as aliases. Raises
    UserError for *args; TypeError, NameError or pydantic's errors for hints that it cannot read."""
    target = function if inspect.isroutine(function) else type(function).__call__
    hints = typing.get_type_hints(target, include_extras=True)
    known: dict[type, type] = {}
    fields: dict[str, Any] = {}
    extra: typing.Literal["forbid", "allow"] = "forbid"
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise UserError(
                f"tool {name}: *{parameter.name} cannot be called by name; leave it out"
            )
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        info = pydantic.Field(
            default, alias=parameter.name, description=descriptions.get(parameter.name)
        )
        fields[attribute(parameter.name)] = (
            _understood(hints.get(parameter.name, Any), known),
            info,
        )
    config = pydantic.ConfigDict(
        extra=extra, arbitrary_types_allowed=False, coerce_numbers_to_str=True
    )
    return pydantic.create_model(name, __config__=config, **fields)


def _understood(hint: Any, known: dict[type, type]) -> Any:
    """The hint in what pydantic reads: before Python 3.12 it takes TypedDict only from
    typing_extensions. known: those that were made."""
    if sys.version_info >= (3, 12):
        return hint
    if typing.is_typeddict(hint) and type(hint).__module__ == "typing":
        if hint not in known:
            make: Any = typing_extensions.TypedDict
            made = make(hint.__name__, {})
            known[hint] = made
            inner = typing.get_type_hints(hint, include_extras=True)
            made.__annotations__ = {key: _understood(item, known) for key, item in inner.items()}
            made.__required_keys__ = hint.__required_keys__
            made.__optional_keys__ = hint.__optional_keys__
        return known[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return typing.Annotated[_understood(arguments[0], known), *arguments[1:]]
    if origin is None or origin is typing.Literal or origin is Callable:
        return hint
    changed = tuple(_understood(argument, known) for argument in arguments)
    if changed == arguments:
        return hint
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(operator.or_, changed)
    return origin[changed if len(changed) > 1 else changed[0]]


def inline(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without references and titles, which only cost a model tokens. What refers to
    itself stays a reference."""
    definitions = schema.get("$defs", {})
    kept: set[str] = set()

    def walk(value: Any, inside: tuple[str, ...], named: bool) -> Any:
        """named: the keys are names of properties, not of the schema language."""
        if isinstance(value, list):
            return [walk(item, inside, False) for item in value]
        if not isinstance(value, dict):
            return value
        reference = None if named else value.get("$ref")
        if isinstance(reference, str) and reference.startswith("#/$defs/"):
            target = reference.removeprefix("#/$defs/")
            others = {k: v for k, v in value.items() if k != "$ref"}
            if target in inside:
                kept.add(target)
                return value
            return walk({**definitions[target], **others}, (*inside, target), False)
        return {
            key: item
            if key in ("enum", "const", "default", "examples") and not named
            else walk(
                item, inside, key in ("properties", "$defs", "patternProperties") and not named
            )
            for key, item in value.items()
            if named or key not in ("title", "$defs") or not isinstance(item, str | dict)
        }

    result: dict[str, Any] = walk(schema, (), False)
    written: dict[str, Any] = {}
    while missing := kept - written.keys():
        written |= {key: walk(definitions[key], (key,), False) for key in sorted(missing)}
    if written:
        result["$defs"] = written
    return result


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says of the function, and of each parameter."""
    found = docstring_parser.parse(text)
    parameters = {
        parameter.arg_name.lstrip("*"): " ".join((parameter.description or "").split())
        for parameter in found.params
    }
    return (found.description or "").strip(), parameters
