"""What an answer may be asked to look like, and the llguidance grammar of it.

One grammar covers the whole answer: reasoning where the prompt leaves room for it, then the
content. Tags are single tokens in some vocabularies (SmolLM3's) and ordinary text in others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from smollm3.chat.tags import CALL, CODE, END_CALL, END_CODE, END_THINK, PYTHON, THINK
from smollm3.errors import UserError
from smollm3.infer.constrain.checks import Check
from smollm3.infer.constrain.quoted import quoted, quoted_pattern
from smollm3.infer.constrain.quoted_patterns import Questions
from smollm3.infer.constrain.schemas import bounded_text, json_grammar

# Options of llguidance that take tokens back or cannot be rolled back.
_UNSUPPORTED = re.compile(r"\[[^\]\n]*\b(max_tokens|temperature|stop)\s*=")

# Whether the prompt opens a block of reasoning, leaves that to the model, or has closed it.
Reasoning = Literal["open", "may open", "closed"]


@dataclass(frozen=True)
class Json:
    """A JSON text that the schema (an object, or its text) allows; None: any JSON object."""

    schema: Mapping[str, Any] | str | None = None


@dataclass(frozen=True)
class Regex:
    """A text that the pattern matches as a whole: Rust's syntax, no look-around."""

    pattern: str


@dataclass(frozen=True)
class Grammar:
    """A text of a context-free grammar in llguidance's dialect of Lark; it begins at `start`."""

    lark: str


@dataclass(frozen=True)
class Choice:
    """One of these texts."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Tools:
    """Calls of tools, valid against their declared parameters, as the chat template writes them.

    tools: {"name", "parameters"}, bare or as OpenAI's {"type": "function", "function": {...}}.
    choice: "auto" text, then calls if the model wants to; "required" calls and nothing else;
    {"name": ...} calls of this tool and nothing else. parallel: more than one call. strict: an
    unsupported schema is an error; otherwise, where that tool need not be called, its arguments are
    any object. python: code between <code> and </code> is a call too, of the tool `python`.
    answer: with "auto", what an answer that is no call must be; then no text comes before calls.
    texts: by the names of tools whose one argument, `INPUT`, is a text: what that keeps to.
    """

    tools: Sequence[Any]
    choice: Literal["auto", "required"] | Mapping[str, Any] = "auto"
    parallel: bool = True
    python: bool = False
    strict: bool = False
    answer: Json | Regex | Grammar | Choice | None = None
    texts: Mapping[str, Regex | Grammar] = field(default_factory=dict)


INPUT = "input"

ConstraintSpec = Json | Regex | Grammar | Choice | Tools


@dataclass(frozen=True)
class UserGrammar:
    """A grammar that the user wrote. where: what an error in it is called. error: why it is not the
    one that was asked for. unenforced, check: see `JsonGrammar`."""

    where: str
    name: str
    grammar: Mapping[str, Any]
    unenforced: tuple[str, ...] = ()
    check: Check | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        """By itself, in llguidance's form."""
        return json.dumps({"grammars": [self.grammar]})

    @property
    def warnings(self) -> list[str]:
        if self.error:
            return [f"{self.error}; any object is allowed instead"]
        return [f"{self.where}: {key} is not enforced while writing" for key in self.unenforced]


def read_parts(spec: ConstraintSpec) -> list[UserGrammar]:
    """What the user wrote in `spec`; a UserError for what is wrong without a look inside."""
    match spec:
        case Json():
            schema = {"type": "object"} if spec.schema is None else spec.schema
            return [_json_part("schema", "body", schema)]
        case Regex():
            lark = _lark_of(bounded_text("regex", spec.pattern))
            return [UserGrammar("regex", "body", {"lark_grammar": lark})]
        case Grammar():
            if found := _UNSUPPORTED.search(bounded_text("grammar", spec.lark)):
                raise UserError(f"grammar: {found[1]}= is not supported; leave it out")
            return [UserGrammar("grammar", "body", {"lark_grammar": spec.lark})]
        case Choice():
            if not spec.texts or not all(isinstance(text, str) and text for text in spec.texts):
                raise UserError("choice: must be a list of texts, none of them empty")
            lark = "start: TEXT\nTEXT: " + " | ".join(map(_quoted, dict.fromkeys(spec.texts)))
            return [UserGrammar("choice", "body", {"lark_grammar": bounded_text("choice", lark)})]
        case Tools():
            answer = [] if spec.answer is None else read_parts(spec.answer)
            return [*_tool_parts(spec), *answer]


def _json_part(where: str, name: str, schema: Any) -> UserGrammar:
    found = json_grammar(where, schema)
    return UserGrammar(where, name, found.grammar, found.unenforced, found.check)


def any_object(part: UserGrammar, error: str) -> UserGrammar:
    """Instead of a tool's arguments whose schema is not supported."""
    grammar = json_grammar(part.where, {"type": "object"}).grammar
    return UserGrammar(part.where, part.name, grammar, error=error)


def needs_tools(spec: ConstraintSpec) -> bool:
    """Whether each tool that may be called must be as it is declared."""
    return isinstance(spec, Tools) and (
        spec.strict or (spec.choice != "auto" and len(_chosen(spec)) == 1)
    )


def _tool_parts(spec: Tools) -> list[UserGrammar]:
    parts, questions = [], Questions()
    for i, (name, parameters) in enumerate(_chosen(spec).items()):
        if name in spec.texts:
            told = _spelled(f"tools: {name}: format", spec.texts[name], questions)
            parts.append(UserGrammar(f"tools: {name}: format", f"text_{i}", told))
            continue
        where = f"tools: {name}: parameters"
        try:
            part = _json_part(where, f"arguments_{i}", _object_schema(where, parameters))
        except UserError as e:
            if needs_tools(spec):
                raise
            part = any_object(UserGrammar(where, f"arguments_{i}", {}), str(e))
        parts.append(part)
    return parts


def _spelled(where: str, spec: Regex | Grammar, questions: Questions) -> dict[str, str]:
    """A grammar of what spells a text between quotes, in llguidance's form."""
    if isinstance(spec, Regex):
        return {"lark_grammar": quoted_pattern(where, spec.pattern, questions)}
    return {"lark_grammar": quoted(where, spec.lark, questions)}


def checks_of(spec: ConstraintSpec, parts: Sequence[UserGrammar]) -> dict[str, Check]:
    """Of the content (""), or of each tool whose arguments must be right, what finished values are
    checked for."""
    if not isinstance(spec, Tools):
        return {"": parts[0].check} if parts and parts[0].check else {}
    names = [*_chosen(spec), ""]  # the part of `answer` stands last
    needed = needs_tools(spec)
    return {
        name: part.check
        for name, part in zip(names, parts, strict=False)
        if part.check and (needed or not name)
    }


def write_grammar(
    spec: ConstraintSpec,
    parts: Sequence[UserGrammar],
    reasoning: Reasoning,
    tags: Mapping[str, int],
) -> str:
    """The grammar of a whole answer, in llguidance's form. tags: those that are one token."""
    rules = _Rules(tags)
    content = rules.calls(spec) if isinstance(spec, Tools) else "@body"
    if reasoning == "closed":
        rules.add("start", content)
    else:
        rules.add("start", "end_think content" if reasoning == "open" else "think? content")
        rules.add("content", f"NEWLINES? {content}")
        rules.add("NEWLINES", r"/\n{1,2}/")
        rules.reasoning()
    named = [{"name": part.name, **part.grammar} for part in parts]
    return json.dumps({"grammars": [{"lark_grammar": rules.text}, *named]})


class _Rules:
    """Rules of a Lark grammar for one vocabulary."""

    def __init__(self, tags: Mapping[str, int]) -> None:
        self._tags = tags
        self._lines: list[str] = []

    @property
    def text(self) -> str:
        return "\n".join(self._lines)

    def add(self, name: str, body: str) -> None:
        self._lines.append(f"{name}: {body}")

    def reasoning(self) -> None:
        """`think` is a block of reasoning, `end_think` what is left of one."""
        if THINK in self._tags and END_THINK in self._tags:
            self.add("think", f"{self._tag(THINK)} end_think")
            self.add("end_think", f"thought {self._tag(END_THINK)}")
            self._stretch("thought", [END_THINK])
        else:
            self.add("think[lazy]", f"/{THINK}(?s:.*){_escaped(END_THINK)}/")
            self.add("end_think[lazy]", f"/(?s:.*){_escaped(END_THINK)}/")

    def calls(self, spec: Tools) -> str:
        """Calls, and the text before them where there may be some; the arguments of tool i are
        the grammar `arguments_i`, its text is `text_i` where it has one; an answer without calls
        is `body` where it must be something."""
        styles: dict[str, str] = {}
        if names := list(_chosen(spec)):
            styles["call"] = CALL
            bodies = " | ".join(f"tool_{i}" for i in range(len(names)))
            self.add("rest_of_call", f'"\\n" ( {bodies} ) "\\n" {self._tag(END_CALL)}')
            for i, name in enumerate(names):
                head, tail, part = f'{{"name": {_quoted(name)}, "arguments": ', "}", "arguments"
                if name in spec.texts:
                    head, tail, part = f'{head}{{"{INPUT}": "', '"}}', "text"
                self.add(f"tool_{i}", f"{_quoted(head)} @{part}_{i} {_quoted(tail)}")
        if _offers_code(spec):
            styles["code"] = CODE
            self._rest_of_code()
        call = " | ".join(f"{self._tag(tag)} rest_of_{style}" for style, tag in styles.items())
        more = f'( "\\n" ( {call} ) )* "\\n"?' if spec.parallel else '"\\n"?'
        if spec.choice != "auto":
            return f"( {call} ) {more}"
        if spec.answer is not None:
            return f"( @body | ( {call} ) {more} )"
        self._stretch("text", list(styles.values()), _NO_THOUGHT)
        for style, tag in styles.items():
            self._head(style, tag)
        return f"( text | {' | '.join(f'{s}_head rest_of_{s} {more}' for s in styles)} )"

    def _rest_of_code(self) -> None:
        """From after the opening tag; what is blank is no code."""
        start = r"/\s*[^\s<](?s:.*)/"
        if END_CODE in self._tags:
            self.add("rest_of_code", f"code {self._tag(END_CODE)}")
            self._stretch("code", [END_CODE], start, least="")
        else:
            self.add("rest_of_code[lazy]", f"{start[:-1]}{_escaped(END_CODE)}/")

    def _head(self, style: str, tag: str) -> None:
        """Text up to the first tag of a call, and that."""
        if tag in self._tags:
            self.add(f"{style}_head", f"text {self._tag(tag)}")
        else:
            self.add(f"{style}_head[lazy]", f"{style.upper()}_HEAD")
            self.add(f"{style.upper()}_HEAD", f"/(?s:.*){_escaped(tag)}/ & {_NO_THOUGHT}")

    def _stretch(self, name: str, ends: list[str], start: str = "", least: str = "?") -> None:
        """`name` is free text that begins like `start`; also tags, but none of `ends` or of those
        around reasoning, not even spelled in letters: who reads the answer sees no difference.
        least: "?" where it may be empty."""
        upper = name.upper()
        self.add(upper, f"/(?s:.+)/ & ~/(?s:.*)({'|'.join(map(_escaped, ends))})(?s:.*)/")
        self.add(f"{upper}_START", f"{upper}{start and ' & ' + start}")
        others = sorted(self._tags[t] for t in self._tags.keys() - {*ends, THINK, END_THINK})
        tags = f" ( <[{','.join(map(str, others))}]> {upper}? )*" if others else ""
        self.add(name, f"{upper}_START{least}{tags}")

    def _tag(self, tag: str) -> str:
        return f"<[{self._tags[tag]}]>" if tag in self._tags else _quoted(tag)


_NO_THOUGHT = f"~/\\s*{THINK}(?s:.*)/"  # or the parser reads it as reasoning


def _quoted(text: str) -> str:
    """As a literal of Lark, or of JSON."""
    return json.dumps(text, ensure_ascii=False)


def _escaped(tag: str) -> str:
    """For a regex in Lark."""
    return tag.replace("/", "\\/")


def _lark_of(pattern: str) -> str:
    """A grammar of a regex: Lark sets them between slashes, on one line."""
    escaped = re.sub(
        r"\\.|[/\n]", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), pattern, flags=re.S
    )
    return f"start: /{escaped}/"


def _offers_code(spec: Tools) -> bool:
    return spec.python and spec.choice in ("auto", "required", {"name": PYTHON})


def _chosen(spec: Tools) -> dict[str, Any]:
    """Name -> schema of the arguments, of the tools that may be called."""
    declared: dict[str, Any] = {}
    for tool in spec.tools:
        name, parameters = _declared(tool)
        if name in declared:
            raise UserError(f"tools: {name}: declared twice")
        declared[name] = parameters
    if spec.choice in ("auto", "required"):
        if not declared and not spec.python:
            raise UserError("tools: there are none to call")
        return declared
    wanted: Any = spec.choice.get("name") if isinstance(spec.choice, Mapping) else spec.choice
    if isinstance(wanted, str) and wanted in declared:
        return {wanted: declared[wanted]}
    if _offers_code(spec):
        return {}
    raise UserError(f"tool choice: {wanted!r:.80} is none of {', '.join(declared) or 'no tools'}")


_PLAIN = {"type", "properties", "required", "description", "title", "$defs", "$schema"}


def _declared(tool: Any) -> tuple[str, Any]:
    if isinstance(tool, str):
        try:
            tool = json.loads(bounded_text("tools", tool))
        except (ValueError, RecursionError):
            raise UserError(f"tools: no JSON: {tool:.80}") from None
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise UserError(f"tools: must be objects, not {tool!r:.80}")
    name, parameters = function.get("name"), function.get("parameters")
    if not isinstance(name, str) or not name:
        raise UserError(f"tools: no name in {tool!r:.80}")
    return name, parameters


def _object_schema(where: str, parameters: Any) -> dict[str, Any]:
    """The schema of a tool's arguments."""
    if not parameters:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise UserError(f"{where}: must be a JSON schema of an object, not {parameters!r:.80}")
    told: dict[str, Any] = {**parameters, "type": "object"}
    required, declared = told.get("required"), told.get("properties")
    if told.keys() <= _PLAIN:
        told["additionalProperties"] = False  # who declares some has no use for others
        if isinstance(required, list) and isinstance(declared, Mapping | None):
            named: dict[str, Any] = {name: {} for name in required if isinstance(name, str)}
            told["properties"] = {**named, **(declared or {})}
    return told
