"""POST /v1/messages and /v1/messages/count_tokens, the request: Anthropic's messages of blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from smollm3 import turn
from smollm3.serve.ask import Ask, can_think
from smollm3.serve.dialects.fields import (
    TOOLS,
    Body,
    Choose,
    Effort,
    Name,
    OtherTool,
    Past,
    Sampling,
    Thinking,
    Toolbox,
    ToolHints,
    Whole,
    format_of,
    one_constraint,
    params_of,
    stops_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.messages import (
    Content,
    Part,
    asked_from,
    begun_by,
    check_begun,
    check_part,
    tag_of,
    text_of,
)
from smollm3.serve.errors import refused
from smollm3.serve.service import Json, Service

_CHOICES: dict[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "any": "required",
    "tool": "required",
}


class ThinkingBlock(Past):
    type: Literal["thinking"]
    thinking: str


class RedactedBlock(Past):
    """Reasoning that nobody can read."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(Past):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultBlock(Past):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Content | None = None
    is_error: bool = False


Asked = Annotated[
    Annotated[ToolResultBlock, Tag("tool_result")] | Annotated[Part, Tag("part")],
    tag_of("tool_result", other="part"),
]
Said = Annotated[
    Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[Part, Tag("part")],
    tag_of("thinking", "redacted_thinking", "tool_use", other="part"),
]


class UserMessage(Past):
    role: Literal["user"]
    content: str | list[Asked]


class AssistantMessage(Past):
    role: Literal["assistant"]
    content: str | list[Said]


class SystemMessage(Past):
    role: Literal["system"]
    content: Content


ClaudeMessage = Annotated[
    UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")
]


class Tool(ToolHints):
    type: Literal["custom"] = "custom"
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


ClaudeTool = Annotated[
    Annotated[Tool, Tag("custom")] | Annotated[OtherTool, Tag("other")],
    tag_of("custom", default="custom", other="other"),
]


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingSettings(Body):
    """Without them there is no reasoning, as in Anthropic's API."""

    place = "thinking"
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Whole | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputSettings(Body):
    place = "output_config"
    effort: Effort | None = None
    format: OutputFormat | None = None


class CountBody(Body):
    """A conversation whose tokens are counted."""

    place = "messages"
    messages: Annotated[list[ClaudeMessage], Field(min_length=1, max_length=4096)]
    model: str | None = None
    system: Content | None = None
    tools: Annotated[list[ClaudeTool], TOOLS] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingSettings | None = None
    output_config: OutputSettings | None = None
    output_format: OutputFormat | None = None


class MessagesBody(CountBody, Sampling):
    """A request of the Messages API. seed is an extension."""

    max_tokens: Whole
    stop_sequences: list[str] | None = None
    stream: bool = False
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None


def ask_of(service: Service, body: MessagesBody) -> Ask:
    """What the request asks the engine for. Raises ApiError for what cannot be done."""
    settings = service.settings
    params = params_of(
        body,
        settings,
        max_tokens=body.max_tokens,
        stop=stops_of(body.stop_sequences, settings, "stop_sequences"),
        seed=body.seed,
    )
    return Ask([replace(asked_of(service, body), params=params)])


def _parallel(body: CountBody) -> bool:
    return not (body.tool_choice and body.tool_choice.disable_parallel_tool_use)


def _toolbox(service: Service, body: CountBody) -> Toolbox:
    tools = [tool for tool in body.tools or () if isinstance(tool, Tool)]
    choice = body.tool_choice or ToolChoice(type="auto")
    if (choice.name is not None) != (choice.type == "tool"):
        raise refused("tool_choice: name goes with type: tool", "tool_choice")
    declared = []
    for tool in tools:
        told = {} if tool.description is None else {"description": tool.description}
        declared.append({"name": tool.name, **told, "parameters": tool.input_schema})
    chosen = Choose(_CHOICES[choice.type], name=choice.name)
    strict = any(tool.strict for tool in tools)
    return toolbox(service, declared, (), chosen, parallel=_parallel(body), strict=strict)


def _thinking(service: Service, body: CountBody) -> Thinking:
    given = body.thinking
    on = given is not None and given.type != "disabled"
    budget = given.budget_tokens if given else None
    if (budget is not None) != (given is not None and given.type == "enabled"):
        raise refused("thinking: budget_tokens goes with type: enabled", "thinking")
    if given is not None and given.type == "adaptive" and not can_think(service.engine):
        return Thinking(False)
    effort = body.output_config.effort if body.output_config and on else None
    return thinking_of(service, enable=on, effort=effort, budget=budget)


def asked_of(service: Service, body: CountBody) -> turn.Request:
    """The conversation, and what its answer must be."""
    box, thinking = _toolbox(service, body), _thinking(service, body)
    form = body.output_format or (body.output_config.format if body.output_config else None)
    constraint, optional = one_constraint(
        box, format_of("json_schema", form.schema_, service.settings) if form else None
    )
    first: list[Json] = []
    if body.system:
        first.append({"role": "system", "content": text_of(body.system)})
    messages, begun = body.messages, ""
    if isinstance(messages[-1], AssistantMessage):
        begun = begun_by(_answer(messages[-1].content), len(messages) > 1)
        messages = messages[:-1]
        check_begun(thinking.on, form)
    asked = asked_from([message.role for message in messages])
    told = [_told(i, message, now=i >= asked) for i, message in enumerate(messages)]
    return turn.Request(
        [*first, *chain.from_iterable(told)],
        tools=box.shown,
        may_call=box.may_call,
        parallel=_parallel(body),
        enable_thinking=thinking.on,
        prefill=begun,
        fit=True,
        constraint=constraint,
        optional=optional,
        thinking_budget=thinking.budget if thinking.on else None,
        adapter=service.adapter_of(body.model),
    )


def _told(index: int, message: ClaudeMessage, now: bool) -> list[Json]:
    """As templates know it; a user's message may be results of tools and a text. now: it is what
    is asked, not what was said before."""
    if isinstance(message, AssistantMessage):
        return [_answer(message.content)]
    if isinstance(message, SystemMessage) or isinstance(message.content, str):
        return [{"role": message.role, "content": text_of(message.content)}]  # type: ignore[arg-type]
    messages: list[Json] = []
    for i, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock):
            text = ("Error: " if block.is_error else "") + text_of(block.content)
            result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            messages.append(result)
            continue
        if now:
            check_part(block, f"messages.{index}.content.{i}")
        if messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + block.text
        else:
            messages.append({"role": "user", "content": block.text})
    return messages


def _answer(content: str | Sequence[Said]) -> Json:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    thoughts = [block.thinking for block in content if isinstance(block, ThinkingBlock)]
    texts = [
        block.text
        for block in content
        if not isinstance(block, ThinkingBlock | RedactedBlock | ToolUseBlock)
    ]
    message: Json = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(block.input)},
        }
        for block in content
        if isinstance(block, ToolUseBlock)
    ]
    return message | ({"tool_calls": calls} if calls else {})
