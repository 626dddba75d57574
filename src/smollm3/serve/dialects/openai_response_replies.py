"""/v1/responses: what it answers."""

from __future__ import annotations

from typing import Any, Literal

from smollm3.serve.dialects.replies import ApiReply, CachedTokens, ReasoningTokens, TokenLogprob

Progress = Literal["in_progress", "completed", "incomplete"]


class ReasoningPart(ApiReply):
    type: Literal["reasoning_text"]
    text: str


class SummaryPart(ApiReply):
    type: Literal["summary_text"]
    text: str


class ReasoningOutput(ApiReply):
    """In one of the two, whichever was asked for."""

    id: str
    status: Progress
    type: Literal["reasoning"]
    summary: list[SummaryPart]
    content: list[ReasoningPart]


class TextOutputPart(ApiReply):
    type: Literal["output_text"]
    text: str
    annotations: list[str]
    logprobs: list[TokenLogprob]


ResponsePart = ReasoningPart | SummaryPart | TextOutputPart


class MessageOutput(ApiReply):
    id: str
    status: Progress
    type: Literal["message"]
    role: Literal["assistant"]
    content: list[TextOutputPart]


class FunctionCallOutput(ApiReply):
    id: str
    status: Progress
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str = ""


class CustomToolCallOutput(ApiReply):
    id: str
    status: Progress
    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str = ""


class LogsOutput(ApiReply):
    type: Literal["logs"]
    logs: str


class CodeInterpreterOutput(ApiReply):
    id: str
    status: Progress
    type: Literal["code_interpreter_call"]
    container_id: str
    code: str
    outputs: list[LogsOutput] | None


OutputItem = (
    ReasoningOutput
    | MessageOutput
    | FunctionCallOutput
    | CustomToolCallOutput
    | CodeInterpreterOutput
)


class InputDetails(CachedTokens):
    cache_write_tokens: int


class ResponseUsage(ApiReply):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class ResponseError(ApiReply):
    code: str
    message: str


class ConversationId(ApiReply):
    id: str


class ResponseReply(ApiReply):
    """What was asked stands in it too."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Progress | Literal["failed"]
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None
    error: ResponseError | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    previous_response_id: str | None
    max_output_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_logprobs: int
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    text: dict[str, Any]
    reasoning: dict[str, str | None]
    store: bool
    truncation: Literal["disabled"]
    metadata: dict[str, str]
    background: Literal[False]
    conversation: ConversationId | None = None


class DeletedResponse(ApiReply):
    id: str
    object: Literal["response"]
    deleted: Literal[True]
