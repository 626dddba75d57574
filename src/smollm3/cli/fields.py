"""Options that are fields of a model: its type, default and help stand there and nowhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING
from importlib import import_module
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import click

from smollm3.option import Option


class ModelCommand(click.Command):
    """A command with options of `with_fields`. Their models are imported when somebody asks for
    the options: for `smollm3 --help` nobody does."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        *own, help_option = super().get_params(ctx)
        fields = getattr(self.callback, "fields", ())
        return [*own, *(option for make in fields for option in make()), help_option]


def with_fields(argument: str, model: str) -> Callable[[Any], Any]:
    """Add to a ModelCommand the options of `model` (MODULE:CLASS), a pydantic model or a dataclass.

    The command gets those that were given as the dict `argument`, by the names of the fields.
    """
    make = functools.cache(functools.partial(_options, model))

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def command(**values: Any) -> Any:
            chosen = {str(option.name): values.pop(str(option.name)) for option in make()}
            given = {key: value for key, value in chosen.items() if value not in (None, ())}
            return function(**values, **{argument: given})

        command.fields = (make, *getattr(function, "fields", ()))  # type: ignore[attr-defined]
        return command

    return decorate


def _options(model: str) -> list[click.Option]:
    module, _, name = model.partition(":")
    cls = getattr(import_module(module), name)
    found = []
    for field, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is not Annotated:
            continue
        annotation, *metadata = get_args(hint)
        for option in metadata:
            if isinstance(option, Option):
                found.append(_option(field, annotation, _default(cls, field), option))
    return found


def _default(cls: Any, field: str) -> Any:
    if hasattr(cls, "model_fields"):
        return cls.model_fields[field].default
    default = cls.__dataclass_fields__[field].default
    return None if default is MISSING else default


def _option(field: str, annotation: Any, default: Any, option: Option) -> click.Option:
    flag = option.flag or f"--{field.replace('_', '-')}"
    shown = option.default
    settings: dict[str, Any] = {"metavar": option.metavar, "default": None}
    if annotation is bool:
        name = flag.removeprefix("--")
        flag = f"--{name}/--no-{name}" if default else flag
        shown = shown or (name if default else None)
        settings = {"is_flag": True, "default": None}
    elif (inner := _inner(annotation)) in (int, float):
        settings["type"] = inner
    elif get_origin(inner) is tuple or option.repeated:
        settings["multiple"] = True
    if shown is None and default is not False and default not in (None, ()):
        shown = f"{default:g}" if isinstance(default, float) else str(default)
    text = option.help + (f" [default: {shown}]" if shown else "")
    return click.Option([flag, field], help=text, **settings)


def _inner(annotation: Any) -> Any:
    """The type without `| None` and without its limits, which the model checks."""
    if get_origin(annotation) is Annotated:
        return _inner(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _inner(next(a for a in get_args(annotation) if a is not NoneType))
    return annotation
