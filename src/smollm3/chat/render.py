"""From messages to text, cut where losses begin and end, safe from forged control tokens.

Nothing that a user, a tool or a system message says may become a control token. So in their
strings the first character of every control token is replaced by a stand-in, a code point that is
nowhere in the input; the template runs; what is then spelled like a control token was written by
the template, and the stand-ins are turned back when the text around it is encoded. An assistant's
messages may hold the tags of reasoning and calls (tokens with special=false), not turn ends.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypedDict

from smollm3.chat.history import (
    Chat,
    Reads,
    as_given,
    gathered,
    is_system,
    normal,
    probe,
    rewrite,
)
from smollm3.chat.message import Message
from smollm3.chat.sandbox import Overrun, render_apart
from smollm3.chat.tags import THINK
from smollm3.chat.template import SPARE, is_ours, render_views, variables_of
from smollm3.errors import UserError

_SPARE = tuple(map(chr, SPARE))
_Span = tuple[int, int]
_View = tuple[int, bool]  # a number of messages, and whether a generation prompt follows
_SPARE_FOUND = re.compile(f"[{_SPARE[0]}-{_SPARE[-1]}]")


class RenderOptions(TypedDict, total=False):
    """What a rendering can be told, as keywords of `Renderer.render` and `Tokenizer.render`."""

    tools: Sequence[Any] | None
    python_tools: Sequence[Any] | None
    enable_thinking: bool
    add_generation_prompt: bool
    custom_instructions: str | None
    date: datetime.date | None
    variables: Mapping[str, Any]
    exact: bool


# Variables of a template that are not for others to set.
_GIVEN = frozenset(
    (*RenderOptions.__annotations__, "messages", "xml_tools", "documents", "strftime_now")
)


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is encoded by itself.

    published: inside the template's `{% generation %}` blocks.
    generated: what the model itself writes after a generation prompt, the stop token included.
    """

    text: str
    published: bool
    generated: bool


@dataclass(frozen=True)
class Rendering:
    """pieces: with stand-ins; `str.translate(restore)` turns a piece into what is meant.
    problem: why there is no `generated`, if so.
    """

    pieces: list[Piece]
    restore: dict[int, str]
    problem: str | None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces).translate(self.restore)


class Renderer:
    """One chat template with the control tokens of one tokenizer.

    control: spelling of each control token -> its `special` flag.
    stops: spellings of the tokens that end an answer.
    named: the tokens that templates know by name (`eos_token`, ...).
    """

    def __init__(
        self,
        template: str,
        control: Mapping[str, bool],
        stops: Iterable[str],
        named: Mapping[str, str],
    ) -> None:
        self.template = template
        self._ours = is_ours(template)
        self._control = frozenset(control)
        self._firsts = sorted({token[0] for token in control})
        self._special = any_of(token for token, special in control.items() if special)
        self._stop = any_of(stops)
        self._named = dict(named)

    def render(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        tools: Sequence[Any] | None = None,
        python_tools: Sequence[Any] | None = None,
        enable_thinking: bool = True,
        add_generation_prompt: bool = True,
        custom_instructions: str | None = None,
        date: datetime.date | None = None,
        variables: Mapping[str, Any] | None = None,
        exact: bool = False,
    ) -> Rendering:
        """Run the template over the messages. One with `train: False` is context: it is no part of
        `published` and `generated`.

        tools: called as JSON; python_tools: called as code. Dicts, or texts shown as they are.
        enable_thinking: unless the system message says /think or /no_think.
        add_generation_prompt: end with an answer's header; then nothing counts as generated.
        custom_instructions: where there is no system message.
        date: told to the model, by ours beside a cutoff. If None, other templates tell today's.
        variables: of `Renderer.variables`, for templates that read more.
        exact: what `transformers` renders. Messages reach the template as they are, and what they
            spell like control tokens becomes some.
        """
        if not self.template:
            raise UserError("this model has no chat template (chat_template.jinja)")
        if not messages:
            raise UserError("a conversation needs at least one message")
        optional = {
            "xml_tools": _listed(tools),
            "python_tools": _listed(python_tools),
            "custom_instructions": custom_instructions,
        }
        inputs = {key: value for key, value in optional.items() if value is not None}
        inputs |= {key: value for key, value in (variables or {}).items() if key in self.variables}
        try:
            python = bool(inputs.get("python_tools"))
            chat = self._chat(messages, python=python, exact=exact)
            trained = [m.pop("train", True) for m in chat if m.get("role") == "assistant"]
            start, end, *stand_ins = _unused([self.template, chat, inputs], len(self._firsts) + 2)
            table = {} if exact else dict(zip(self._firsts, stand_ins, strict=True))
            chat, inputs = self._guard(chat, inputs, table)
        except RecursionError:
            raise UserError("messages or tools are nested too deeply") from None
        variables = {
            **self._named,
            **inputs,
            "tools": inputs.get("xml_tools"),
            "documents": None,
            "enable_thinking": enable_thinking,
            "messages": chat,
        }

        def run(*views: _View) -> list[str]:
            return self._run(variables, views, date, (start, end))

        [marked] = run((len(chat), add_generation_prompt))
        text, published = _unmark(marked, start, end)
        generated: list[_Span] = []
        problem = None
        if not add_generation_prompt:
            try:
                spans = self._completions(text, chat, run, (start, end))
                generated = [span for span, kept in zip(spans, trained, strict=True) if kept]
                published = _without(published, set(spans) - set(generated))
            except UserError as e:
                problem = str(e)
        restore = {ord(stand_in): first for first, stand_in in table.items()}
        return Rendering(_cut(text, published, generated), restore, problem)

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the template reads beside what every rendering gives it."""
        return variables_of(self.template) - self._named.keys() - _GIVEN

    def _run(
        self,
        variables: dict[str, Any],
        views: Sequence[_View],
        date: datetime.date | None,
        marks: tuple[str, str],
    ) -> list[str]:
        return (render_views if self._ours else render_apart)(
            source=self.template,
            date=date.isoformat() if date else None,
            marks=marks,
            variables=variables,
            views=views,
        )

    @cached_property
    def _reads(self) -> Reads:
        """What the template prints of earlier turns."""

        def run(chat: Chat) -> str:
            variables = {**self._named, "messages": chat, "enable_thinking": True, "tools": None}
            try:
                return "".join(self._run(variables, [(len(chat), False)], None, ("", "")))
            except Overrun:
                raise
            except UserError:
                return ""

        reads = probe(run)
        # A model without these tags does not think in them.
        return reads if THINK in self._control else replace(reads, reasoning=True)

    def _chat(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        *,
        python: bool,
        exact: bool,
    ) -> Chat:
        """The messages as the template gets them."""
        if exact:
            return [as_given(index, message) for index, message in enumerate(messages)]
        chat = [normal(index, message) for index, message in enumerate(messages)]
        if any(is_system(message) for message in chat[1:]):
            chat = gathered(chat, in_place=not self._ours and self._reads.systems)
        return chat if self._ours else rewrite(chat, self._reads, python)

    def _guard(
        self, chat: Chat, inputs: dict[str, Any], stand_in: dict[str, str]
    ) -> tuple[Chat, dict[str, Any]]:
        """The inputs with stand-ins: everywhere in what others say, and in what the assistant
        said where it spells a token with special=true."""
        table = str.maketrans(stand_in)

        def others(text: str) -> str:
            return text.translate(table)

        def assistant(text: str) -> str:
            return self._special.sub(lambda m: stand_in.get(m[0][0], m[0][0]) + m[0][1:], text)

        chat = [
            _map_strings(message, assistant if message.get("role") == "assistant" else others)
            for message in chat
        ]
        return chat, _map_strings(inputs, others)

    def _completions(
        self,
        text: str,
        chat: Chat,
        run: Callable[..., list[str]],
        marks: tuple[str, str],
    ) -> list[_Span]:
        """Where `text` holds what the model writes: what message i adds to the rendering of the
        messages before it with a generation prompt, to the end of the first stop token."""
        turns = [i for i, message in enumerate(chat) if message.get("role") == "assistant"]
        views = [view for i in turns for view in ((i, True), (i + 1, False))]
        known = {(len(chat), False): text}
        views = [view for view in views if view not in known]
        rendered = run(*views) if views else []
        known |= {v: _unmark(t, *marks)[0] for v, t in zip(views, rendered, strict=True)}
        spans = []
        for i in turns:
            prompt, through = known[i, True], known[i + 1, False]
            stop = self._stop.search(through, len(prompt))
            if not (text.startswith(through) and through.startswith(prompt) and stop):
                raise UserError(
                    f"message {i} does not continue the generation prompt up to a stop token "
                    "(reasoning in a /no_think conversation, or a template that rewrites earlier "
                    "turns): template and message cannot be used with mask: generated"
                )
            spans.append((len(prompt), stop.end()))
        return spans


def any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the tokens, the longer first; without tokens, nothing."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _listed(tools: Sequence[Any] | None) -> Sequence[Any] | None:
    """Data sets also write all tools as one text, empty where there are none."""
    if isinstance(tools, str):
        return [tools] if tools.strip() else []
    return tools


def _unused(value: Any, n: int) -> list[str]:
    """n spare code points that occur in no string of `value`."""
    used: set[str] = set()

    def note(text: str) -> str:
        if not text.isascii():
            used.update(_SPARE_FOUND.findall(text))
        return text

    _map_strings(value, note)
    free = [c for c in _SPARE if c not in used][:n]
    if len(free) < n:
        raise UserError("the conversation uses nearly all variation selectors (U+E0100-U+E01EF)")
    return free


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """`value` rebuilt from plain JSON types with every string, keys too, changed.

    Other objects would reach the template with their methods.
    """
    if isinstance(value, str):
        return change(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {change(str(key)): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_map_strings(item, change) for item in value]
    raise UserError(f"messages and tools must be JSON values, not {type(value).__name__}")


def _unmark(text: str, start: str, end: str) -> tuple[str, list[_Span]]:
    """The text without marks, and where the marked stretches lie in it."""
    plain: list[str] = []
    spans: list[_Span] = []
    position = begin = 0
    for part in re.split(f"([{start}{end}])", text):
        if part == start:
            begin = position
        elif part == end:
            spans.append((begin, position))
        else:
            plain.append(part)
            position += len(part)
    return "".join(plain), spans


def _without(spans: list[_Span], others: set[_Span]) -> list[_Span]:
    """The spans that touch none of the others."""
    return [(a, b) for a, b in spans if not any(a < end and start < b for start, end in others)]


def _cut(text: str, published: list[_Span], generated: list[_Span]) -> list[Piece]:
    edges = {edge for span in (*published, *generated) for edge in span}
    cuts = sorted(edges | {0, len(text)})
    return [
        Piece(
            text[a:b],
            published=any(start <= a < end for start, end in published),
            generated=any(start <= a < end for start, end in generated),
        )
        for a, b in pairwise(cuts)
    ]
