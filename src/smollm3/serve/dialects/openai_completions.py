"""POST /v1/completions: OpenAI's older API, a text or its tokens continued."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from smollm3 import turn
from smollm3.infer import Step
from smollm3.serve.answering import Answered, Answering, Quiet, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.fields import (
    Limit,
    OpenSampling,
    Prompts,
    StreamOptions,
    Structured,
    Whole,
    params_of,
    prompts_of,
    stops_of,
    structured_of,
    with_usage,
)
from smollm3.serve.dialects.replies import TextChoice, TextCompletion, replies
from smollm3.serve.dialects.tokens import (
    completion_logprobs,
    glass_of,
    prompt_detail,
    tops,
    usage_of,
)
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.service import DONE, KEEP_ALIVE, Json, Service, Tell, new_id, sse

DEFAULT_TOKENS = 16  # as the API has it


class CompletionBody(OpenSampling):
    """A text, or several, or the same as tokens. Control tokens spelled in a text are text. echo:
    the prompt stands before the answer, also in its figures; then `max_tokens` may be 0. best_of:
    so many are made, and the n likeliest of them told."""

    place = "completions"
    prompt: Prompts
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=1 << 31)] | Limit = None
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: Whole | None = None
    structured_outputs: Structured | None = None


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/v1/completions", responses=replies(TextCompletion, stream=True))
    async def completions(body: CompletionBody, request: Request) -> Response:
        """Continue a text."""
        model = service.check_model(body.model)
        ask = ask_of(service, body)
        usage = with_usage(body.stream, body.stream_options)
        echoes = await _echoes(service, request, body, ask) if body.echo else [Echo()] * ask.count
        if body.max_tokens == 0:
            return _echoed(service, body, model, echoes).response()
        if body.stream:
            return await service.streamed(
                request,
                ask,
                lambda answering: _Teller(service, body, model, answering, usage, echoes),
            )
        answering = await service.whole(request, ask)
        return completion(service, body, model, answering, echoes).response()

    return routes


def ask_of(service: Service, body: CompletionBody) -> Ask:
    settings, prompts = service.settings, prompts_of(body.prompt)
    if body.max_tokens == 0 and not (body.echo and not body.stream):
        raise refused("max_tokens: 0 goes with echo, without stream", "max_tokens")
    if body.glass_box and len(prompts) > 1:
        raise refused("glass_box: of one prompt only", "glass_box")
    # Where nothing is written there is nothing to choose among.
    made = (body.max_tokens != 0 and body.best_of) or body.n or 1
    if made < (body.n or 1) or (body.stream and made > (body.n or 1)):
        raise refused("best_of: at least n, and more of them not as a stream", "best_of")
    params = params_of(
        body.model_copy(update={"n": made}),
        settings,
        max_tokens=body.max_tokens or DEFAULT_TOKENS,
        stop=stops_of(body.stop, settings, "stop"),
        top_logprobs=tops(body.glass_box, body.logprobs or 0),
        seed=body.seed,
    )
    constraint = None
    if body.structured_outputs is not None:
        constraint = structured_of(body.structured_outputs, settings)
    if len(prompts) * made > settings.running:
        raise refused(f"n: at most {settings.running} answers here at once", "n")
    adapter = service.adapter_of(body.model)
    asked = [
        turn.Request(prompt=p, params=params, constraint=constraint, adapter=adapter)
        for p in prompts
    ]
    return Ask(asked, body.glass_box)


@dataclass(frozen=True)
class Echo:
    """A prompt as it stands before its answer. steps: its tokens, where their figures are told."""

    text: str = ""
    steps: Sequence[Step] = ()
    tokens: int = 0


async def _echoes(service: Service, request: Request, body: CompletionBody, ask: Ask) -> list[Echo]:
    """One for each answer."""
    engine = service.engine
    given = await service.prompts(request, ask)
    steps: list[list[Step]] = [[] for _ in given]
    if body.logprobs is not None:
        top = body.logprobs
        steps = await service.read(
            request, given, lambda salt: [engine.submit_steps(ids, top, salt) for ids in given]
        )
    echoes = []
    for asked, ids, read in zip(ask.requests, given, steps, strict=True):
        prompt = asked.prompt
        text = prompt if isinstance(prompt, str) else engine.tokenizer.decode(ids)
        echoes += [Echo(text, read, len(ids))] * ask.n
    return echoes


def _echoed(
    service: Service, body: CompletionBody, model: str, echoes: Sequence[Echo]
) -> TextCompletion:
    """Prompts without answers."""
    choices = [
        TextChoice(
            index=i,
            text=echo.text,
            finish_reason="length",
            **_logprobs(service, body, echo.steps, 0),
        )
        for i, echo in enumerate(echoes)
    ]
    used = turn.Usage(prompt=sum(echo.tokens for echo in echoes[:: body.n or 1]))
    return _text_completion(model, choices, usage=usage_of(used))


def _text_completion(model: str, choices: list[TextChoice], **fields: Any) -> TextCompletion:
    return TextCompletion(
        id=new_id("cmpl-"),
        object="text_completion",
        created=int(time.time()),
        model=model,
        choices=choices,
        **fields,
    )


def _logprobs(service: Service, body: CompletionBody, steps: Sequence[Step], offset: int) -> Json:
    if body.logprobs is None or not steps:
        return {"logprobs": None}
    told = completion_logprobs(service.engine.tokenizer, steps, body.logprobs, offset)
    return {"logprobs": told}


def _likeliest(answering: Answered, n: int) -> list[int]:
    """Of the answers to each prompt the n whose tokens are likeliest, the best first, by their
    places; all as they are where no more were made."""
    made = answering.ask.n
    if made == n:
        return list(range(len(answering.replies)))

    def likely(place: int) -> float:
        steps = answering.replies[place].steps
        return sum(step.logprob for step in steps) / max(len(steps), 1)

    groups = (range(i, i + made) for i in range(0, len(answering.replies), made))
    return [p for group in groups for p in sorted(group, key=likely, reverse=True)[:n]]


def completion(
    service: Service,
    body: CompletionBody,
    model: str,
    answering: Answered,
    echoes: Sequence[Echo],
) -> TextCompletion:
    tokenizer = service.engine.tokenizer
    choices = [
        TextChoice(
            index=i,
            text=echo.text + answer.text,
            finish_reason=answer.reason,
            **_logprobs(service, body, [*echo.steps, *answer.steps], 0),
            **glass_of(tokenizer, answering.ask, answer.steps),
        )
        for i, (echo, answer) in enumerate(
            (echoes[place], answering.replies[place])
            for place in _likeliest(answering, body.n or 1)
        )
    ]
    return _text_completion(
        model,
        choices,
        usage=usage_of(answering.usage),
        **prompt_detail(tokenizer, answering),
    )


class _Teller(Tell):
    """A chunk for the echo and for each token that shows something."""

    def __init__(
        self,
        service: Service,
        body: CompletionBody,
        model: str,
        answering: Answering,
        usage: bool,
        echoes: Sequence[Echo],
    ) -> None:
        self._echoes = dict(enumerate(echoes)) if body.echo else {}
        self._service = service
        self._body = body
        self._answering = answering
        self._with_usage = usage
        self._begun = False
        self._offsets = [0] * answering.ask.count
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def event(self, event: StreamEvent) -> bytes:
        match event:
            case Quiet():
                return KEEP_ALIVE
            case turn.End():
                data = self._echo(event.index)
                return data + self._chunk(event.index, "", finish_reason=event.reason)
            case turn.Part(index, Step() as step):
                return self._echo(index) + self._token(index, step)
        return b""

    def _echo(self, index: int) -> bytes:
        """The prompt, once."""
        echo = self._echoes.pop(index, None)
        if echo is None:
            return b""
        self._offsets[index] = len(echo.text)
        return self._chunk(index, echo.text, **_logprobs(self._service, self._body, echo.steps, 0))

    def _token(self, index: int, step: Step) -> bytes:
        tokenizer = self._service.engine.tokenizer
        detail = {} if self._begun else prompt_detail(tokenizer, self._answering)
        self._begun = True
        choice = _logprobs(self._service, self._body, [step], self._offsets[index])
        self._offsets[index] += len(step.text)
        glass = glass_of(tokenizer, self._answering.ask, [step])
        if not (step.text or glass or choice["logprobs"]):
            return b""
        return self._chunk(index, step.text, **choice, extra=glass | detail)

    def _chunk(
        self,
        index: int,
        text: str,
        *,
        logprobs: Any = None,
        finish_reason: str | None = None,
        extra: Json | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        usage = {"usage": None} if self._with_usage else {}
        return sse({**self._head, "choices": [choice], **usage, **(extra or {})})

    def end(self) -> bytes:
        if not self._with_usage:
            return DONE
        usage = usage_of(self._answering.usage)
        return sse({**self._head, "choices": [], "usage": usage}) + DONE

    def error(self, error: ApiError) -> bytes:
        return sse(error.body("openai"))
