"""POST /v1/messages, the answer, in Anthropic's blocks; POST /v1/messages/count_tokens."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from smollm3.serve.answering import Answering, Quiet, Ran, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.anthropic_body import CountBody, MessagesBody, ask_of, asked_of
from smollm3.serve.dialects.fields import left_out
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
from smollm3.serve.errors import ApiError
from smollm3.serve.service import KEEP_ALIVE, Json, Service, Tell, new_id, sse
from smollm3.serve.steps import arguments_of
from smollm3.turn import AnswerBlock, AnswerBlocks, End, Grown, Usage

SIGNATURE = "smollm3"  # clients send reasoning back only with one; nothing is read from it
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post(
        "/v1/messages", responses=replies(AnthropicMessage, stream=True, error=AnthropicError)
    )
    async def messages(body: MessagesBody, request: Request) -> Response:
        """Answer a conversation, in Anthropic's words."""
        model = service.check_model(body.model)
        ask = ask_of(service, body)
        request.state.left_out = left_out(body.tools or ())
        if body.stream:
            return await service.streamed(request, ask, lambda answering: _Teller(answering, model))
        return _message(model, await service.whole(request, ask)).response()

    @routes.post("/v1/messages/count_tokens", responses=replies(TokenCount, error=AnthropicError))
    async def count_tokens(body: CountBody, request: Request) -> Response:
        """How long the prompt would be."""
        service.check_model(body.model)
        request.state.left_out = left_out(body.tools or ())
        [ids] = await service.prompts(request, Ask([asked_of(service, body)]))
        return TokenCount(input_tokens=len(ids)).response()

    return routes


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
