"""Ollama's API, the requests: what they ask of the engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from smollm3 import turn
from smollm3.serve.ask import Ask
from smollm3.serve.dialects.fields import (
    TOOLS,
    Body,
    Choose,
    OpenSampling,
    format_of,
    one_constraint,
    params_of,
    stops_of,
    thinking_of,
    toolbox,
)
from smollm3.serve.dialects.openai_chat_body import FunctionTool
from smollm3.serve.errors import refused
from smollm3.serve.service import Json, Service
from smollm3.serve.settings import Settings

NEAR = 64  # calls without results, among which one's is looked for
LATEST = ":latest"  # the tag that clients add to a name without one


class Options(OpenSampling):
    """num_predict: most tokens, none where it is negative. Those that say how Ollama runs a model
    on a machine change no answer, and are not looked at."""

    num_predict: Annotated[int, Field(ge=-2, le=1 << 31)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    typical_p: Annotated[float, Field(ge=1, le=1)] | None = None
    tfs_z: Annotated[float, Field(ge=1, le=1)] | None = None
    mirostat: Literal[0] | None = None
    mirostat_eta: float | None = None
    mirostat_tau: float | None = None
    repeat_last_n: int | None = None
    penalize_newline: bool | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    main_gpu: int | None = None
    draft_num_predict: int | None = None
    low_vram: bool | None = None
    f16_kv: bool | None = None
    logits_all: bool | None = None
    vocab_only: bool | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    numa: bool | None = None
    n: Literal[1] | None = None
    glass_box: Literal[False] = False


NoImages = Annotated[list[str], Field(max_length=0)] | None
KeepAlive = str | float | None  # how long Ollama keeps a model loaded; this one stays


class Called(Body):
    name: str
    arguments: dict[str, Any]
    index: int | None = None
    description: str | None = None


class MadeCall(Body):
    function: Called
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(Body):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: NoImages = None
    tool_calls: list[MadeCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class Asking(Body):
    """What chats and continued texts share."""

    model: str
    stream: bool = True
    think: bool | Literal["low", "medium", "high"] | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    truncate: bool | None = None
    shift: bool | None = None


class OllamaChat(Asking):
    """A conversation; without messages the model is only named."""

    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] = Field(default_factory=list)
    tools: Annotated[list[FunctionTool], TOOLS] | None = None


class OllamaGenerate(Asking):
    """A question, or with `raw` a text to continue; without a prompt the model is only named."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    suffix: Literal[""] | None = None
    template: Literal[""] | None = None
    context: Annotated[list[int], Field(max_length=0)] | None = None
    images: NoImages = None


class OllamaEmbed(Body):
    """Texts. A text that is too long is an error, whatever `truncate` says."""

    model: str
    input: str | Annotated[list[str], Field(max_length=2048)]
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate: bool | None = None
    options: Options | None = None
    keep_alive: KeepAlive = None


class OllamaEmbeddings(Body):
    """The older form, of one text."""

    model: str
    prompt: str
    options: Options | None = None
    keep_alive: KeepAlive = None


class OllamaShow(Body):
    """model, or `name` as older clients call it."""

    model: str | None = None
    name: str | None = None
    verbose: bool = False
    system: str | None = None
    template: str | None = None
    options: Options | None = None


def ask_of_chat(service: Service, body: OllamaChat) -> Ask:
    tools = [t.function.model_dump(exclude_none=True, exclude={"strict"}) for t in body.tools or ()]
    box = toolbox(service, tools, (), Choose(), parallel=True, strict=False)
    constraint, optional = one_constraint(box, _format(service.settings, body))
    request = turn.Request(
        _messages(body.messages),
        tools=box.shown,
        may_call=box.may_call,
        constraint=constraint,
        optional=optional,
        **_asked(service, body),
    )
    return Ask([request])


def ask_of_text(service: Service, body: OllamaGenerate) -> Ask:
    constraint = _format(service.settings, body)
    asked = _asked(service, body)
    if body.raw:
        if body.system is not None:
            raise refused("system: not with raw, which has no template", "system")
        del asked["enable_thinking"], asked["thinking_budget"]
        return Ask([turn.Request(prompt=body.prompt, constraint=constraint, **asked)])
    messages = [{"role": "user", "content": body.prompt}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return Ask([turn.Request(messages, constraint=constraint, **asked)])


def _format(settings: Settings, body: Asking) -> Any:
    if isinstance(body.format, dict):
        return format_of("json_schema", body.format, settings)
    return format_of("json_object" if body.format else "text", None, settings)


def _asked(service: Service, body: Asking) -> Json:
    """The fields of a Request that both kinds have."""
    settings, options = service.settings, body.options or Options()
    if body.top_logprobs and not body.logprobs:
        raise refused("top_logprobs: needs logprobs: true", "top_logprobs")
    given: Json = {"enable": body.think if isinstance(body.think, bool) else None}
    thinking = thinking_of(
        service, effort=body.think if isinstance(body.think, str) else None, **given
    )
    if options.repetition_penalty is None:
        options = options.model_copy(update={"repetition_penalty": options.repeat_penalty})
    most = options.num_predict if options.num_predict and options.num_predict > 0 else None
    params = params_of(
        options,
        settings,
        max_tokens=most,
        stop=stops_of(options.stop, settings, "options.stop"),
        top_logprobs=body.top_logprobs or 0,
        seed=options.seed,
    )
    return {
        "enable_thinking": thinking.on,
        "thinking_budget": thinking.budget if thinking.on else None,
        "params": params,
        "fit": most is None,
        "adapter": service.adapter_of(untagged(body.model)),
    }


def untagged(name: str) -> str:
    return name.removesuffix(LATEST)


def _messages(given: Sequence[OllamaMessage]) -> list[Json]:
    """Calls have no ids here: results follow them in their order, or say which tool's they are."""
    told: list[Json] = []
    open_calls: list[tuple[str, str]] = []  # id and name
    count = 0
    for message in given:
        one: Json = {"role": message.role, "content": message.content or ""}
        if message.role == "assistant":
            if message.thinking:
                one["reasoning_content"] = message.thinking
            calls = []
            for call in message.tool_calls or ():
                count += 1
                name, arguments = call.function.name, call.function.arguments
                function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
                calls.append({"id": f"call_{count}", "type": "function", "function": function})
                open_calls.append((f"call_{count}", name))
            if calls:
                one["tool_calls"] = calls
        elif message.role == "tool":
            wanted = message.tool_name or message.name
            place = next((i for i, (_, name) in enumerate(open_calls[:NEAR]) if name == wanted), 0)
            one["tool_call_id"] = open_calls.pop(place)[0] if open_calls else "call_0"
        told.append(one)
    return told
