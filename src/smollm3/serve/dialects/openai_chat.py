"""POST /v1/chat/completions: OpenAI's chat API, with reasoning apart from content."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from smollm3 import turn
from smollm3.chat import ArgumentsDelta, CallStart, ContentDelta, Event, ReasoningDelta
from smollm3.serve.answering import Answered, Answering, Quiet, Ran, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.fields import (
    Body,
    Content,
    Effort,
    Name,
    OpenSampling,
    StreamOptions,
    Structured,
    TemplateArguments,
    Whole,
    format_of,
    one_constraint,
    params_of,
    stops_of,
    structured_of,
    thinking_of,
    toolbox,
    with_usage,
)
from smollm3.serve.dialects.messages import conversation, text_of
from smollm3.serve.dialects.replies import (
    AssistantReply,
    CallText,
    ChatChoice,
    ChatCompletion,
    ChatToolCall,
    replies,
)
from smollm3.serve.dialects.tokens import chat_logprobs, glass_of, prompt_detail, tops, usage_of
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.service import DONE, KEEP_ALIVE, Json, Service, Tell, new_id, sse


class Function(Body):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Body):
    type: Literal["function"]
    function: Function


class CalledFunction(Body):
    name: str
    arguments: str


class MadeCall(Body):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[MadeCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None


class NamedFunction(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(OpenSampling):
    """A chat request. user, metadata, safety_identifier and prompt_cache_key are labels, which by
    their definition change no answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    model: str | None = None
    max_tokens: Whole | None = None
    max_completion_tokens: Whole | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", responses=replies(ChatCompletion, stream=True))
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        """Answer a conversation."""
        model = service.check_model(body.model)
        ask = ask_of(service, body)
        usage = with_usage(body.stream, body.stream_options)
        if body.stream:
            return await service.streamed(
                request, ask, lambda answering: _Teller(service, body, model, answering, usage)
            )
        answering = await service.whole(request, ask)
        return completion(service, body, model, answering).response()

    return routes


def ask_of(service: Service, body: ChatBody) -> Ask:
    """What the request asks the engine for. Raises ApiError for what cannot be done."""
    settings, template = service.settings, body.chat_template_kwargs or TemplateArguments()
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs: needs logprobs: true", "top_logprobs")
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise refused("max_tokens and max_completion_tokens differ; give one", "max_tokens")
    thinking = thinking_of(
        service,
        enable=template.enable_thinking,
        effort=body.reasoning_effort,
        budget=body.thinking_budget,
    )
    tools = [t.function.model_dump(exclude_none=True, exclude={"strict"}) for t in body.tools or ()]
    for tool in template.xml_tools or ():
        tools.append(_bare(tool))
    named = body.tool_choice if isinstance(body.tool_choice, NamedTool) else None
    parallel = body.parallel_tool_calls is not False
    box = toolbox(
        service,
        tools,
        template.python_tools or (),
        "named" if named else str(body.tool_choice or "auto"),
        named.function.name if named else None,
        parallel,
        any(tool.function.strict for tool in body.tools or ()),
    )
    constraint, optional = one_constraint(box, _format(service, body))
    params = params_of(
        body,
        settings,
        max_tokens=next(iter(limits), None),
        stop=stops_of(body.stop, settings, "stop"),
        top_logprobs=tops(body.glass_box, body.top_logprobs or 0),
        seed=body.seed,
    )
    request = turn.Request(
        conversation_of(body.messages),
        tools=box.shown,
        python_tools=box.python,
        may_call=box.may_call,
        parallel=parallel,
        enable_thinking=thinking.on,
        instructions=template.custom_instructions,
        params=params,
        fit=not limits,
        constraint=constraint,
        optional=optional,
        thinking_budget=thinking.budget if thinking.on else None,
    )
    return Ask([request], body.glass_box)


def _bare(tool: Json) -> Json:
    """A tool in the template's own argument, bare or as the API declares it."""
    try:
        declared = tool.get("function", tool)
        return Function.model_validate(declared).model_dump(exclude_none=True, exclude={"strict"})
    except ValueError:
        raise refused(
            "chat_template_kwargs.xml_tools: must be {name, description, parameters}"
        ) from None


def _format(service: Service, body: ChatBody) -> Any:
    wanted = body.response_format
    if body.structured_outputs is not None:
        if wanted is not None and wanted.type != "text":
            raise refused("response_format and structured_outputs: give one", "response_format")
        return structured_of(body.structured_outputs, service.settings)
    if wanted is None:
        return None
    schema = wanted.json_schema.schema_ if wanted.json_schema else None
    return format_of(wanted.type, schema, service.settings)


def conversation_of(messages: Sequence[ChatMessage]) -> list[Json]:
    """As templates know them."""
    return conversation([_message_of(i, message) for i, message in enumerate(messages)])


def _message_of(index: int, message: ChatMessage) -> Json:
    """An author's name is none of SmolLM3's protocol."""
    given = message.model_dump(exclude_none=True) | {"content": text_of(message.content)}
    if message.role == "developer":
        given["role"] = "system"
    if message.role != "assistant" and (message.tool_calls or message.reasoning_content):
        raise refused(f"messages.{index}: only an assistant reasons and calls", "messages")
    if message.role == "tool" and message.tool_call_id is None:
        raise refused(f"messages.{index}: a tool's message needs tool_call_id", "messages")
    if message.content is None and not message.tool_calls:
        raise refused(f"messages.{index}: needs content", "messages")
    return given


# Telling


def _call_id() -> str:
    return new_id("call_")


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
            message["tool_calls"] = [
                ChatToolCall(
                    id=_call_id(),
                    type="function",
                    function=CallText(name=call.name, arguments=call.text),
                )
                for call in calls
            ]
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
        deltas = [delta for event in part.events if (delta := _delta(event))]
        if extra and not deltas:
            deltas = [{}]
        return b"".join(
            self._chunk(part.index, delta, **(extra if i == len(deltas) - 1 else {}))
            for i, delta in enumerate(deltas)
        )

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


def _delta(event: Event) -> Json:
    match event:
        case ReasoningDelta(text):
            return {"reasoning_content": text}
        case ContentDelta(text):
            return {"content": text}
        case CallStart(index, name):
            function: Json = {"name": name, "arguments": ""}
            call = {"index": index, "id": _call_id(), "type": "function", "function": function}
            return {"tool_calls": [call]}
        case ArgumentsDelta(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return {}
