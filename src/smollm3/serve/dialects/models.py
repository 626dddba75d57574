"""Endpoints without an answer of the model: what is here, how it is, texts to tokens and back."""

from __future__ import annotations

import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import Field

from smollm3 import turn
from smollm3.errors import UserError
from smollm3.serve.ask import can_think
from smollm3.serve.dialects import replies as said
from smollm3.serve.dialects.fields import Body, TokenId
from smollm3.serve.dialects.openai_chat_body import ChatMessage, FunctionTool, conversation_of
from smollm3.serve.dialects.replies import replies
from smollm3.serve.errors import refused
from smollm3.serve.metrics import TYPE
from smollm3.serve.service import Service


class TokenizeBody(Body):
    """A text, as `prompt` or `content`, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    add_special: bool = True
    messages: Annotated[list[ChatMessage], Field(max_length=4096)] | None = None
    tools: list[FunctionTool] | None = None
    enable_thinking: bool | None = None


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[TokenId]


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    engine = service.engine

    @routes.get("/v1/models", responses=replies(said.ServedModels))
    async def models() -> Response:
        """What is served: one model, as OpenAI's and Anthropic's clients want to read it."""
        ends: Any = {"has_more": False, "first_id": service.model, "last_id": service.model}
        return said.ServedModels(object="list", data=[_model(service)], **ends).response()

    @routes.get("/v1/models/{name:path}", responses=replies(said.ServedModel))
    async def model(name: str) -> Response:
        """The model, under this name."""
        service.check_model(name)
        return _model(service).model_copy(update={"id": name}).response()

    @routes.post("/tokenize", responses=replies(said.Tokenized))
    def tokenize(body: TokenizeBody) -> Response:
        """The tokens of a text or of a conversation's prompt."""
        service.check_model(body.model)
        ids = _prompt_ids(service, body)
        context = engine.config.context
        return said.Tokenized(tokens=ids, count=len(ids), max_model_len=context).response()

    @routes.post("/detokenize", responses=replies(said.Detokenized))
    def detokenize(body: DetokenizeBody) -> Response:
        """The text of tokens."""
        service.check_model(body.model)
        if any(token >= engine.config.vocab_size for token in body.tokens):
            raise refused(f"tokens: must be below {engine.config.vocab_size}", "tokens")
        text = engine.tokenizer.decode(body.tokens)
        return said.Detokenized(prompt=text, content=text).response()

    @routes.get("/health", responses=replies(said.Health))
    async def health() -> Response:
        """The process lives."""
        return said.Health(status="ok").response()

    @routes.get("/ready", responses=replies(said.Health))
    async def ready() -> Response:
        """It takes requests."""
        service.check_open()
        return said.Health(status="ready").response()

    @routes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=TYPE)

    return routes


def _model(service: Service) -> said.ServedModel:
    engine = service.engine
    thinks = can_think(engine)
    details = said.ModelDetails(
        context=engine.config.context,
        modes=["think", "no_think"] if thinks else ["no_think"],
        thinking=thinks,
        think_by_default=thinks and service.settings.think,
        chat=bool(engine.tokenizer.template),
        tools=["xml", "python"],
        engine=engine.backend.name,
        vocab_size=engine.config.vocab_size,
    )
    created = datetime.datetime.fromtimestamp(service.created, datetime.UTC)
    return said.ServedModel(
        id=service.model,
        object="model",
        created=service.created,
        owned_by="smollm3",
        max_model_len=engine.config.context,
        smollm3=details,
        type="model",
        display_name=service.model,
        created_at=created.isoformat(),
    )


def _prompt_ids(service: Service, body: TokenizeBody) -> list[int]:
    tokenizer = service.engine.tokenizer
    texts = {text for text in (body.prompt, body.content) if text is not None}
    if len(texts) + (body.messages is not None) != 1:
        raise refused("give one of prompt, content and messages")
    try:
        if body.messages is None:
            bos = [tokenizer.bos] if body.add_special and tokenizer.bos is not None else []
            return bos + tokenizer.encode(texts.pop())
        tools: list[Any] = [
            tool.function.model_dump(exclude_none=True, exclude={"strict"})
            for tool in body.tools or ()
        ]
        thinking = service.settings.think if body.enable_thinking is None else body.enable_thinking
        asked = turn.Request(conversation_of(body.messages), tools=tools, enable_thinking=thinking)
        return asked.ids(tokenizer)
    except UserError as e:
        raise refused(str(e)) from None
