"""Texts to tokens and back, prompts, the server's properties: as llama-server and vLLM tell it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from smollm3.errors import UserError
from smollm3.serve.ask import characters
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.fields import TOOLS, Body, TokenId
from smollm3.serve.dialects.openai_chat_body import (
    ChatBody,
    ChatMessage,
    ChatTool,
    TemplateArguments,
    ask_of,
)
from smollm3.serve.dialects.replies import ApiReply, replies
from smollm3.serve.errors import refused
from smollm3.serve.service import Service
from smollm3.tokenizer import Tokenizer


class TokenizeBody(Body):
    """A text or a conversation. prompt: read as /v1/completions reads it (vLLM's field). content:
    by itself, its control tokens as such (llama-server's), unless `parse_special` is false."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    tools: Annotated[list[ChatTool], TOOLS] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool = False
    return_token_strs: bool = False


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[TokenId]


class Piece(ApiReply):
    """A token, as a text or, where it is a part of a character, as its bytes."""

    id: int
    piece: str | list[int]


class Tokenized(ApiReply):
    tokens: list[int] | list[Piece]
    count: int
    max_model_len: int
    token_strs: list[str] = Field(default_factory=list)


class Detokenized(ApiReply):
    prompt: str
    content: str


class AppliedTemplate(ApiReply):
    prompt: str


class SlotSettings(ApiReply):
    n_ctx: int
    params: dict[str, Any]


class Properties(ApiReply):
    default_generation_settings: SlotSettings
    total_slots: int
    model_alias: str
    chat_template: str
    bos_token: str
    eos_token: str
    modalities: dict[str, bool]
    build_info: str


class Slot(ApiReply):
    id: int
    n_ctx: int
    is_processing: bool


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    engine = service.engine
    tokenizer = engine.tokenizer

    @routes.post("/tokenize", responses=replies(Tokenized))
    async def tokenize(body: TokenizeBody, request: Request) -> Response:
        """The tokens of a text or of a conversation's prompt."""
        service.check_model(body.model)

        def work() -> Response:
            ids = _ids(service, body)
            tokens: Any = [_piece(tokenizer, i) for i in ids] if body.with_pieces else ids
            strings = {}
            if body.return_token_strs:
                strings = {"token_strs": [tokenizer.decode([i]) for i in ids]}
            told = Tokenized(
                tokens=tokens, count=len(ids), max_model_len=engine.config.context, **strings
            )
            return told.response()

        return await service.tokenised(request, _characters(body), work)

    @routes.post("/detokenize", responses=replies(Detokenized))
    async def detokenize(body: DetokenizeBody, request: Request) -> Response:
        """The text of tokens, no more of them than the model reads."""
        service.check_model(body.model)
        most, context = engine.config.vocab_size, engine.config.context
        if len(body.tokens) > context:  # each stands for up to a hundred characters, told twice
            raise refused(f"tokens: at most {context}, not {len(body.tokens)}", "tokens")
        if any(token >= most for token in body.tokens):
            raise refused(f"tokens: must be below {most}", "tokens")

        def work() -> Response:
            text = tokenizer.decode(body.tokens)
            return Detokenized(prompt=text, content=text).response()

        return await service.tokenised(request, len(body.tokens), work)

    @routes.post("/apply-template", responses=replies(AppliedTemplate))
    async def apply_template(body: ChatBody, request: Request) -> Response:
        """The prompt of a request to /v1/chat/completions, as the model reads it."""
        service.check_model(body.model)
        [ids] = await service.prompts(request, ask_of(service, body))
        return AppliedTemplate(prompt=tokenizer.decode(ids)).response()

    @routes.get("/props", responses=replies(Properties))
    def props() -> Response:
        """What is served. Nothing of it can be set."""
        defaults = engine.params
        params = {
            name: getattr(defaults, name)
            for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        }
        settings = SlotSettings(n_ctx=engine.config.context, params=params)
        bos = "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos])
        told = Properties(
            default_generation_settings=settings,
            total_slots=service.settings.running,
            model_alias=service.model,
            chat_template=tokenizer.template or "",
            bos_token=bos,
            eos_token=tokenizer.decode([tokenizer.stop_ids[0]]),
            modalities={"vision": False, "audio": False},
            build_info=f"smollm3 {importlib.metadata.version('smollm3')}",
        )
        return told.response()

    @routes.get("/slots", response_model=list[Slot])
    async def slots() -> list[Slot]:
        """Places for answers, the taken ones first; not what is in them."""
        running, context = service.admission.running, engine.config.context
        places = range(service.settings.running)
        return [Slot(id=i, n_ctx=context, is_processing=i < running) for i in places]

    return routes


def _piece(tokenizer: Tokenizer, index: int) -> Piece:
    data = tokenizer.token_bytes(index)
    try:
        return Piece(id=index, piece=data.decode())
    except UnicodeDecodeError:
        return Piece(id=index, piece=list(data))


def _characters(body: TokenizeBody) -> int:
    said = [part.model_dump() for part in (*(body.messages or ()), *(body.tools or ()))]
    arguments = body.chat_template_kwargs
    return characters([body.prompt, body.content, said, arguments and arguments.model_dump()])


def _ids(service: Service, body: TokenizeBody) -> Sequence[int]:
    tokenizer = service.engine.tokenizer
    texts = {text for text in (body.prompt, body.content) if text is not None}
    if len(texts) + (body.messages is not None) != 1:
        raise refused("give one of prompt, content and messages")
    if body.messages is not None:
        return _prompt(service, body, body.messages)
    special = next((s for s in (body.add_special, body.add_special_tokens) if s is not None), None)
    begins = body.prompt is not None if special is None else special
    bos = [tokenizer.bos] if begins and tokenizer.bos is not None else []
    markup = body.prompt is None if body.parse_special is None else body.parse_special
    encode = tokenizer.encode_markup if markup else tokenizer.encode
    return bos + encode(texts.pop())


def _prompt(service: Service, body: TokenizeBody, messages: Sequence[ChatMessage]) -> list[int]:
    """As that of a chat."""
    arguments = body.chat_template_kwargs or TemplateArguments()
    if body.enable_thinking is not None:
        arguments = arguments.model_copy(update={"enable_thinking": body.enable_thinking})
    chat = ChatBody(
        messages=list(messages),
        tools=body.tools,
        chat_template_kwargs=arguments,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
    )
    try:
        [request] = ask_of(service, chat).requests
        return request.ids(service.engine.tokenizer)
    except UserError as e:
        raise refused(str(e)) from None
