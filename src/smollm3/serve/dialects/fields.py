"""Parts of requests that several dialects have, and what they mean to the engine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from smollm3.config import StrictModel
from smollm3.infer import SamplingParams
from smollm3.infer.constrain.grammars import Choice, ConstraintSpec, Grammar, Json, Regex, Tools
from smollm3.serve.ask import can_think, check_schema
from smollm3.serve.dialects import rule
from smollm3.serve.errors import refused
from smollm3.serve.service import Service
from smollm3.serve.settings import Settings

_LISTS = ("list", "tuple", "set", "frozenset")


def _fail_fast(schema: Any) -> Any:
    """pydantic's schema, of which every list fails fast."""
    if isinstance(schema, dict):
        told = {key: _fail_fast(value) for key, value in schema.items()}
        return told | ({"fail_fast": True} if schema.get("type") in _LISTS else {})
    return [_fail_fast(item) for item in schema] if type(schema) is list else schema


MOST_KEYS = 1024  # of an object whose values are checked one by one


def _few(given: Any) -> Any:
    if isinstance(given, dict) and len(given) > MOST_KEYS:
        raise ValueError(f"at most {MOST_KEYS} keys, not {len(given)}")
    return given


FEW = BeforeValidator(_few)
TOOLS = Field(max_length=1024)  # with those that are left out
# Labels, as OpenAI bounds them.
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
    FEW,
]


class Body(StrictModel):
    """What a request may say: nothing unknown, no text for a number. Null is absent.

    place: of its fields in the rule; what that accepts is taken off before the rest is read.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    place: ClassVar[str] = ""

    @model_validator(mode="before")
    @classmethod
    def _by_the_rule(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known, kept = rule.rows(cls.place), {}
        for name, value in _few(given).items():
            row = known.get(name)
            if row is not None and value is not None and not rule.accepts(row, value):
                why = PydanticCustomError(
                    "unsupported", "{why}", {"why": f"not supported: {row.why}"}
                )
                wrong = InitErrorDetails(type=why, loc=(name,), input=value)
                raise ValidationError.from_exception_data(cls.__name__, [wrong])
            if row is None and value is not None:
                kept[name] = value
        return kept

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """A list ends at its first wrong item: errors are no more than forms of one."""
        return _fail_fast(handler(source))

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
        """The rule's fields are in the document of the API."""
        schema = handler.resolve_ref_schema(handler(core))
        for name, row in rule.rows(cls.place).items():
            if row.only != ():
                told = {} if row.only is None else {"enum": [None, *row.only]}
                schema["properties"][name] = {"description": row.why, **told}
        return schema


class Past(Body):
    """What was said before: what it does not need to know of it may say anything."""

    model_config = ConfigDict(extra="ignore")


Whole = Annotated[int, Field(ge=1, le=1 << 31)]
# Some say -1 where they mean no limit.
Limit = Annotated[Whole | None, BeforeValidator(lambda given: None if given == -1 else given)]
TokenId = Annotated[int, Field(ge=0, le=1 << 31)]
Text = Annotated[str, Field(min_length=1)]
Ids = Annotated[list[TokenId], Field(min_length=1)]


def _shape_of(given: Any) -> str | None:
    if not isinstance(given, list):
        return "text" if isinstance(given, str) else None
    kind = type(given[0]) if given else str
    return {int: "ids", list: "lists"}.get(kind, "texts")


# One or several, so that an error is about the form that was meant.
Prompts = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Ids, Tag("ids")]
    | Annotated[list[Text], Tag("texts"), Field(min_length=1)]
    | Annotated[list[Ids], Tag("lists")],
    Discriminator(
        _shape_of,
        custom_error_type="no_prompts",
        custom_error_message="must be a text, a list of texts, token ids or a list of those",
    ),
]


def prompts_of(given: Text | Ids | list[Text] | list[Ids]) -> Sequence[Any]:
    """Texts, or each one's token ids."""
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
# Tokens of reasoning. The model has no such levels, so they are budgets.
BUDGETS: dict[str, int | None] = {"minimal": 256, "low": 1024, "medium": 4096}


class Sampling(Body):
    """Fields of all dialects that choose tokens."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None  # -1 and 0: among all


class OpenSampling(Sampling):
    """And of those that are OpenAI's older ones, with common extensions."""

    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, FEW] = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: bool = False
    min_tokens: Annotated[int, Field(ge=0, le=1 << 31)] = 0
    n: Whole | None = None
    glass_box: bool = False


def params_of(
    body: Sampling,
    settings: Settings,
    *,
    max_tokens: int | None,
    stop: Sequence[str] = (),
    top_logprobs: int = 0,
    seed: int | None,
) -> SamplingParams:
    """max_tokens, seed: the server's greatest, and any, where the request does not say."""
    values: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": 0 if body.top_k == -1 else body.top_k,
        "logprobs": top_logprobs,
        "max_tokens": max_tokens or settings.max_tokens,
        "stop": stop,
        "seed": secrets.randbits(62) if seed is None else seed,
    }
    limit(top_logprobs, settings.max_top_logprobs, "top_logprobs")
    if isinstance(body, OpenSampling):
        limit(body.n or 1, settings.max_choices, "n")
        limit(len(body.stop_token_ids or ()), settings.max_stops, "stop_token_ids")
        values |= {
            "min_p": body.min_p,
            "repetition_penalty": body.repetition_penalty,
            "presence_penalty": body.presence_penalty or 0.0,
            "frequency_penalty": body.frequency_penalty or 0.0,
            "logit_bias": _bias(body.logit_bias or {}, settings),
            "stop_token_ids": body.stop_token_ids or (),
            "ignore_eos": body.ignore_eos,
            "min_tokens": body.min_tokens,
            "n": body.n or 1,
        }
    return SamplingParams(**values)


def _bias(given: dict[str, float], settings: Settings) -> dict[int, float]:
    limit(len(given), settings.max_logit_bias, "logit_bias")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in given):
        raise refused("logit_bias: keys must be token ids", "logit_bias")
    return {int(key): value for key, value in given.items()}


def stops_of(stop: str | Sequence[str] | None, settings: Settings, param: str) -> tuple[str, ...]:
    """Without empty ones, which some clients send where they mean none."""
    stops = tuple(filter(None, (stop,) if isinstance(stop, str) else stop or ()))
    limit(len(stops), settings.max_stops, param)
    if not all(len(text) <= 1000 for text in stops):
        raise refused(f"{param}: texts of at most 1000 characters", param)
    return stops


def limit(count: int, most: int, param: str) -> None:
    if count > most:
        raise refused(f"{param}: at most {most} here, not {count}", param)


class StreamOptions(Body):
    place = "stream_options"
    include_usage: bool = False


def with_usage(stream: bool, options: StreamOptions | None) -> bool:
    """Whether a stream tells at its end what was used. Elsewhere the options say nothing."""
    return stream and options is not None and options.include_usage


# Reasoning


@dataclass(frozen=True)
class Thinking:
    on: bool
    budget: int | None = None


def thinking_of(
    service: Service,
    *,
    enable: bool | None = None,
    effort: str | None = None,
    budget: int | None = None,
) -> Thinking:
    """Whether the answer begins with reasoning, and its budget, from what the request says."""
    wanted = enable
    if effort is not None:
        if enable is not None and enable == (effort == "none"):
            raise refused(f"enable_thinking contradicts reasoning_effort {effort!r}")
        wanted = effort != "none"
    if budget is not None and wanted is False:
        raise refused("a thinking budget goes with thinking, which is off", "thinking_budget")
    asked = wanted or budget is not None
    if not can_think(service.engine):
        if asked:
            raise refused("this model does not reason; leave out thinking and its budget")
        return Thinking(False)
    if effort is not None and budget is None:
        budget = BUDGETS.get(effort)
    on = bool(asked) if wanted is not None or asked else service.settings.think
    return Thinking(on, budget)


# Tools and formats


class ToolHints(Body):
    """What all dialects' tools may say besides."""

    place = "tool"


class OtherTool(Past):
    """A tool of a kind that cannot be called here: it is left out, and a header says so."""

    type: str
    name: str | None = None


def left_out(tools: Sequence[Any]) -> list[str]:
    """Of the tools of a request, those that are left out."""
    return [
        f"tools.{i} ({tool.type})" for i, tool in enumerate(tools) if isinstance(tool, OtherTool)
    ]


@dataclass(frozen=True)
class Choose:
    """How tools are to be called. name: this one; allowed: only these, though all are shown."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str | None = None
    allowed: Sequence[str] | None = None


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request: as the template shows them, how they are called, if they may be."""

    shown: list[Any]
    python: list[Any]
    constraint: ConstraintSpec | None = None
    optional: bool = False
    may_call: bool = True


def toolbox(
    service: Service,
    declared: Sequence[dict[str, Any]],
    python: Sequence[Any],
    choice: Choose,
    *,
    parallel: bool,
    strict: bool,
    texts: Mapping[str, Regex | Grammar] | None = None,
) -> Toolbox:
    """declared: {"name", "description", "parameters"}. strict: the schemas must be kept to, or it
    is an error. texts: what the inputs of custom tools are held to, or it is an error."""
    settings = service.settings
    limit(len(declared) + len(python), settings.max_tools, "tools")
    for tool in declared:
        check_schema("tools", tool, settings)
    check_schema("tools", list(python), settings)
    names = [tool["name"] for tool in declared]
    if len(set(names)) < len(names):
        raise refused("tools: two have the same name", "tools")
    if python and "python" in names:
        raise refused("tools: python: with Python that name is taken; rename it", "tools")
    known = [*names, *(["python"] if python else [])]
    for name in [choice.name] if choice.name is not None else choice.allowed or ():
        if name not in known:
            raise refused(f"tool_choice: there is no tool {name!r:.80}", "tool_choice")
    callable_ = known if choice.allowed is None else [n for n in known if n in choice.allowed]
    if choice.mode == "required" and not callable_:
        raise refused("tool_choice: there are no tools to call", "tool_choice")
    if choice.mode == "none" or not known:
        return Toolbox([], [], may_call=not known)
    if not callable_:
        return Toolbox(list(declared), list(python), may_call=False)
    wanted: Any = choice.mode if choice.name is None else {"name": choice.name}
    constraint = Tools(
        [tool for tool in declared if tool["name"] in callable_],
        wanted,
        parallel=parallel,
        python=bool(python) and "python" in callable_,
        strict=strict,
        texts={name: text for name, text in (texts or {}).items() if name in callable_},
    )
    optional = choice.name is None and choice.allowed is None and wanted == "auto"
    optional = optional and not strict and not constraint.texts
    return Toolbox(list(declared), list(python), constraint, optional)


def format_of(kind: str, schema: Any, settings: Settings) -> ConstraintSpec | None:
    """The constraint of a response format."""
    if kind == "json_schema":
        if not isinstance(schema, dict):
            raise refused("response_format: json_schema needs a schema", "response_format")
        check_schema("response_format", schema, settings)
        return Json(schema)
    return Json() if kind == "json_object" else None


class Structured(Body):
    """One of vLLM's other forms of an answer; the grammar is llguidance's Lark."""

    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = Field(None, alias="json")


def structured_of(structured: Structured, settings: Settings) -> ConstraintSpec:
    given = {name: value for name, value in structured if value is not None}
    if len(given) != 1:
        raise refused("structured_outputs: give one of regex, choice, grammar, json")
    [(kind, value)] = given.items()
    check_schema("structured_outputs", value, settings)
    match kind:
        case "regex":
            return Regex(value)
        case "choice":
            return Choice(value)
        case "grammar":
            return Grammar(value)
    return Json(value)


def one_constraint(box: Toolbox, form: ConstraintSpec | None) -> tuple[ConstraintSpec | None, bool]:
    """The constraint of an answer, and whether it may be left out. form: of an answer that is no
    call."""
    if form is None:
        return box.constraint, box.optional
    if isinstance(box.constraint, Tools):
        assert not isinstance(form, Tools)
        return replace(box.constraint, answer=form), False
    return form, False
