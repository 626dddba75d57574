"""`llm -m smollm3 ...`: a model of the program llm, which loads this as its plugin.

SMOLLM3_MODEL names it as the command line does (a folder, a file, a Hub id, a short name).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import llm
from llm.parts import (
    ReasoningPart,
    StreamEvent,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from pydantic import Field

from smollm3.errors import UserError

if TYPE_CHECKING:
    from smollm3.chat import Event
    from smollm3.infer import Engine
    from smollm3.turn import Request

VARIABLE = "SMOLLM3_MODEL"
DEFAULT = "smollm3-3b"


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    register(SmolLM3())


class SmolLM3(llm.Model):
    """In this process; loaded with the first prompt."""

    model_id = "smollm3"
    can_stream = True
    supports_tools = True
    supports_schema = True

    class Options(llm.Options):
        """What llm's -o takes."""

        think: bool = Field(True, description="Reason before answering.")
        thinking_budget: int | None = Field(
            None, ge=0, description="Maximum number of reasoning tokens."
        )
        max_tokens: int = Field(8192, ge=1, description="Maximum number of tokens of an answer.")
        temperature: float | None = Field(
            None, description="Sampling temperature; 0 takes the likeliest token."
        )
        top_p: float | None = Field(
            None, description="Sample from the likeliest tokens whose probabilities reach this sum."
        )
        top_k: int | None = Field(
            None, description="Sample from this many likeliest tokens; 0 is off."
        )
        seed: int = Field(0, description="Seed of the random numbers.")

    @cached_property
    def engine(self) -> Engine:
        from smollm3.infer import load_engine

        return load_engine(os.environ.get(VARIABLE, DEFAULT))

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None,
    ) -> Iterator[str | StreamEvent]:
        """llm calls this; a mistake of the user's is a line."""
        try:
            yield from self._events(prompt, response)
        except UserError as e:
            raise llm.ModelError(str(e)) from None

    def _events(self, prompt: llm.Prompt, response: llm.Response) -> Iterator[StreamEvent]:
        from smollm3.turn import Part

        reply = self._request(prompt).submit(self.engine)
        for part in reply:
            for event in part.events if isinstance(part, Part) else ():
                yield from _told(event, response)
        usage = reply.usage
        response.set_usage(input=usage.prompt, output=usage.completion)

    def _request(self, prompt: llm.Prompt) -> Request:
        from smollm3.infer import SamplingParams
        from smollm3.infer.constrain.grammars import ConstraintSpec, Json, Tools
        from smollm3.turn import Request

        options: Any = prompt.options
        schema: Any = prompt.schema
        tools = [_declared(tool) for tool in prompt.tools]
        constraint: ConstraintSpec | None = Json(schema) if schema else None
        if tools and constraint:
            raise UserError("a schema and tools are not supported together")
        return Request(
            _messages(prompt.messages),
            tools=tools,
            enable_thinking=options.think,
            params=SamplingParams(
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                seed=options.seed,
            ),
            constraint=Tools(tools) if tools else constraint,
            thinking_budget=options.thinking_budget,
        )


def _told(event: Event, response: llm.Response) -> Iterator[StreamEvent]:
    """An event in llm's words."""
    from smollm3.chat import ArgumentsDelta, CallEnd, CallStart, ContentDelta, ReasoningDelta

    match event:
        case ReasoningDelta(text):
            yield StreamEvent("reasoning", text)
        case ContentDelta(text):
            yield StreamEvent("text", text)
        case CallStart(index, name):
            yield StreamEvent("tool_call_name", name, tool_call_id=f"call_{index}")
        case ArgumentsDelta(index, text):
            yield StreamEvent("tool_call_args", text, tool_call_id=f"call_{index}")
        case CallEnd(index, call) if isinstance(call.arguments, dict):
            made = llm.ToolCall(call.name, call.arguments, tool_call_id=f"call_{index}")
            response.add_tool_call(made)


def _declared(tool: Any) -> dict[str, Any]:
    told = {"description": tool.description} if tool.description else {}
    schema = tool.input_schema or {"type": "object", "properties": {}}
    return {"name": tool.name, **told, "parameters": schema}


def _messages(given: Sequence[Any]) -> list[dict[str, Any]]:
    """llm's turns as templates know them."""
    messages: list[dict[str, Any]] = []
    for message in given:
        said: dict[str, Any] = {"role": message.role, "content": ""}
        for part in message.parts:
            match part:
                case TextPart():
                    said["content"] += part.text
                case ReasoningPart():
                    said["reasoning_content"] = said.get("reasoning_content", "") + part.text
                case ToolCallPart():
                    function = {"name": part.name, "arguments": json.dumps(part.arguments)}
                    call = {"id": part.tool_call_id, "type": "function", "function": function}
                    said.setdefault("tool_calls", []).append(call)
                case ToolResultPart():
                    result = {"role": "tool", "tool_call_id": part.tool_call_id}
                    messages.append({**result, "content": part.output})
                case _:
                    raise UserError("attachments are not supported: the model reads texts only")
        if message.role != "tool":
            messages.append(said)
    return messages
