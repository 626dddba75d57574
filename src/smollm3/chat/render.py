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
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from smollm3.chat.message import Message
from smollm3.chat.template import render_template
from smollm3.errors import UserError

ROLES = ("system", "developer", "user", "assistant", "tool")
# Variation selectors: unlike private-use code points they survive repr(), with which the published
# template prints tools.
_SPARE = tuple(map(chr, range(0xE0100, 0xE01F0)))
_SPARE_FOUND = re.compile(f"[{_SPARE[0]}-{_SPARE[-1]}]")


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
        self._first = sorted({token[0] for token in control})
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
    ) -> Rendering:
        """With a generation prompt nothing counts as generated: the text is a prompt."""
        if not self.template:
            raise UserError("this model has no chat template (chat_template.jinja)")
        chat = [_normal(index, message) for index, message in enumerate(messages)]
        if not chat:
            raise UserError("a conversation needs at least one message")
        optional = {"python_tools": python_tools, "custom_instructions": custom_instructions}
        inputs = {key: value for key, value in optional.items() if value is not None}
        if tools is not None:
            inputs["xml_tools"] = tools
        try:
            spare = _unused([self.template, chat, inputs])
            start, end, *stand_ins = (next(spare) for _ in range(len(self._first) + 2))
            table = dict(zip(self._first, stand_ins, strict=True))
            protect_all = str.maketrans(table)
            chat = [
                _map_strings(
                    message,
                    (lambda text: self._special.sub(lambda m: table[m[0][0]] + m[0][1:], text))
                    if message["role"] == "assistant"
                    else (lambda text: text.translate(protect_all)),
                )
                for message in chat
            ]
            inputs = _map_strings(inputs, lambda text: text.translate(protect_all))
        except RecursionError:
            raise UserError("messages or tools are nested too deeply") from None
        variables = {
            **self._named,
            **inputs,
            "tools": inputs.get("xml_tools"),
            "documents": None,
            "enable_thinking": enable_thinking,
        }

        def run(upto: int, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
            text = render_template(
                self.template,
                date=date,
                marks=(start, end),
                variables={
                    **variables,
                    "messages": chat[:upto],
                    "add_generation_prompt": prompt,
                },
            )
            return _unmark(text, start, end)

        text, published = run(len(chat), add_generation_prompt)
        generated: list[tuple[int, int]] = []
        problem = None
        if not add_generation_prompt:
            try:
                generated = self._completions(text, chat, run)
            except UserError as e:
                problem = str(e)
        restore = {ord(stand_in): first for first, stand_in in table.items()}
        return Rendering(_cut(text, published, generated), restore, problem)

    def _completions(
        self,
        text: str,
        chat: list[dict[str, Any]],
        run: Callable[[int, bool], tuple[str, list[tuple[int, int]]]],
    ) -> list[tuple[int, int]]:
        """Where `text` holds what the model writes: what message i adds to the rendering of the
        messages before it with a generation prompt, to the end of the first stop token."""
        spans = []
        for i, message in enumerate(chat):
            if message["role"] != "assistant":
                continue
            prompt, _ = run(i, True)
            through = text if i + 1 == len(chat) else run(i + 1, False)[0]
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


def _normal(index: int, message: Mapping[str, Any] | Message) -> dict[str, Any]:
    """A message as templates expect it: no None, content one string, reasoning under one name."""
    if isinstance(message, Message):
        message = message.to_dict()
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise UserError(f"message {index}: must be a mapping with a role, one of {', '.join(ROLES)}")
    normal = {key: value for key, value in message.items() if value is not None}
    content = normal.get("content", "")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise UserError(f"message {index}: content must be a text or a list of text parts")
    normal["content"] = content
    for key in ("reasoning_content", "thinking", "reasoning"):
        if key in normal:
            normal["reasoning_content"] = normal[key]
            break
    return normal


def _unused(value: Any) -> Iterable[str]:
    raise NotImplementedError


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
