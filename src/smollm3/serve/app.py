"""The application: the dialects' routes behind the guard."""

from __future__ import annotations

import importlib.metadata

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from smollm3.agent import Agent
from smollm3.config import problems
from smollm3.errors import UserError
from smollm3.infer import Engine
from smollm3.serve import page
from smollm3.serve.dialects import (
    adapters,
    anthropic,
    llama_server,
    models,
    ollama,
    openai_chat,
    openai_completions,
    openai_conversations,
    openai_files,
    openai_responses,
    reading,
    tools,
)
from smollm3.serve.errors import ApiError, dialect_of, refused, wrong
from smollm3.serve.guard import FAULT, GONE, Guard
from smollm3.serve.service import Gone, Service
from smollm3.serve.settings import Keys, Settings

LONGEST_TOLD = 300  # characters


def create_app(
    engine: Engine,
    settings: Settings | None = None,
    keys: Keys | None = None,
    model: str = "smollm3",
    agent: Agent | None = None,
) -> ASGIApp:
    """The ASGI application that serves an engine. model: its id, unless the settings name it.
    agent: its tools are those that the server runs."""
    return guarded(Service(engine, settings or Settings(), keys or Keys([]), model, agent))


def guarded(service: Service) -> ASGIApp:
    """The application of a service."""
    return Guard(_with_heads(routes(service)), service)


def _with_heads(app: ASGIApp) -> ASGIApp:
    """HEAD is answered as GET is, without the body: clients ask so whether anybody is there."""

    async def answered(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            held = {"body": b""} if message["type"] == "http.response.body" else {}
            await send({**message, **held})

        asked = {**scope, "method": "GET"}
        await app(asked, receive, without_body)
        scope.update({"route": asked["route"]} if "route" in asked else {})  # the guard counts it

    return answered


def routes(service: Service) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="smollm3",
        version=importlib.metadata.version("smollm3"),
        # FastAPI would make the document on the loop, and its pages would fetch scripts from
        # elsewhere: ours are in page.py.
        openapi_url=None,
    )
    for module in (
        openai_chat,
        openai_completions,
        openai_responses,
        openai_conversations,
        openai_files,
        reading,
        llama_server,
        ollama,
        anthropic,
        models,
        adapters,
        tools,
    ):
        app.include_router(module.router(service))
    page.add(app)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(UserError, _asked_wrong)
    app.add_exception_handler(ApiError, _told)
    app.add_exception_handler(Gone, _gone)
    app.add_exception_handler(Exception, _fault)
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    message, param = first_error(error)
    return _reply(request, refused(message, param))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = ApiError(error.status_code, str(error.detail))
    response = _reply(request, told)
    response.headers.update(error.headers or {})
    return response


async def _asked_wrong(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    return _reply(request, wrong(error))


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _reply(request, error)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)  # nobody reads it


async def _fault(request: Request, error: Exception) -> Response:
    """The guard, which sees the error too, writes it down."""
    return _reply(request, ApiError(500, FAULT))


def _reply(request: Request, error: ApiError) -> Response:
    body = error.body(dialect_of(request.url.path))
    return JSONResponse(body, error.status, error.headers)


def first_error(error: RequestValidationError) -> tuple[str, str | None]:
    """One line about a body that is no request, and its field; long ones not in full."""
    errors = error.errors()
    if any(e["type"] == "json_invalid" for e in errors):
        return "the body cannot be read as JSON", None
    if any(e["loc"] == ("body",) for e in errors):
        return "the body must be a JSON object", None
    bodiless = [{**e, "loc": e["loc"][1:]} for e in errors]  # the first is "body"
    first = problems(bodiless, error.body)[0]
    key, message = shortened(first.key), shortened(first.message)
    if first.kind == "unknown":
        return f"{key}: not supported by this server; leave it out", key
    return f"{key}: {message}" if key else message, key


def shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]}..."
