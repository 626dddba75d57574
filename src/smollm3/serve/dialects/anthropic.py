"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from smollm3 import turn
from smollm3.serve.answering import Answering, Quiet, Ran, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.fields import (
    Body,
    Effort,
    Name,
    Sampling,
    Thinking,
    Toolbox,
    Whole,
    format_of,
    one_constraint,
    params_of,
    stops_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.messages import conversation
from smollm3.serve.dialects.replies import (
    AnthropicContent,
    AnthropicError,
    AnthropicMessage,
    AnthropicUsage,
    TextContent,
    ThinkingContent,
    ThinkingTokens,
    TokenCount,
    ToolUseContent,
    replies,
)
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.service import KEEP_ALIVE, Json, Service, Tell, new_id, sse
from smollm3.serve.steps import arguments_of
from smollm3.turn import AnswerBlock, AnswerBlocks, End, Grown, Usage

SIGNATURE = "smollm3"  # clients send reasoning back only with one; nothing is read from it
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Cached(Body):
    """cache_control is a hint; prefixes are kept anyway."""

    cache_control: dict[str, Any] | None = None


class TextBlock(Cached):
    type: Literal["text"]
    text: str
    citations: None = None


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class ToolUseBlock(Cached):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[Literal["type"], Literal["direct"]] | None = None


class ToolResultBlock(Cached):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[TextBlock] | None = None
    is_error: bool = False


Texts = str | list[TextBlock]


class UserMessage(Body):
    role: Literal["user"]
    content: str | list[TextBlock | ToolResultBlock]


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: str | list[TextBlock | ThinkingBlock | ToolUseBlock]


class SystemMessage(Body):
    role: Literal["system"]
    content: Texts


class Tool(Cached):
    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class ToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingSettings(Body):
    """Without them there is no reasoning, as in Anthropic's API."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Whole | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputSettings(Body):
    effort: Effort | None = None
    format: OutputFormat | None = None


class Metadata(Body):
    user_id: str | None = None


class CountBody(Cached):
    """A conversation whose tokens are counted."""

    messages: Annotated[
        list[UserMessage | AssistantMessage | SystemMessage], Field(min_length=1, max_length=4096)
    ]
    model: str | None = None
    system: Texts | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingSettings | None = None
    output_config: OutputSettings | None = None


class MessagesBody(CountBody, Sampling):
    """A request of the Messages API. seed is an extension."""

    max_tokens: Whole
    stop_sequences: list[str] | None = None
    stream: bool = False
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post(
        "/v1/messages", responses=replies(AnthropicMessage, stream=True, error=AnthropicError)
    )
    async def messages(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation, in Anthropic's words."""
        model = service.check_model(body.model)
        ask = _ask_of(service, body)
        if body.stream:
            return await service.streamed(request, ask, lambda answering: _Teller(answering, model))
        return _message(model, await service.whole(request, ask)).response()

    @routes.post("/v1/messages/count_tokens", responses=replies(TokenCount, error=AnthropicError))
    def count_tokens(body: CountBody) -> Response:
        """How long the prompt would be."""
        service.check_model(body.model)
        box, thinking = _toolbox(service, body), _thinking(service, body)
        ids = _asked(body, box, thinking).ids(service.engine.tokenizer)
        return TokenCount(input_tokens=len(ids)).response()

    return routes


def _ask_of(service: Service, body: MessagesBody) -> Ask:
    settings, config = service.settings, body.output_config
    box, thinking = _toolbox(service, body), _thinking(service, body)
    form = config.format if config else None
    constraint, optional = one_constraint(
        box, format_of("json_schema", form.schema_, settings) if form else None
    )
    params = params_of(
        body,
        settings,
        max_tokens=body.max_tokens,
        stop=stops_of(body.stop_sequences, settings, "stop_sequences"),
        seed=body.seed,
    )
    request = replace(
        _asked(body, box, thinking),
        params=params,
        constraint=constraint,
        optional=optional,
        thinking_budget=thinking.budget if thinking.on else None,
    )
    return Ask([request])


def _parallel(body: CountBody) -> bool:
    return not (body.tool_choice and body.tool_choice.disable_parallel_tool_use)


def _toolbox(service: Service, body: CountBody) -> Toolbox:
    tools = body.tools or []
    choice = body.tool_choice or ToolChoice(type="auto")
    if (choice.name is not None) != (choice.type == "tool"):
        raise refused("tool_choice: name goes with type: tool", "tool_choice")
    declared = []
    for tool in tools:
        told = {} if tool.description is None else {"description": tool.description}
        declared.append({"name": tool.name, **told, "parameters": tool.input_schema})
    kind = {"any": "required", "tool": "named"}.get(choice.type, choice.type)
    strict = any(tool.strict for tool in tools)
    return toolbox(service, declared, (), kind, choice.name, _parallel(body), strict)


def _thinking(service: Service, body: CountBody) -> Thinking:
    given = body.thinking
    on = given is not None and given.type != "disabled"
    budget = given.budget_tokens if given else None
    if (budget is not None) != (given is not None and given.type == "enabled"):
        raise refused("thinking: budget_tokens goes with type: enabled", "thinking")
    effort = body.output_config.effort if body.output_config and on else None
    return thinking_of(service, enable=on, effort=effort, budget=budget)


def _asked(body: CountBody, box: Toolbox, thinking: Thinking) -> turn.Request:
    messages: list[Json] = []
    if body.system:
        messages.append({"role": "system", "content": _joined(body.system)})
    for message in body.messages:
        messages += _told(message)
    if body.messages[-1].role != "user":
        raise refused("messages: the last must be a user's; a begun answer is not continued")
    return turn.Request(
        conversation(messages),
        tools=box.shown,
        may_call=box.may_call,
        parallel=_parallel(body),
        enable_thinking=thinking.on,
    )


def _joined(content: Texts) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _told(message: UserMessage | AssistantMessage | SystemMessage) -> list[Json]:
    """As templates know it; a user's message may be results of tools and a text."""
    if isinstance(message, SystemMessage) or isinstance(message.content, str):
        return [{"role": message.role, "content": _joined(message.content)}]  # type: ignore[arg-type]
    if isinstance(message, AssistantMessage):
        return [_answer(message.content)]
    messages: list[Json] = []
    for block in message.content:
        if isinstance(block, ToolResultBlock):
            text = ("Error: " if block.is_error else "") + _joined(block.content or "")
            result = {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}
            messages.append(result)
        elif messages and messages[-1]["role"] == "user":
            messages[-1]["content"] += "\n" + block.text
        else:
            messages.append({"role": "user", "content": block.text})
    return messages


def _answer(blocks: Sequence[TextBlock | ThinkingBlock | ToolUseBlock]) -> Json:
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    message: Json = {"role": "assistant", "content": "\n".join(texts)}
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": json.dumps(block.input)},
        }
        for block in blocks
        if isinstance(block, ToolUseBlock)
    ]
    return message | ({"tool_calls": calls} if calls else {})


# Telling


def _block(block: AnswerBlock) -> AnthropicContent:
    match block.kind:
        case "reasoning":
            return ThinkingContent(type="thinking", thinking=block.text, signature=SIGNATURE)
        case "content":
            return TextContent(type="text", text=block.text)
    return ToolUseContent(
        type="tool_use", id=new_id("toolu_"), name=block.name, input=arguments_of(block.text)
    )


def _usage(usage: Usage) -> AnthropicUsage:
    return AnthropicUsage(
        input_tokens=usage.prompt - usage.cached,
        cache_read_input_tokens=usage.cached,
        cache_creation_input_tokens=0,
        output_tokens=usage.completion,
        output_tokens_details=ThinkingTokens(thinking_tokens=usage.reasoning),
    )


def _ending(end: End) -> Json:
    if end.stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": end.stop}
    return {"stop_reason": _REASONS[end.reason], "stop_sequence": None}


def _message(model: str, answering: Answering) -> AnthropicMessage:
    assert answering.end is not None
    content = [_block(block) for block in answering.blocks.all]
    return _head(model, answering.usage, content, **_ending(answering.end))


def _head(
    model: str,
    usage: Usage,
    content: list[AnthropicContent],
    stop_reason: Any = None,
    stop_sequence: str | None = None,
) -> AnthropicMessage:
    return AnthropicMessage(
        id=new_id("msg_"),
        type="message",
        role="assistant",
        model=model,
        content=content,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        usage=_usage(usage),
    )


class _Teller(Tell):
    """Blocks that begin, grow and end."""

    def __init__(self, answering: Answering, model: str) -> None:
        self._answering = answering
        self._model = model
        self._begun = False
        self._blocks = AnswerBlocks()
        self._end: End | None = None

    def event(self, event: StreamEvent) -> bytes:
        if isinstance(event, Quiet | Ran):
            return KEEP_ALIVE
        data = b"" if self._begun else self._begin()
        if isinstance(event, End):
            self._end = event
            return data
        for grown in self._blocks.feed(event.events, event.step):
            data += self._grow(grown)
        return data

    def _begin(self) -> bytes:
        self._begun = True
        answering = self._answering
        usage = Usage(prompt=len(answering.prompt), cached=answering.cached)
        return self._tell("message_start", message=_head(self._model, usage, []))

    def _grow(self, grown: Grown) -> bytes:
        data, block = b"", grown.block
        if grown.opened:
            before = self._blocks.all[-2:-1]
            data = self._close(before[0]) if before else b""
            begun = _block(AnswerBlock(block.kind, block.name))
            if isinstance(begun, ThinkingContent):
                begun.signature = ""
            data += self._tell("content_block_start", index=self._place, content_block=begun)
        if not grown.text:
            return data
        key = {"reasoning": "thinking", "content": "text", "call": "partial_json"}[block.kind]
        kind = "input_json_delta" if block.kind == "call" else f"{key}_delta"
        return data + self._delta({"type": kind, key: grown.text}, self._place)

    @property
    def _place(self) -> int:
        return len(self._blocks.all) - 1

    def _delta(self, delta: Json, index: int) -> bytes:
        return self._tell("content_block_delta", index=index, delta=delta)

    def _close(self, block: AnswerBlock) -> bytes:
        index = self._blocks.all.index(block)
        data = b""
        if block.kind == "reasoning":
            data = self._delta({"type": "signature_delta", "signature": SIGNATURE}, index)
        return data + self._tell("content_block_stop", index=index)

    def _tell(self, kind: str, **fields: Any) -> bytes:
        return sse({"type": kind, **fields}, kind)

    def end(self) -> bytes:
        assert self._end is not None
        data = self._close(self._blocks.all[-1]) if self._blocks.all else b""
        usage = _usage(self._answering.usage)
        data += self._tell("message_delta", delta=_ending(self._end), usage=usage)
        return data + self._tell("message_stop")

    def error(self, error: ApiError) -> bytes:
        return sse(error.body("anthropic"), "error")
