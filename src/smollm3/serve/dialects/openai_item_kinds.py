"""The items of the Responses API: what was said, called, run and given back."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, TypeAdapter

from smollm3.serve.dialects.fields import Past
from smollm3.serve.dialects.messages import Content, Part
from smollm3.serve.dialects.openai_response_tools import name_of
from smollm3.serve.errors import refused


class InputMessage(Past):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class ReasoningItem(Past):
    type: Literal["reasoning"]
    content: list[Part] | None = None
    summary: list[Part] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary or ())


class CallOfTool(Past):
    call_id: str
    name: str
    namespace: str | None = None

    @property
    def function(self) -> str:
        """What the model called."""
        return name_of(self.namespace, self.name)


class CallItem(CallOfTool):
    type: Literal["function_call"]
    arguments: str | dict[str, Any]


class CustomCallItem(CallOfTool):
    type: Literal["custom_tool_call"]
    input: str


class Logs(Past):
    type: str
    logs: str = ""


class PythonItem(Past):
    """Python that this server has run."""

    type: Literal["code_interpreter_call"]
    code: str = ""
    outputs: list[Logs] | None = None
    id: str = ""


class ResultItem(Past):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Content


class ItemReference(Past):
    """An item of a response that is kept here."""

    type: Literal["item_reference"] = "item_reference"
    id: str


class CompactionItem(Past):
    """A summary of what came before, in base64."""

    type: Literal["compaction"]
    encrypted_content: str
    id: str | None = None

    @property
    def text(self) -> str:
        try:
            return base64.b64decode(self.encrypted_content, validate=True).decode()
        except ValueError:
            raise refused("input: this compaction was not made here", "input") from None


class OtherItem(Past):
    """What another server did: it is left out, and a header says so."""

    type: str


def _kind_of(given: Any) -> str:
    kind = given.get("type") if isinstance(given, Mapping) else getattr(given, "type", None)
    if kind is None:
        kind = "message" if isinstance(given, Mapping) and "role" in given else "item_reference"
    kind = str(kind).replace("custom_tool_call_output", "function_call_output")
    return kind if kind in _KINDS else "other"


_KINDS = (
    "message",
    "reasoning",
    "function_call",
    "custom_tool_call",
    "code_interpreter_call",
    "function_call_output",
    "item_reference",
    "compaction",
)
Known = (
    Annotated[InputMessage, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[PythonItem, Tag("code_interpreter_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[ItemReference, Tag("item_reference")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[OtherItem, Tag("other")]
)
Item = Annotated[Known, Discriminator(_kind_of)]
ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
