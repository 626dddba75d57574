"""POST /v1/responses, the request: items, and the conversation that they are."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from smollm3 import turn
from smollm3.agent.python import declarations
from smollm3.chat.tags import PYTHON
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.fields import (
    Body,
    Content,
    Effort,
    Name,
    Sampling,
    Whole,
    format_of,
    one_constraint,
    params_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.messages import conversation, text_of
from smollm3.serve.errors import refused
from smollm3.serve.service import Json, Service, new_id

Status = Literal["in_progress", "completed", "incomplete"]
LOGPROBS = "message.output_text.logprobs"


class InputMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: str | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class ReasoningText(Body):
    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(Body):
    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    summary: Annotated[list[Any], Field(max_length=0)] | None = None
    id: str | None = None
    encrypted_content: None = None
    status: Status | None = None


class CallItem(Body):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: Status | None = None


class Logs(Body):
    type: Literal["logs"]
    logs: str


class PythonItem(Body):
    """Python that this server has run."""

    type: Literal["code_interpreter_call"]
    code: str
    outputs: list[Logs] | None = None
    container_id: str | None = None
    id: str | None = None
    status: Status | Literal["interpreting", "failed"] | None = None


class ResultItem(Body):
    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: Status | None = None


class ResponseTool(Body):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AutoContainer(Body):
    type: Literal["auto"]


class CodeInterpreter(Body):
    """The server's own Python. container: that of the response before, else a new one; or any
    name, under which variables are kept until they were unused for ten minutes."""

    type: Literal["code_interpreter"]
    container: Annotated[str, Field(min_length=1, max_length=200)] | AutoContainer


class NamedTool(Body):
    type: Literal["function"]
    name: str


class PythonChoice(Body):
    type: Literal["code_interpreter"]


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextSettings(Body):
    format: TextFormat | None = None


class ReasoningSettings(Body):
    effort: Effort | None = None


class CompactionItem(Body):
    """A summary of what came before, in base64."""

    type: Literal["compaction"]
    encrypted_content: str
    id: str | None = None

    @property
    def text(self) -> str:
        try:
            return base64.b64decode(self.encrypted_content, validate=True).decode()
        except ValueError:
            raise refused("input: this compaction was not made here", "input") from None


class KeptConversation(Body):
    id: str


Item = InputMessage | ReasoningItem | CallItem | PythonItem | ResultItem | CompactionItem

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])


class ResponseBody(Sampling):
    """A request of the Responses API. seed and thinking_budget are extensions."""

    input: str | Annotated[list[Item], Field(min_length=1, max_length=4096)]
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | KeptConversation | None = None
    store: bool | None = None
    stream: bool = False
    max_output_tokens: Whole | None = None
    tools: list[ResponseTool | CodeInterpreter] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | PythonChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def conversation_id(self) -> str | None:
        given = self.conversation
        return given.id if isinstance(given, KeptConversation) else given

    @property
    def choice(self) -> Any:
        chosen = self.tool_choice or "auto"
        return chosen if isinstance(chosen, str) else chosen.model_dump()

    @property
    def interpreter(self) -> CodeInterpreter | None:
        found = [tool for tool in self.tools or () if isinstance(tool, CodeInterpreter)]
        if len(found) > 1:
            raise refused("tools: one code_interpreter is enough", "tools")
        return found[0] if found else None

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False


def ask_of(service: Service, body: ResponseBody, before: Sequence[Json]) -> tuple[Ask, list[Json]]:
    """What is asked of the engine, and the conversation without its instructions. before: the one
    that it goes on from."""
    settings = service.settings
    if body.top_logprobs and not body.with_logprobs:
        raise refused(f"top_logprobs: needs include: [{LOGPROBS!r}]", "top_logprobs")
    thinking = thinking_of(
        service,
        effort=body.reasoning.effort if body.reasoning else None,
        budget=body.thinking_budget,
    )
    tools = [tool for tool in body.tools or () if isinstance(tool, ResponseTool)]
    named = None
    if isinstance(body.tool_choice, NamedTool | PythonChoice):
        named = body.tool_choice.name if isinstance(body.tool_choice, NamedTool) else PYTHON
    box = toolbox(
        service,
        [t.model_dump(exclude_none=True, exclude={"type", "strict"}) for t in tools],
        _functions(service) if body.interpreter else (),
        "named" if named else body.choice,
        named,
        body.parallel,
        any(tool.strict for tool in tools),
    )
    wanted = body.text.format if body.text else None
    form = format_of(wanted.type, wanted.schema_, settings) if wanted else None
    constraint, optional = one_constraint(box, form)
    said = [*before, *messages_of_items(body.input)]
    first = [{"role": "system", "content": body.instructions}] if body.instructions else []
    params = params_of(
        body,
        settings,
        max_tokens=body.max_output_tokens,
        top_logprobs=body.top_logprobs or 0,
        seed=body.seed,
    )
    request = turn.Request(
        conversation([*first, *said]),
        tools=box.shown,
        python_tools=box.python,
        may_call=box.may_call,
        parallel=body.parallel,
        enable_thinking=thinking.on,
        params=params,
        fit=body.max_output_tokens is None,
        constraint=constraint,
        optional=optional,
        thinking_budget=thinking.budget if thinking.on else None,
    )
    return Ask([request]), said


def _functions(service: Service) -> list[Any]:
    """What Python of the model may call here."""
    agent = service.tools.agent
    if agent is None or agent.sandbox is None:
        raise refused("tools: code_interpreter: this server was started without --python-tools")
    return declarations(agent.functions)


_KINDS = {"function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


def items_of(given: str | Sequence[Item]) -> list[Json]:
    """Items as the API tells them, each with an id."""
    if isinstance(given, str):
        given = [InputMessage(role="user", content=given)]
    told = []
    for item in given:
        shown: Json = {"type": item.type, **item.model_dump(exclude_none=True)}
        if isinstance(item, InputMessage) and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            shown["content"] = [{"type": kind, "text": item.content}]
        told.append(shown | {"id": item.id or new_id(_KINDS.get(item.type, "msg_"))})
    return told


def messages_of_items(given: str | Sequence[Item]) -> list[Json]:
    """Items of one answer, which follow each other, become one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    messages: list[Json] = []
    for item in given:
        match item:
            case InputMessage(role="assistant"):
                _add(messages, {"content": text_of(item.content)})
            case InputMessage():
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": text_of(item.content)})
            case ReasoningItem():
                thought = "".join(part.text for part in item.content or ())
                _add(messages, {"reasoning_content": thought})
            case CallItem():
                function = {"name": item.name, "arguments": item.arguments}
                call = {"id": item.call_id, "type": "function", "function": function}
                _add(messages, {"tool_calls": [call]})
            case PythonItem():
                code = {"name": PYTHON, "arguments": json.dumps({"code": item.code})}
                call = {"id": item.id or "", "type": "function", "function": code}
                _add(messages, {"tool_calls": [call]})
                output = "\n".join(part.logs for part in item.outputs or ())
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
            case CompactionItem():
                messages.append({"role": "assistant", "content": item.text})
            case ResultItem():
                messages.append(
                    {
                        "role": "tool",
                        "tool_call_id": item.call_id,
                        "content": text_of(item.output),
                    }
                )
    return messages


_ORDER = ("reasoning_content", "content", "tool_calls")  # in an answer


def _add(messages: list[Json], part: Json) -> None:
    """One part more of the answer that is the last message, or the first of a new one."""
    [(key, value)] = part.items()
    last: Json = messages[-1] if messages else {"role": ""}
    later = _ORDER[_ORDER.index(key) + (key == "tool_calls") :]
    if last["role"] != "assistant" or any(last.get(one) for one in later):
        last = {"role": "assistant", "content": ""}
        messages.append(last)
    if key == "tool_calls":
        last[key] = [*last.get(key, ()), *value]
    elif value:
        last[key] = value
