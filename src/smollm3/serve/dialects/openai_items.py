"""POST /v1/responses, the request: items, and the conversation that they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from smollm3 import turn
from smollm3.agent.python import declarations
from smollm3.chat.tags import PYTHON
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.fields import (
    TOOLS,
    Body,
    Effort,
    Limit,
    Metadata,
    OtherTool,
    Sampling,
    StreamOptions,
    format_of,
    one_constraint,
    params_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.messages import (
    asked_from,
    check_readable,
    text_of,
)
from smollm3.serve.dialects.openai_item_kinds import (
    CallItem,
    CompactionItem,
    CustomCallItem,
    InputMessage,
    Item,
    ItemReference,
    OtherItem,
    PythonItem,
    ReasoningItem,
    ResultItem,
)
from smollm3.serve.dialects.openai_response_tools import (
    AnyTool,
    Choice,
    CodeInterpreter,
    Offered,
    chosen,
    grammars,
    left_out,
    offered,
)
from smollm3.serve.errors import refused
from smollm3.serve.service import Json, Service, new_id

LOGPROBS = "message.output_text.logprobs"


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class TextSettings(Body):
    place = "text"
    format: TextFormat | None = None


class ReasoningSettings(Body):
    """summary: any asks for the reasoning as one; it is told whole."""

    place = "reasoning"
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class KeptConversation(Body):
    id: str


# More than is told anyway is only the first of them.
Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "code_interpreter_call.outputs",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
]


class ResponseBody(Sampling):
    """A request of the Responses API. seed and thinking_budget are extensions."""

    place = "responses"
    input: str | Annotated[list[Item], Field(max_length=4096)] = Field(default_factory=list)
    model: str | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | KeptConversation | None = None
    store: bool | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_output_tokens: Limit = None
    tools: Annotated[list[AnyTool], TOOLS] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    include: list[Included] | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    metadata: Metadata | None = None

    @property
    def summarised(self) -> bool:
        """Whether the reasoning is told as a summary, which some clients read alone."""
        asked = self.reasoning
        return bool(asked and ((asked.summary or "none") != "none" or asked.generate_summary))

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def conversation_id(self) -> str | None:
        given = self.conversation
        return given.id if isinstance(given, KeptConversation) else given

    @property
    def choice(self) -> Any:
        """As it was said."""
        chosen = self.tool_choice or "auto"
        return chosen if isinstance(chosen, str) else chosen.model_dump(exclude_none=True)

    @property
    def callable_tools(self) -> list[Any]:
        """As they were declared."""
        return [tool for tool in self.tools or () if not isinstance(tool, OtherTool)]

    @cached_property
    def functions(self) -> dict[str, Offered]:
        """By the names that the model has for them."""
        return offered(self.tools or ())

    @property
    def left_out(self) -> list[str]:
        items = self.input if isinstance(self.input, list) else ()
        others = [f"input.{i} ({x.type})" for i, x in enumerate(items) if isinstance(x, OtherItem)]
        return left_out(self.tools or ()) + others

    @property
    def interpreter(self) -> CodeInterpreter | None:
        found = [tool for tool in self.tools or () if isinstance(tool, CodeInterpreter)]
        if len(found) > 1:
            raise refused("tools: one code_interpreter is enough", "tools")
        return found[0] if found else None

    @property
    def parallel(self) -> bool:
        return self.parallel_tool_calls is not False


def ask_of(
    service: Service, body: ResponseBody, before: Sequence[Json], kept: Callable[[str], Json]
) -> tuple[Ask, list[Json]]:
    """What is asked of the engine, and the conversation without its instructions. before: the one
    that it goes on from; kept: finds an item of a kept response."""
    settings = service.settings
    if body.input == [] and not before:
        raise refused("input: is required", "input")
    if body.top_logprobs and not body.with_logprobs:
        raise refused(f"top_logprobs: needs include: [{LOGPROBS!r}]", "top_logprobs")
    thinking = thinking_of(
        service,
        effort=body.reasoning.effort if body.reasoning else None,
        budget=body.thinking_budget,
    )
    box = toolbox(
        service,
        [each.declared for each in body.functions.values()],
        _functions(service) if body.interpreter else (),
        chosen(body.tool_choice, body.functions),
        parallel=body.parallel,
        strict=any(getattr(each.tool, "strict", None) for each in body.functions.values()),
        texts=grammars(body.functions),
    )
    wanted = body.text.format if body.text else None
    form = format_of(wanted.type, wanted.schema_, settings) if wanted else None
    constraint, optional = one_constraint(box, form)
    said = [*before, *messages_of_items(body.input, kept)]
    first = [{"role": "system", "content": body.instructions}] if body.instructions else []
    params = params_of(
        body,
        settings,
        max_tokens=body.max_output_tokens,
        top_logprobs=body.top_logprobs or 0,
        seed=body.seed,
    )
    request = turn.Request(
        [*first, *said],
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
        adapter=service.adapter_of(body.model),
    )
    return Ask([request]), said


def _functions(service: Service) -> list[Any]:
    """What Python of the model may call here."""
    agent = service.tools.agent
    if agent is None or agent.sandbox is None:
        raise refused("tools: code_interpreter: this server was started without --python-tools")
    return declarations(agent.functions)


_ID_PREFIXES = {"function_call": "fc_", "function_call_output": "fco_", "reasoning": "rs_"}


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
        known = getattr(item, "id", None)
        told.append(shown | {"id": known or new_id(_ID_PREFIXES.get(item.type, "msg_"))})
    return told


def messages_of_items(given: str | Sequence[Item], kept: Callable[[str], Json]) -> list[Json]:
    """Items of one answer, which follow each other, become one message."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    roles = [getattr(item, "role", "assistant" if _is_answer(item) else "") for item in given]
    asked = asked_from(roles)
    messages: list[Json] = []
    for i, one in enumerate(given):
        item = _ITEM.validate_python(kept(one.id)) if isinstance(one, ItemReference) else one
        match item:
            case InputMessage(role="assistant"):
                _add(messages, {"content": text_of(item.content)})
            case InputMessage():
                if i >= asked:
                    check_readable(item.content, f"input.{i}.content")
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": text_of(item.content)})
            case ReasoningItem():
                _add(messages, {"reasoning_content": item.text})
            case CallItem():
                _add(messages, _call(item.call_id, item.function, item.arguments))
            case CustomCallItem():
                _add(messages, _call(item.call_id, item.function, {"input": item.input}))
            case PythonItem():
                _add(messages, _call(item.id, PYTHON, json.dumps({"code": item.code})))
                output = "\n".join(part.logs for part in item.outputs or ())
                messages.append({"role": "tool", "tool_call_id": item.id, "content": output})
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


def _is_answer(item: Item) -> bool:
    return isinstance(item, ReasoningItem | CallItem | CustomCallItem | PythonItem | ItemReference)


def _call(name: str, tool: str, arguments: Any) -> Json:
    function = {"name": tool, "arguments": arguments}
    return {"tool_calls": [{"id": name, "type": "function", "function": function}]}


_ITEM: TypeAdapter[Item] = TypeAdapter(Item)
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
        last.setdefault(key, []).extend(value)
    elif value:
        last[key] = value
