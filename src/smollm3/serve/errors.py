"""What goes wrong with a request, and how each dialect says it."""

from __future__ import annotations

from typing import Any, Literal

from smollm3.errors import UserError
from smollm3.infer.errors import ContextOverflow
from smollm3.serve.dialects.replies import (
    AnthropicError,
    AnthropicErrorDetail,
    ErrorDetail,
    ErrorReply,
    OllamaError,
)

Dialect = Literal["openai", "anthropic", "ollama"]

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """An answer with this status instead of the one asked for. param: the field at fault; code: a
    name that programs can tell it by. retry_after: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        headers = {"www-authenticate": "Bearer"} if self.status == 401 else {}
        if self.retry_after is not None:
            headers["retry-after"] = str(self.retry_after)
        return headers

    def said(self, dialect: Dialect) -> str:
        """The message."""
        return self.message

    def body(self, dialect: Dialect) -> dict[str, Any]:
        fault = self.status >= 500
        if dialect == "ollama":
            return OllamaError(error=self.message).dumped()
        if dialect == "anthropic":
            kind = _ANTHROPIC_TYPES.get(
                self.status, "api_error" if fault else "invalid_request_error"
            )
            detail = AnthropicErrorDetail(type=kind, message=self.said(dialect))
            return AnthropicError(type="error", error=detail).dumped()
        kind = _OPENAI_TYPES.get(self.status, "server_error" if fault else "invalid_request_error")
        message = self.said(dialect)
        told = ErrorDetail(message=message, type=kind, param=self.param, code=self.code)
        return ErrorReply(error=told).dumped()


class TooLong(ApiError):
    """In the words by which clients know that they must make the conversation shorter."""

    def __init__(self, overflow: ContextOverflow) -> None:
        super().__init__(400, str(overflow), param="messages", code="context_length_exceeded")
        self._overflow = overflow

    def said(self, dialect: Dialect) -> str:
        found = self._overflow
        if dialect == "anthropic":
            return f"prompt is too long: {found.prompt} tokens > {found.most - 1} maximum"
        wanted = f"you requested {found.prompt + found.asked} tokens ({found.prompt} in the "
        wanted += f"messages, {found.asked} in the completion); reduce either"
        if not found.asked:
            wanted = f"your messages resulted in {found.prompt} tokens; reduce their length"
        # The code once more: of an error some libraries tell the message alone.
        told = f"This model's maximum context length is {found.most} tokens. However, {wanted}"
        return f"{told} ({self.code})."


def dialect_of(path: str) -> Dialect:
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that is wrong."""
    return ApiError(400, message, param=param, code=code)


def too_late(seconds: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {seconds:g} s", code="timeout")


def wrong(error: UserError) -> ApiError:
    """A request that the engine does not take."""
    return TooLong(error) if isinstance(error, ContextOverflow) else refused(str(error))


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
