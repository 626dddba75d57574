"""Tools that a model can call: made from Python functions, their arguments checked before the call.

A model makes mistakes and learns from what it is told, so what is wrong with its call comes back as
a text, not as an exception.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import pydantic
import pydantic_core
from pydantic.json_schema import PydanticJsonSchemaWarning

from smollm3.agent.schema import arguments_model, inline, read_docstring
from smollm3.config import problems
from smollm3.errors import UserError

MAX_RESULT = 20_000  # characters of a result that the model is shown
MAX_NAME = 128  # characters
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")
_SHOWN_ERRORS = 5


class ToolError(Exception):
    """A call failed in a way that the model is told; any tool may raise it."""


@dataclass(frozen=True)
class ToolOutput:
    """A result that reads one way for the model and another for its Python."""

    text: str
    value: Any


@dataclass(frozen=True)
class Tool:
    """What a model can call.

    parameters: JSON schema of an object. run: called with the arguments by name, after `check` has
    seen them; its result is any value. read_only: it changes nothing, so nobody is asked. check:
    the arguments as `run` takes them, or a ToolError that says what is wrong.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[..., Any] = field(repr=False)
    read_only: bool = False
    check: Callable[[dict[str, Any]], dict[str, Any]] = field(default=dict, repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"tool {self.name!r:.80}: a name is letters, digits, _, - and ., at most {MAX_NAME}"
            )

    @property
    def declaration(self) -> dict[str, Any]:
        """As chat templates and OpenAI's API declare it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }

    @property
    def signature(self) -> dict[str, Any]:
        """As SmolLM3's template shows it."""
        return self.declaration["function"]  # type: ignore[no-any-return]

    def call(self, arguments: Mapping[str, Any] | str) -> Any:
        """Check the arguments and run it. Raises ToolError with a text for the model."""
        if isinstance(arguments, str):
            raise ToolError(f"the arguments of {self.name} are not a JSON object")
        try:
            return self.run(**self.check(dict(arguments)))
        except ToolError:
            raise
        except Exception as e:
            raise ToolError(f"{type(e).__name__}: {e}" if str(e) else type(e).__name__) from e

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of a call in Python by their names; positions count in the schema's order."""
        names = list(self.parameters.get("properties", {}))
        if len(args) > len(names):
            raise ToolError(f"{self.name} takes at most {len(names)} arguments, not {len(args)}")
        arguments = dict(zip(names, args, strict=False))
        for name in arguments.keys() & kwargs.keys():
            raise ToolError(f"{self.name} got two values for {name}")
        return {**arguments, **kwargs}


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, read_only: bool = False
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """A tool from a function, also as a decorator: `@tool` or `@tool(read_only=True)`.

    The schema comes from the signature and its type hints, descriptions from the docstring
    (Google's, NumPy's or reST's sections). Values are turned into what the hints say: a "3" for an
    int, a text for an Enum or a date, an object for a dataclass.
    """
    if function is None:
        return lambda f: from_function(f, name, description, read_only)
    return from_function(function, name, description, read_only)


def from_function(
    function: Callable[..., Any],
    name: str | None = None,
    description: str | None = None,
    read_only: bool = False,
) -> Tool:
    """`tool`. Raises UserError for a function that cannot be called with named arguments or whose
    type hints have no JSON schema."""
    name = str(name or getattr(function, "__name__", type(function).__name__))
    said, parameters = read_docstring(inspect.getdoc(function) or "")
    try:
        model = arguments_model(name, function, parameters)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PydanticJsonSchemaWarning)  # of defaults of any kind
            schema = inline(model.model_json_schema())
    except (NameError, TypeError, pydantic.PydanticUserError) as e:
        reason = str(e).partition("\n")[0]
        raise UserError(f"tool {name}: its type hints give no JSON schema: {reason}") from None
    for unwanted in ("title", "description"):
        schema.pop(unwanted, None)
    schema.setdefault("properties", {})

    def check(arguments: dict[str, Any]) -> dict[str, Any]:
        try:
            found = model.model_validate(arguments)
        except pydantic.ValidationError as e:
            raise ToolError(f"{name}: {_told(e, arguments)}") from None
        # Not model_dump, which would turn dataclasses into dicts.
        given = {
            str(model.model_fields[f].alias): getattr(found, f)
            for f in found.model_fields_set & model.model_fields.keys()
        }
        return {**given, **(found.__pydantic_extra__ or {})}

    def run(**arguments: Any) -> Any:
        result = _call(function, arguments)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result

    return Tool(name, description or said, schema, run, read_only, check)


async def _awaited(value: Any) -> Any:
    return await value


def _call(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Positional-only parameters cannot be named."""
    positional = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            if parameter.name not in arguments:
                break
            positional.append(arguments.pop(parameter.name))
    return function(*positional, **arguments)


def _told(error: pydantic.ValidationError, arguments: Mapping[str, Any]) -> str:
    """What is wrong, argument by argument, for a model that can try again."""
    parts = []
    for problem in problems(error.errors(), arguments):
        place = problem.key or "arguments"
        if problem.kind == "missing":
            parts.append(f"{place} is missing")
        elif problem.kind == "unknown":
            parts.append(f"there is no argument {place}")
        else:
            value = json.dumps(problem.value, ensure_ascii=False, default=str)
            quoted = f", not {value:.80}" if problem.quotes else ""
            parts.append(f"{place}: {problem.message}{quoted}")
    more = len(parts) - _SHOWN_ERRORS
    shown = "; ".join(parts[:_SHOWN_ERRORS])
    return f"{shown}; and {more} more" if more > 0 else shown


def to_text(value: Any) -> str:
    """A result as the model is shown it: texts as they are, else JSON, else Python's repr."""
    if isinstance(value, ToolOutput):
        value = value.text
    if value is None:
        value = "done"
    if not isinstance(value, str):
        try:
            value = _json(value).decode()
        except Exception:  # a cycle, a __repr__ that raises
            value = f"a {type(value).__name__}"
    return cut(value)


def to_json_value(value: Any) -> Any:
    """A result as the model's Python gets it."""
    if isinstance(value, ToolOutput):
        value = value.value
    try:
        return json.loads(_json(value))
    except Exception:
        return f"a {type(value).__name__}"


def _json(value: Any) -> bytes:
    return pydantic_core.to_json(value, fallback=repr, inf_nan_mode="strings")


def cut(text: str) -> str:
    """Not more than MAX_RESULT characters, of which the middle is left out."""
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded
    over = len(text) - MAX_RESULT
    if over <= 0:
        return text
    half = MAX_RESULT // 2
    return f"{text[:half]}\n[... {over} characters left out ...]\n{text[-half:]}"


def as_tools(given: Iterable[Tool | Callable[..., Any]]) -> list[Tool]:
    """Tools from tools and functions; each name once."""
    tools: dict[str, Tool] = {}
    for item in given:
        found = item if isinstance(item, Tool) else from_function(item)
        if found.name in tools:
            raise UserError(f"tool {found.name}: given twice; each needs a name of its own")
        tools[found.name] = found
    return list(tools.values())


def load_tools(target: str) -> list[Tool]:
    """The tools that `--tool MODULE:NAME` names: a function, a Tool or a list of them. MODULE is
    imported, or a .py file is run; the working folder is searched."""
    module_name, _, name = target.rpartition(":")
    if not module_name or not name:
        raise UserError(f"--tool {target}: must be MODULE:FUNCTION or FILE.py:FUNCTION")
    module = _import(module_name, target)
    try:
        found = getattr(module, name)
    except AttributeError:
        raise UserError(f"--tool {target}: {module_name} has no {name}") from None
    items = found if isinstance(found, list | tuple) else [found]
    for item in items:
        if not (isinstance(item, Tool) or callable(item)):
            raise UserError(f"--tool {target}: must be a function, not {type(item).__name__}")
    return as_tools(items)


def _import(name: str, target: str) -> Any:
    path = Path(name)
    folder = str(path.parent.resolve()) if path.suffix == ".py" else str(Path.cwd())
    if path.suffix == ".py" and not path.is_file():
        raise UserError(f"--tool {target}: there is no file {name}")
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(path.stem if path.suffix == ".py" else name)
    except Exception as e:  # the module's own code
        raise UserError(f"--tool {target}: cannot be imported: {type(e).__name__}: {e}") from None
    finally:
        if added:
            sys.path.remove(folder)
