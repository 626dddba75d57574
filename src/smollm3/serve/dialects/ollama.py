"""Ollama's API: chats, texts, embeddings, and the one model as its list; streams of lines."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from smollm3 import turn, units
from smollm3.chat import CallEnd, ContentDelta, Event, ReasoningDelta
from smollm3.infer import Step
from smollm3.serve.answering import Answering, StreamEvent
from smollm3.serve.ask import Ask, can_think
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.ollama_bodies import (
    LATEST,
    Asking,
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaShow,
    ask_of_chat,
    ask_of_text,
    untagged,
)
from smollm3.serve.dialects.reading import embed
from smollm3.serve.dialects.replies import ApiReply, OllamaError, TokenLogprob, replies
from smollm3.serve.dialects.tokens import chat_logprobs
from smollm3.serve.errors import ApiError
from smollm3.serve.service import LINES, Json, Service, Tell

# Of Ollama, whose API this is; clients look whether it is new enough for them.
VERSION = "0.13.0"
_SHOWN = ReasoningDelta | ContentDelta | CallEnd
_NEVER = "2318-01-01T00:00:00Z"  # when it is unloaded


class CalledTool(ApiReply):
    name: str
    arguments: dict[str, Any]


class ToolCall(ApiReply):
    function: CalledTool


class ChatReply(ApiReply):
    role: Literal["assistant"]
    content: str
    thinking: str = ""
    tool_calls: list[ToolCall] = Field(default_factory=list)


class Answer(ApiReply):
    """Durations are in nanoseconds; no model is loaded for an answer."""

    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load"] = "stop"
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0
    prompt_eval_duration: int = 0
    eval_count: int = 0
    eval_duration: int = 0
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class ChatAnswer(Answer):
    message: ChatReply


class TextAnswer(Answer):
    model_config = ConfigDict(serialize_by_alias=True)

    text: Annotated[str, Field(serialization_alias="response")]
    thinking: str = ""


class ModelDetails(ApiReply):
    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class ListedModel(ApiReply):
    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str = ""
    size_vram: int = 0


class ListedModels(ApiReply):
    models: list[ListedModel]


class ShownModel(ApiReply):
    modelfile: str
    parameters: str
    template: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Embedded(ApiReply):
    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OneEmbedding(ApiReply):
    embedding: list[float]


class Version(ApiReply):
    version: str


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    def said(model: type[ApiReply], stream: bool = False) -> Any:
        return replies(model, stream=stream, error=OllamaError)

    @routes.post("/api/chat", responses=said(ChatAnswer, stream=True))
    async def chat(body: OllamaChat, request: Request) -> Response:
        """Answer a conversation; as a stream unless that is declined."""
        form = _Form(service, body, _check(service, body.model), _chat_part)
        if not body.messages:
            return form.loaded().response()
        return await _answer(service, request, body, ask_of_chat(service, body), form)

    @routes.post("/api/generate", responses=said(TextAnswer, stream=True))
    async def generate(body: OllamaGenerate, request: Request) -> Response:
        """Answer a question, or continue a text; as a stream unless that is declined."""
        form = _Form(service, body, _check(service, body.model), _text_part)
        if not body.prompt:
            return form.loaded().response()
        return await _answer(service, request, body, ask_of_text(service, body), form)

    @routes.post("/api/embed", responses=said(Embedded))
    async def embeddings(body: OllamaEmbed, request: Request) -> Response:
        """Vectors of texts, as /v1/embeddings makes them."""
        model, started = _check(service, body.model), time.perf_counter_ns()
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors, tokens = await embed(
            service, request, texts, untagged(body.model), body.dimensions
        )
        told = Embedded(
            model=model,
            embeddings=vectors,
            total_duration=time.perf_counter_ns() - started,
            load_duration=0,
            prompt_eval_count=tokens,
        )
        return told.response()

    @routes.post("/api/embeddings", responses=said(OneEmbedding))
    async def one_embedding(body: OllamaEmbeddings, request: Request) -> Response:
        """The vector of a text."""
        _check(service, body.model)
        vectors, _ = await embed(service, request, [body.prompt], untagged(body.model))
        return OneEmbedding(embedding=vectors[0]).response()

    @routes.get("/api/tags", responses=said(ListedModels))
    async def tags() -> Response:
        """The one model, as a list."""
        return ListedModels(models=[_listed(service)]).response()

    @routes.get("/api/ps", responses=said(ListedModels))
    async def running() -> Response:
        """The same: it is always loaded."""
        loaded = {"expires_at": _NEVER, "size_vram": 0}
        return ListedModels(models=[_listed(service).model_copy(update=loaded)]).response()

    @routes.post("/api/show", responses=said(ShownModel))
    async def show(body: OllamaShow) -> Response:
        """How the model is."""
        _check(service, body.model or body.name)
        return _shown(service).response()

    @routes.get("/api/version", responses=said(Version))
    async def version() -> Response:
        """Of the API that is spoken."""
        return Version(version=VERSION).response()

    return routes


def _check(service: Service, name: str | None) -> str:
    """The name under which a request is answered."""
    service.check_model(None if name is None else untagged(name))
    return name or service.model + LATEST


async def _answer(
    service: Service, request: Request, body: Asking, ask: Ask, form: _Form
) -> Response:
    if body.stream:
        return await service.streamed(
            request, ask, lambda answering: _Teller(form, answering), media_type=LINES
        )
    answering = await service.whole(request, ask)
    [reply] = answering.replies
    calls = [CallEnd(i, b.call) for i, b in enumerate(reply.blocks.calls) if b.call is not None]
    events: list[Event] = [
        ReasoningDelta(reply.blocks.text("reasoning")),
        # A continued text has no blocks that were asked for: it is told as it was written.
        ContentDelta(reply.text if reply.request.prompt is not None else reply.message.content),
        *calls,
    ]
    return form.answer(events, reply.steps, form.end(answering.end, answering.usage)).response()


# What an answer, or a part of one, says in each of the two forms.


def _chat_part(text: str, thought: str, calls: list[ToolCall], fields: Json) -> Answer:
    said: Json = {"role": "assistant", "content": text}
    said |= {"thinking": thought} if thought else {}
    said |= {"tool_calls": calls} if calls else {}
    return ChatAnswer(message=ChatReply(**said), **fields)


def _text_part(text: str, thought: str, calls: list[ToolCall], fields: Json) -> Answer:
    return TextAnswer(text=text, **({"thinking": thought} if thought else {}), **fields)


class _Form:
    """How the answers to a request are told."""

    def __init__(
        self, service: Service, body: Asking, model: str, part: Callable[..., Answer]
    ) -> None:
        self._tokenizer = service.engine.tokenizer
        self._body = body
        self._model = model
        self._part = part
        self._started = time.perf_counter_ns()
        self.first: int | None = None  # when the first token came

    def answer(self, events: list[Event], steps: list[Step], end: Json | None) -> Answer:
        """end: fields of the last part."""
        texts = {ReasoningDelta: "", ContentDelta: ""}
        calls = []
        for event in events:
            if isinstance(event, ReasoningDelta | ContentDelta):
                texts[type(event)] += event.text
            elif isinstance(event, CallEnd):
                calls.append(_called(event))
        fields: Json = {"model": self._model, "created_at": _now(), "done": end is not None}
        if self._body.logprobs and steps:
            top = self._body.top_logprobs or 0
            fields["logprobs"] = chat_logprobs(self._tokenizer, steps, top).content
        fields |= end or {}
        return self._part(texts[ContentDelta], texts[ReasoningDelta], calls, fields)

    def end(self, end: turn.End | None, usage: turn.Usage) -> Json:
        assert end is not None
        now = time.perf_counter_ns()
        first = now if self.first is None else self.first
        return {
            "done_reason": "length" if end.reason == "length" else "stop",
            "total_duration": now - self._started,
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": first - self._started,
            "eval_count": usage.completion,
            "eval_duration": now - first,
        }

    def loaded(self) -> Answer:
        """To a request that asks for nothing."""
        return self.answer([], [], {"done_reason": "load"})


def _called(event: CallEnd) -> ToolCall:
    arguments = event.call.arguments
    # What is no JSON object is handed on for the client to refuse.
    known = arguments if isinstance(arguments, dict) else {"arguments": arguments}
    return ToolCall(function=CalledTool(name=event.call.name, arguments=dict(known)))


class _Teller(Tell):
    """A line for each token that shows something; calls are told when they are complete."""

    def __init__(self, form: _Form, answering: Answering) -> None:
        self._form = form
        self._answering = answering
        self._raw = answering.ask.requests[0].prompt is not None

    def event(self, event: StreamEvent) -> bytes:
        if not isinstance(event, turn.Part):
            return b""
        if self._form.first is None:
            self._form.first = time.perf_counter_ns()
        events: list[Event] = list(event.events)
        if self._raw:
            events = [ContentDelta(event.text)]
        steps = [event.step] if event.step is not None else []
        shows: list[Event] = [e for e in events if isinstance(e, _SHOWN)]
        told = self._form.answer(shows, steps, None)
        return _line(told) if shows or told.logprobs else b""

    def end(self) -> bytes:
        end = self._form.end(self._answering.end, self._answering.usage)
        return _line(self._form.answer([], [], end))

    def error(self, error: ApiError) -> bytes:
        return _line(OllamaError(error=error.message))


def _line(told: ApiReply) -> bytes:
    return json.dumps(told.dumped(), ensure_ascii=False).encode() + b"\n"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


# The model


def _details(service: Service) -> ModelDetails:
    engine = service.engine
    return ModelDetails(
        parent_model="",
        format=engine.backend.name,
        family="smollm3",
        families=["smollm3"],
        parameter_size=units.count(engine.config.parameters),
        quantization_level="",
    )


def _listed(service: Service) -> ListedModel:
    created = datetime.datetime.fromtimestamp(service.created, datetime.UTC)
    name = service.model + LATEST
    return ListedModel(
        name=name,
        model=name,
        modified_at=created.isoformat().replace("+00:00", "Z"),
        size=0,  # of a file that could be pulled
        digest=hashlib.sha256(f"{name} {service.engine.config}".encode()).hexdigest(),
        details=_details(service),
    )


def _shown(service: Service) -> ShownModel:
    engine = service.engine
    config = engine.config
    info = {
        "general.architecture": "smollm3",
        "general.parameter_count": config.parameters,
        "smollm3.context_length": config.context,
        "smollm3.embedding_length": config.hidden,
        "smollm3.block_count": config.layers,
        "smollm3.attention.head_count": config.heads,
        "smollm3.attention.head_count_kv": config.kv_heads,
        "smollm3.vocab_size": config.vocab_size,
    }
    can = ["completion", "embedding"]
    if engine.tokenizer.template:
        can += ["tools", "thinking"] if can_think(engine) else ["tools"]
    params = (
        f"{name} {getattr(engine.params, name)}" for name in ("temperature", "top_k", "top_p")
    )
    listed = _listed(service)
    return ShownModel(
        modelfile=f"FROM {service.model}\n",
        parameters="\n".join(params),
        template=engine.tokenizer.template or "",
        details=listed.details,
        model_info=info,
        capabilities=can,
        modified_at=listed.modified_at,
    )
