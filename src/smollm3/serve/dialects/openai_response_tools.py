"""POST /v1/responses, the tools: all of them are functions to the model.

The tools of a namespace are functions whose names begin with its name. What the model calls is told
by the names and in the form that the request has for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from smollm3.chat.tags import PYTHON
from smollm3.infer.constrain.grammars import Grammar, Regex
from smollm3.serve.dialects.custom_tools import InputGrammar, TextInput, declared
from smollm3.serve.dialects.fields import TOOLS, Body, Choose, Name, OtherTool, ToolHints
from smollm3.serve.dialects.messages import tag_of
from smollm3.serve.errors import refused
from smollm3.serve.service import Json


class ResponseTool(ToolHints):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class GrammarInput(InputGrammar):
    type: Literal["grammar"]


class CustomTool(ToolHints):
    """A tool whose input is a text."""

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None

    @property
    def grammar(self) -> GrammarInput | None:
        return self.format if isinstance(self.format, GrammarInput) else None


Callable = (
    Annotated[ResponseTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[OtherTool, Tag("other")]
)


class Namespace(ToolHints):
    """Tools of one kind or origin."""

    type: Literal["namespace"]
    name: str
    description: str | None = None
    tools: Annotated[list[Annotated[Callable, tag_of("function", "custom", other="other")]], TOOLS]


class AutoContainer(Body):
    type: Literal["auto"]


class CodeInterpreter(Body):
    """The server's own Python. container: that of the response before, else a new one; or any
    name, under which variables are kept until they were unused for ten minutes."""

    type: Literal["code_interpreter"]
    container: Annotated[str, Field(min_length=1, max_length=200)] | AutoContainer


AnyTool = Annotated[
    Callable
    | Annotated[CodeInterpreter, Tag("code_interpreter")]
    | Annotated[Namespace, Tag("namespace")],
    tag_of("function", "custom", "code_interpreter", "namespace", other="other"),
]


class NamedTool(Body):
    type: Literal["function", "custom", "namespace"]
    name: str


class PythonChoice(Body):
    type: Literal["code_interpreter"]


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[
            Annotated[
                Annotated[NamedTool, Tag("function")]
                | Annotated[NamedTool, Tag("custom")]
                | Annotated[NamedTool, Tag("namespace")]
                | Annotated[PythonChoice, Tag("code_interpreter")]
                | Annotated[OtherTool, Tag("other")],
                tag_of("function", "custom", "namespace", "code_interpreter", other="other"),
            ]
        ],
        TOOLS,
    ]


Choice = Annotated[NamedTool | PythonChoice | AllowedChoice, Field(discriminator="type")]


def name_of(namespace: str | None, name: str) -> str:
    """What the model calls a tool."""
    if namespace is None:
        return name
    return re.sub(r"[^A-Za-z0-9_.-]", "_", f"{namespace}__{name}")


@dataclass(frozen=True)
class Offered:
    """A tool of a request."""

    tool: ResponseTool | CustomTool
    namespace: Namespace | None = None

    @property
    def name(self) -> str:
        """What the model calls it."""
        return name_of(self.namespace.name if self.namespace else None, self.tool.name)

    @property
    def names(self) -> Json:
        """What the request calls it."""
        within = {} if self.namespace is None else {"namespace": self.namespace.name}
        return {"name": self.tool.name, **within}

    @property
    def declared(self) -> Json:
        """As the model is told of it."""
        about = [self.namespace.description if self.namespace else None, self.tool.description]
        text = "\n\n".join(filter(None, about)) or None
        if isinstance(self.tool, CustomTool):
            return declared(self.name, text, self.tool.grammar)
        told: Json = self.tool.model_dump(exclude_none=True, exclude={"type", "strict"})
        return told | {"name": self.name} | ({"description": text} if text else {})


def offered(tools: Sequence[Any]) -> dict[str, Offered]:
    """The functions among a request's tools, by the names that the model has for them."""
    found = []
    for tool in tools:
        if isinstance(tool, Namespace):
            inner = [each for each in tool.tools if not isinstance(each, OtherTool)]
            found += [Offered(each, tool) for each in inner]
        elif isinstance(tool, ResponseTool | CustomTool):
            found.append(Offered(tool))
    names = [each.name for each in found]
    if len(set(names)) < len(names):
        raise refused("tools: two have the same name", "tools")
    return dict(zip(names, found, strict=True))


def grammars(functions: Mapping[str, Offered]) -> dict[str, Regex | Grammar]:
    """What the inputs of custom tools are held to, by the names that the model has for them."""
    found = {name: getattr(each.tool, "grammar", None) for name, each in functions.items()}
    return {name: grammar.constraint for name, grammar in found.items() if grammar}


def left_out(tools: Sequence[Any], place: str = "tools") -> list[str]:
    """Of the tools, those that cannot be called here."""
    told = []
    for i, tool in enumerate(tools):
        match tool:
            case OtherTool():
                told.append(f"{place}.{i} ({tool.type})")
            case Namespace():
                told += left_out(tool.tools, f"{place}.{i}.tools")
    return told


def chosen(
    choice: Literal["none", "auto", "required"] | Choice | None, functions: Mapping[str, Offered]
) -> Choose:
    """What a request's `tool_choice` means."""
    match choice:
        case NamedTool(type="namespace"):
            return Choose("required", allowed=_named([choice], functions))
        case NamedTool(name=name):
            return Choose("required", name=name)
        case PythonChoice():
            return Choose("required", name=PYTHON)
        case AllowedChoice(mode=mode, tools=tools):
            return Choose(mode, allowed=_named(tools, functions))
        case None:
            return Choose()
    return Choose(choice)


def _named(tools: Sequence[Any], functions: Mapping[str, Offered]) -> list[str]:
    names = []
    for tool in tools:
        match tool:
            case NamedTool(type="namespace"):
                inner = [n for n, f in functions.items() if f.names.get("namespace") == tool.name]
                names += inner or [tool.name]  # none: it is named as missing
            case NamedTool():
                names.append(tool.name)
            case PythonChoice():
                names.append(PYTHON)
    return names
