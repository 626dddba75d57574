"""POST /v1/chat/completions, the answer: reasoning apart from content, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from smollm3 import turn
from smollm3.chat import ArgumentsDelta, CallEnd, CallStart, ContentDelta, Event, ReasoningDelta
from smollm3.serve.answering import Answered, Answering, Quiet, Ran, StreamEvent
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.custom_tools import input_of
from smollm3.serve.dialects.fields import left_out, with_usage
from smollm3.serve.dialects.openai_chat_body import ChatBody, ask_of
from smollm3.serve.dialects.replies import (
    AssistantReply,
    CallText,
    ChatChoice,
    ChatCompletion,
    ChatCustomCall,
    ChatToolCall,
    CustomInput,
    replies,
)
from smollm3.serve.dialects.tokens import chat_logprobs, glass_of, prompt_detail, usage_of
from smollm3.serve.errors import ApiError
from smollm3.serve.service import DONE, KEEP_ALIVE, Json, Service, Tell, new_id, sse


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/v1/chat/completions", responses=replies(ChatCompletion, stream=True))
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        model = service.check_model(body.model)
        ask = ask_of(service, body)
        request.state.left_out = left_out(body.tools or ())
        usage = with_usage(body.stream, body.stream_options)
        if body.stream:
            return await service.streamed(
                request, ask, lambda answering: _Teller(service, body, model, answering, usage)
            )
        answering = await service.whole(request, ask)
        return completion(service, body, model, answering).response()

    return routes


# Telling


def _call_id() -> str:
    return new_id("call_")


def _call(body: ChatBody, call: turn.AnswerBlock) -> ChatToolCall | ChatCustomCall:
    if call.name in body.custom_tools:
        given = CustomInput(name=call.name, input=input_of(call.text))
        return ChatCustomCall(id=_call_id(), type="custom", custom=given)
    function = CallText(name=call.name, arguments=call.text)
    return ChatToolCall(id=_call_id(), type="function", function=function)


def completion(service: Service, body: ChatBody, model: str, answering: Answered) -> ChatCompletion:
    tokenizer = service.engine.tokenizer
    choices = []
    for i, answer in enumerate(answering.replies):
        content, reasoning = answer.message.content, answer.message.reasoning
        message: Json = {"role": "assistant", "content": content, "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls := answer.blocks.calls:
            message["content"] = content or None
            message["tool_calls"] = [_call(body, call) for call in calls]
        logprobs = None
        if body.logprobs:
            logprobs = chat_logprobs(tokenizer, answer.steps, body.top_logprobs or 0)
        choice = ChatChoice(
            index=i,
            message=AssistantReply(**message),
            finish_reason=answer.reason,
            logprobs=logprobs,
            **glass_of(tokenizer, answering.ask, answer.steps),
        )
        choices.append(choice)
    return ChatCompletion(
        id=new_id("chatcmpl-"),
        object="chat.completion",
        created=int(time.time()),
        model=model,
        choices=choices,
        usage=usage_of(answering.usage),
        **prompt_detail(tokenizer, answering),
    )


class _Teller(Tell):
    """Chunks: the role with the first token, then what each adds, usage at the end."""

    def __init__(
        self, service: Service, body: ChatBody, model: str, answering: Answering, usage: bool
    ) -> None:
        self._tokenizer = service.engine.tokenizer
        self._body = body
        self._answering = answering
        self._with_usage = usage
        self._begun: set[int] = set()
        # The custom tool that an answer is calling, and its arguments: they are told as a text.
        self._custom: dict[int, tuple[int, list[str]]] = {}
        self._head = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    def event(self, event: StreamEvent) -> bytes:
        if isinstance(event, Quiet | Ran):
            return KEEP_ALIVE
        data = b""
        if event.index not in self._begun:
            extra = {} if self._begun else prompt_detail(self._tokenizer, self._answering)
            self._begun.add(event.index)
            data = self._chunk(event.index, {"role": "assistant", "content": ""}, **extra)
        if isinstance(event, turn.End):
            for delta in self._rest_of_call(event.index):
                data += self._chunk(event.index, delta)
            return data + self._chunk(event.index, {}, finish_reason=event.reason)
        return data + self._part(event)

    def _part(self, part: turn.Part) -> bytes:
        """A chunk for each event; what is told of the token goes with the last."""
        extra: Json = {}
        if part.step is not None:
            extra = glass_of(self._tokenizer, self._answering.ask, [part.step])
            if self._body.logprobs:
                top = self._body.top_logprobs or 0
                extra["logprobs"] = chat_logprobs(self._tokenizer, [part.step], top)
        deltas = [d for event in part.events for d in self._deltas(part.index, event)]
        if extra and not deltas:
            deltas = [{}]
        return b"".join(
            self._chunk(part.index, delta, **(extra if i == len(deltas) - 1 else {}))
            for i, delta in enumerate(deltas)
        )

    def _deltas(self, choice: int, event: Event) -> Iterator[Json]:
        match event:
            case ReasoningDelta(text):
                yield {"reasoning_content": text}
            case ContentDelta(text):
                yield {"content": text}
            case CallStart(index, name) if name in self._body.custom_tools:
                self._custom[choice] = index, []
                custom: Json = {"name": name, "input": ""}
                call = {"index": index, "id": _call_id(), "type": "custom", "custom": custom}
                yield {"tool_calls": [call]}
            case CallStart(index, name):
                function: Json = {"name": name, "arguments": ""}
                call = {"index": index, "id": _call_id(), "type": "function", "function": function}
                yield {"tool_calls": [call]}
            case ArgumentsDelta(_, text) if choice in self._custom:
                self._custom[choice][1].append(text)
            case ArgumentsDelta(index, text):
                yield {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
            case CallEnd():
                yield from self._rest_of_call(choice)

    def _rest_of_call(self, choice: int) -> Iterator[Json]:
        """The input of a custom tool, once there is no more of it."""
        if choice in self._custom:
            index, texts = self._custom.pop(choice)
            custom = {"input": input_of("".join(texts))}
            yield {"tool_calls": [{"index": index, "custom": custom}]}

    def _chunk(
        self, index: int, delta: Json, finish_reason: str | None = None, **extra: Any
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": extra.pop("logprobs", None),
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._with_usage else {}
        return sse({**self._head, "choices": [choice], **usage, **extra})

    def end(self) -> bytes:
        if not self._with_usage:
            return DONE
        usage = usage_of(self._answering.usage)
        return sse({**self._head, "choices": [], "usage": usage}) + DONE

    def error(self, error: ApiError) -> bytes:
        return sse(error.body("openai"))
