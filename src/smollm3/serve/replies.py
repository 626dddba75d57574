"""What answers look like, for the OpenAPI document; they are built as plain objects."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorBody


class AnthropicErrorBody(BaseModel):
    type: str
    message: str


class AnthropicError(BaseModel):
    type: Literal["error"]
    error: AnthropicErrorBody


class Message(BaseModel):
    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Choice(BaseModel):
    index: int
    message: Message
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: dict[str, Any] | None
    tokens: list[dict[str, Any]] | None = None


class TokenUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: TokenUsage
    prompt_tokens_detail: list[dict[str, Any]] | None = None


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None
    tokens: list[dict[str, Any]] | None = None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage
    prompt_tokens_detail: list[dict[str, Any]] | None = None


class Response(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    model: str
    status: Literal["completed", "incomplete"]
    output: list[dict[str, Any]]
    usage: dict[str, Any]


class Deleted(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class AnthropicMessage(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: dict[str, Any]


class TokenCount(BaseModel):
    input_tokens: int


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    smollm3: dict[str, Any]
    type: Literal["model"]
    display_name: str
    created_at: str


class Models(BaseModel):
    object: Literal["list"]
    data: list[Model]
    has_more: bool
    first_id: str
    last_id: str


class OwnTools(BaseModel):
    object: Literal["list"]
    data: list[dict[str, Any]]
    python: dict[str, Any] | None


class ToolResult(BaseModel):
    type: Literal["result"]
    content: str
    ok: bool


class Answered(BaseModel):
    id: str
    allowed: bool


class Tokens(BaseModel):
    tokens: list[int]
    count: int
    max_model_len: int


class Text(BaseModel):
    prompt: str
    content: str


class Health(BaseModel):
    status: str


_ERRORS = {
    400: "The request is wrong, or asks for what is not supported",
    401: "No key, or a wrong one",
    403: "A web page of elsewhere, or a name that is not this machine's",
    404: "No such model",
    413: "The body is too large",
    415: "The body is no JSON",
    429: "The queue is full; Retry-After says when to try again",
    500: "A fault of the server",
    503: "The server is shutting down",
    504: "The answer took too long",
}


def replies(
    model: type[BaseModel], *, stream: bool = False, error: type[BaseModel] = Error
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of an endpoint."""
    said: dict[int | str, dict[str, Any]] = {
        status: {"model": error, "description": told} for status, told in _ERRORS.items()
    }
    said[200] = {"model": model, "description": "The answer"}
    if stream:
        fields = {"event": {"type": "string"}, "data": {"type": "string"}}
        event = {"type": "object", "properties": fields, "description": "One of its events"}
        events = {"schema": event}
        said[200]["content"] = {"text/event-stream": events}
    return said
