"""The answers of the API: shown in the OpenAPI document, and what answers are built of."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from smollm3.turn import FinishReason


class ApiReply(BaseModel):
    """A part of an answer. A field with a default is left out where it was not set."""

    model_config = ConfigDict(extra="forbid")

    def dumped(self) -> dict[str, Any]:
        """As JSON has it."""
        return self.model_dump(mode="json", exclude_unset=True)

    def response(self) -> JSONResponse:
        return JSONResponse(self.dumped())


# Errors


class ErrorDetail(ApiReply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(ApiReply):
    error: ErrorDetail


class OllamaError(ApiReply):
    error: str


class AnthropicErrorDetail(ApiReply):
    type: str
    message: str


class AnthropicError(ApiReply):
    type: Literal["error"]
    error: AnthropicErrorDetail


# Tokens: log-probabilities, and everything about each of them (`glass_box`)


class TopLogprob(ApiReply):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(ApiReply):
    content: list[TokenLogprob]
    refusal: None = None


class CompletionLogprobs(ApiReply):
    """The first token of an echoed prompt has no figures."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class GlassAlternative(ApiReply):
    id: int
    text: str
    logprob: float


class GlassToken(GlassAlternative):
    top: list[GlassAlternative]
    source: Literal["sampled", "draft", "forced"]


class PromptToken(ApiReply):
    id: int
    text: str
    cached: bool


class CachedTokens(ApiReply):
    cached_tokens: int


class ReasoningTokens(ApiReply):
    reasoning_tokens: int


class CompletionDetails(ReasoningTokens):
    """Of a prediction, the draft tokens that were tried, of each draft up to a wrong one."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class CompletionUsage(ApiReply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: CompletionDetails


# /v1/chat/completions


class CallText(ApiReply):
    name: str
    arguments: str


class ChatToolCall(ApiReply):
    id: str
    type: Literal["function"]
    function: CallText


class CustomInput(ApiReply):
    name: str
    input: str


class ChatCustomCall(ApiReply):
    id: str
    type: Literal["custom"]
    custom: CustomInput


class AssistantReply(ApiReply):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ChatToolCall | ChatCustomCall] = []


class ChatChoice(ApiReply):
    index: int
    message: AssistantReply
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None
    tokens: list[GlassToken] = []


class ChatCompletion(ApiReply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    prompt_tokens_detail: list[PromptToken] = []


# /v1/completions


class TextChoice(ApiReply):
    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None
    tokens: list[GlassToken] = []


class TextCompletion(ApiReply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage
    prompt_tokens_detail: list[PromptToken] = []


# /v1/messages


class ThinkingContent(ApiReply):
    type: Literal["thinking"]
    thinking: str
    signature: str


class TextContent(ApiReply):
    type: Literal["text"]
    text: str


class ToolUseContent(ApiReply):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


AnthropicContent = ThinkingContent | TextContent | ToolUseContent


class ThinkingTokens(ApiReply):
    thinking_tokens: int


class AnthropicUsage(ApiReply):
    input_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int
    output_tokens: int
    output_tokens_details: ThinkingTokens


class AnthropicMessage(ApiReply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnthropicContent]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: AnthropicUsage


class TokenCount(ApiReply):
    input_tokens: int


# Our own endpoints


class ModelDetails(ApiReply):
    context: int
    modes: list[Literal["think", "no_think"]]
    thinking: bool
    think_by_default: bool
    chat: bool
    tools: list[Literal["xml", "python"]]
    engine: str
    vocab_size: int


class ServedModel(ApiReply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    max_model_len: int
    smollm3: ModelDetails
    type: Literal["model"]
    display_name: str
    created_at: str


class ServedModels(ApiReply):
    object: Literal["list"]
    data: list[ServedModel]
    has_more: bool
    first_id: str
    last_id: str


class ServerPython(ApiReply):
    sandbox: str
    functions: list[dict[str, Any] | str]
    asks: list[str]


class ServerTools(ApiReply):
    object: Literal["list"]
    data: list[dict[str, Any]]
    python: ServerPython | None


class CallResult(ApiReply):
    type: Literal["result"]
    content: str
    ok: bool


class ApprovalTaken(ApiReply):
    id: str
    allowed: bool


class Health(ApiReply):
    status: str


_ERRORS = {
    400: "The request is wrong, or asks for what is not supported",
    401: "No key, or a wrong one",
    403: "A web page of elsewhere, or a name that is not this machine's",
    404: "No such model",
    409: "It has ended already",
    413: "The body is too large",
    415: "The body is no JSON",
    422: "The finished answer breaks the schema that was asked for",
    429: "The queue is full; Retry-After says when to try again",
    500: "A fault of the server",
    503: "The server is shutting down",
    504: "The answer took too long",
    507: "There is no room on the disk",
}


def replies(
    model: type[BaseModel], *, stream: bool = False, error: type[BaseModel] = ErrorReply
) -> dict[int | str, dict[str, Any]]:
    """FastAPI's `responses` of an endpoint."""
    said: dict[int | str, dict[str, Any]] = {
        status: {"model": error, "description": told} for status, told in _ERRORS.items()
    }
    said[200] = {"model": model, "description": "The answer"}
    if stream and error is OllamaError:
        said[200]["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    elif stream:
        fields = {"event": {"type": "string"}, "data": {"type": "string"}}
        event = {"type": "object", "properties": fields, "description": "One of its events"}
        events = {"schema": event}
        said[200]["content"] = {"text/event-stream": events}
    return said
