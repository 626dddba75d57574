"""POST /v1/chat/completions, the request: a conversation in OpenAI's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from smollm3 import turn
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.custom_tools import InputGrammar, TextInput, declared
from smollm3.serve.dialects.fields import (
    TOOLS,
    Body,
    Choose,
    Effort,
    Limit,
    Name,
    OpenSampling,
    OtherTool,
    Past,
    StreamOptions,
    Structured,
    ToolHints,
    format_of,
    one_constraint,
    params_of,
    stops_of,
    structured_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.messages import (
    Content,
    apart,
    asked_from,
    begun_by,
    check_begun,
    check_readable,
    tag_of,
    text_of,
)
from smollm3.serve.dialects.tokens import tops
from smollm3.serve.errors import refused
from smollm3.serve.service import Json, Service


class Function(ToolHints):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(ToolHints):
    type: Literal["function"]
    function: Function
    strict: bool | None = None


class GrammarInput(Body):
    type: Literal["grammar"]
    grammar: InputGrammar


class Custom(Body):
    name: Name
    description: str | None = None
    format: Annotated[TextInput | GrammarInput, Field(discriminator="type")] | None = None

    @property
    def grammar(self) -> InputGrammar | None:
        return self.format.grammar if isinstance(self.format, GrammarInput) else None


class CustomTool(ToolHints):
    """A tool whose input is a text."""

    type: Literal["custom"]
    custom: Custom


ChatTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[OtherTool, Tag("other")],
    tag_of("function", "custom", other="other"),
]


class CalledFunction(Past):
    name: str
    arguments: str | dict[str, Any] = "{}"


class MadeCall(Past):
    id: str = ""
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _of_a_custom_tool(cls, given: Any) -> Any:
        """Its input is a text by itself."""
        custom = given.get("custom") if isinstance(given, dict) else None
        if not isinstance(custom, dict) or given.get("function") is not None:
            return given
        text = {"input": custom.get("input", "")}
        return given | {"function": {"name": custom.get("name"), "arguments": text}}


class SystemMessage(Past):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(Past):
    role: Literal["user"]
    content: Content


class AssistantMessage(Past):
    """Its reasoning under the names that clients have for it. prefix: go on from it."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[MadeCall] | None = None
    function_call: CalledFunction | None = None
    prefix: bool = False


class ToolMessage(Past):
    role: Literal["tool"]
    tool_call_id: str
    content: Content | None = None


class FunctionMessage(Past):
    """What a tool gave, in the API's oldest form."""

    role: Literal["function"]
    name: str = ""
    content: Content | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage,
    Field(discriminator="role"),
]


class Named(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: Named

    @property
    def name(self) -> str:
        return self.function.name


class NamedCustomTool(Body):
    type: Literal["custom"]
    custom: Named

    @property
    def name(self) -> str:
        return self.custom.name


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[NamedTool | NamedCustomTool, Field(discriminator="type")]], TOOLS
    ]


class AllowedToolChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Body):
    name: str | None = None
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Body):
    """schema: with json_object, as llama.cpp has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class Prediction(Body):
    """What the answer is expected to be."""

    type: Literal["content"]
    content: Content


class TemplateArguments(Past):
    """What a request may tell the chat template, which is the server's: also other variables that
    the template reads."""

    model_config = ConfigDict(extra="allow")
    enable_thinking: bool | None = None
    xml_tools: list[dict[str, Any]] | None = None
    python_tools: list[dict[str, Any] | str] | None = None
    custom_instructions: str | None = None


class ChatBody(OpenSampling):
    """A chat request."""

    place = "chat"
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    model: str | None = None
    max_tokens: Limit = None
    max_completion_tokens: Limit = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ChatTool], TOOLS] | None = None
    tool_choice: (
        Literal["none", "auto", "required"]
        | Annotated[NamedTool | NamedCustomTool | AllowedToolChoice, Field(discriminator="type")]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: Structured | None = None
    prediction: Prediction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    reasoning_effort: Effort | None = None
    thinking_budget: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    chat_template_kwargs: TemplateArguments | None = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None

    @property
    def functions(self) -> list[FunctionTool]:
        return [tool for tool in self.tools or () if isinstance(tool, FunctionTool)]

    @property
    def custom_tools(self) -> dict[str, Custom]:
        """By their names."""
        found = [tool.custom for tool in self.tools or () if isinstance(tool, CustomTool)]
        return {custom.name: custom for custom in found}

    @property
    def choice(self) -> Choose:
        given = self.tool_choice
        if isinstance(given, NamedTool | NamedCustomTool):
            return Choose("required", name=given.name)
        if isinstance(given, AllowedToolChoice):
            allowed = given.allowed_tools
            return Choose(allowed.mode, allowed=[tool.name for tool in allowed.tools])
        return Choose(given or "auto")


def ask_of(service: Service, body: ChatBody) -> Ask:
    """What the request asks the engine for. Raises ApiError for what cannot be done."""
    settings, template = service.settings, body.chat_template_kwargs or TemplateArguments()
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs: needs logprobs: true", "top_logprobs")
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        raise refused("max_tokens and max_completion_tokens differ; give one", "max_tokens")
    variables = template.model_extra or {}
    for name in variables.keys() - service.engine.tokenizer.template_variables:
        raise refused(
            f"chat_template_kwargs.{name:.80}: the template does not read it",
            f"chat_template_kwargs.{name:.80}",
        )
    messages, begun = _conversation(body)
    thinking = thinking_of(
        service,
        enable=False if begun and template.enable_thinking is None else template.enable_thinking,
        effort=None if begun else body.reasoning_effort,
        budget=None if begun else body.thinking_budget,
    )
    form = _format(service, body)
    if begun:
        check_begun(thinking.on, form)
    tools = _offered(body)
    tools += [_bare(tool) for tool in template.xml_tools or ()]
    parallel = body.parallel_tool_calls is not False
    box = toolbox(
        service,
        tools,
        template.python_tools or (),
        body.choice,
        parallel=parallel,
        strict=any(tool.strict or tool.function.strict for tool in body.functions),
        texts={n: one.grammar.constraint for n, one in body.custom_tools.items() if one.grammar},
    )
    constraint, optional = one_constraint(box, form)
    params = params_of(
        body,
        settings,
        max_tokens=next(iter(limits), None),
        stop=stops_of(body.stop, settings, "stop"),
        top_logprobs=tops(body.glass_box, body.top_logprobs or 0),
        seed=body.seed,
    )
    request = turn.Request(
        messages,
        tools=box.shown,
        python_tools=box.python,
        may_call=box.may_call,
        parallel=parallel,
        enable_thinking=thinking.on,
        instructions=template.custom_instructions,
        variables=variables,
        prefill=begun,
        params=params,
        fit=not limits,
        constraint=constraint,
        optional=optional,
        thinking_budget=thinking.budget if thinking.on else None,
        adapter=service.adapter_of(body.model),
        prediction=text_of(body.prediction.content) if body.prediction else "",
    )
    return Ask([request], body.glass_box)


def _offered(body: ChatBody) -> list[Json]:
    """Its tools, as the model is told of them."""
    told = []
    for tool in body.tools or ():
        if isinstance(tool, FunctionTool):
            told.append(_declared(tool.function))
        elif isinstance(tool, CustomTool):
            given = tool.custom
            told.append(declared(given.name, given.description, given.grammar))
    return told


def _declared(function: Function) -> Json:
    return function.model_dump(exclude_none=True, exclude={"strict"})


def _bare(tool: Json) -> Json:
    """A tool in the template's own argument, bare or as the API declares it."""
    try:
        declared = tool.get("function", tool)
        return _declared(Function.model_validate(declared))
    except ValueError:
        raise refused(
            "chat_template_kwargs.xml_tools: must be {name, description, parameters}"
        ) from None


def _format(service: Service, body: ChatBody) -> Any:
    wanted = body.response_format
    if body.structured_outputs is not None:
        if wanted is not None and wanted.type != "text":
            raise refused("response_format and structured_outputs: give one", "response_format")
        return structured_of(body.structured_outputs, service.settings)
    if wanted is None:
        return None
    if wanted.schema_ is not None and wanted.type == "json_object":
        return format_of("json_schema", wanted.schema_, service.settings)
    schema = wanted.json_schema.schema_ if wanted.json_schema else None
    return format_of(wanted.type, schema, service.settings)


def _conversation(body: ChatBody) -> tuple[list[Json], str]:
    """What was said, and the beginning of the answer where the last message is one."""
    last = body.messages[-1]
    goes_on = body.continue_final_message
    if body.add_generation_prompt is not None and body.add_generation_prompt == goes_on:
        word = "also asks for" if goes_on else "leaves out"
        raise refused(
            f"add_generation_prompt: {word} a new answer; it goes with continue_final_message",
            "add_generation_prompt",
        )
    if not isinstance(last, AssistantMessage) or not (goes_on or last.prefix):
        if goes_on:
            raise refused("continue_final_message: the last message is no assistant's", "messages")
        return conversation_of(body.messages), ""
    begun = begun_by(_answer(last), len(body.messages) > 1)
    return conversation_of(body.messages[:-1]), begun


def conversation_of(messages: Sequence[ChatMessage]) -> list[Json]:
    """As templates know them."""
    asked = asked_from([message.role for message in messages])
    for i, message in enumerate(messages[asked:], asked):
        if not isinstance(message, ToolMessage | FunctionMessage):
            check_readable(message.content, f"messages.{i}.content")
    return [_message_of(message) for message in messages]


def _message_of(message: ChatMessage) -> Json:
    """An author's name is none of SmolLM3's protocol."""
    content = text_of(message.content)
    match message:
        case AssistantMessage():
            return _answer(message)
        case ToolMessage():
            return {"role": "tool", "tool_call_id": message.tool_call_id, "content": content}
        case FunctionMessage():
            return {"role": "tool", "tool_call_id": message.name, "content": content}
    role = "system" if isinstance(message, SystemMessage) else "user"
    return {"role": role, "content": content}


def _answer(message: AssistantMessage) -> Json:
    thought, content = apart(message.content)
    given = [message.reasoning_content, message.reasoning, thought]
    told: Json = {"role": "assistant", "content": content or message.refusal or ""}
    if reasoning := next((text for text in given if text and isinstance(text, str)), None):
        told["reasoning_content"] = reasoning
    made = [call.model_dump() | {"type": "function"} for call in message.tool_calls or ()]
    if message.function_call and not made:
        function = message.function_call.model_dump()
        made = [{"id": function["name"], "type": "function", "function": function}]
    return told | ({"tool_calls": made} if made else {})
