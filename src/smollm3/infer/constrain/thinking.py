"""Reasoning in an answer: what the prompt begins, and how many tokens it may take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smollm3.chat.tags import END_THINK, THINK
from smollm3.infer.constrain.grammars import Reasoning
from smollm3.tokenizer import Tokenizer

HEADER = 32  # characters of a role, at most
TAIL = 16  # tokens that certainly hold a tag spelled in letters
UNFINISHED = 3  # bytes, and so tokens, that a character may lack


def reasoning_of(tokenizer: Tokenizer, prompt: Sequence[int]) -> Reasoning:
    """What the prompt says about the reasoning of the answer that follows.

    A model may think where its template knows the tags and the prompt ends in a turn's header.
    """
    tags, special = tokenizer.tags, tokenizer.special_ids
    edges = {tags[tag]: state for tag, state in _STATES.items() if tag in tags}
    for place in range(len(prompt) - 1, -1, -1):
        token = prompt[place]
        if token in edges:
            return edges[token]
        if token in special:
            return _after_header(tokenizer, token, tokenizer.decode(prompt[place + 1 :]))
    return "closed"


_STATES: dict[str, Reasoning] = {THINK: "open", END_THINK: "closed"}


def _after_header(tokenizer: Tokenizer, token: int, text: str) -> Reasoning:
    if THINK not in tokenizer.template or token in tokenizer.stop_ids:
        return "closed"
    begun, ended = text.rfind(THINK), text.rfind(END_THINK)
    if begun >= 0 or ended >= 0:
        return "open" if begun > ended else "closed"
    header = text.strip()
    return "may open" if len(header) <= HEADER and len(header.split()) <= 1 else "closed"


class _State(NamedTuple):
    """used: tokens of reasoning so far. closing: what must follow."""

    reasoning: Reasoning
    used: int
    closing: tuple[int, ...]


class Budget:
    """Lets a block of reasoning have `tokens` tokens and then has it closed as the template
    closes it; with none, a block that the model would open is written empty."""

    def __init__(self, tokenizer: Tokenizer, reasoning: Reasoning, tokens: int) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._ids: list[int] = []
        closing: list[int] = []
        if tokens == 0 and reasoning == "may open":
            closing = tokenizer.encode_markup(f"{THINK}\n\n{END_THINK}\n")
        elif tokens == 0 and reasoning == "open":
            closing = tokenizer.encode_markup(f"\n{END_THINK}\n")
        self._states = [_State(reasoning, 0, tuple(closing))]

    @property
    def forced(self) -> list[int]:
        """What must follow; empty: the model chooses."""
        return list(self._states[-1].closing)

    @property
    def room(self) -> int | None:
        """Tokens that the model may choose before something must follow; None: any number."""
        reasoning, used, _ = self._states[-1]
        return None if reasoning == "closed" else max(self._tokens - used, 1)

    def accept(self, token: int) -> None:
        self._ids.append(token)
        self._states.append(self._next(token, *self._states[-1]))

    def rollback(self, n: int) -> None:
        del self._ids[len(self._ids) - n :]
        del self._states[len(self._states) - n :]

    def _next(
        self, token: int, reasoning: Reasoning, used: int, closing: tuple[int, ...]
    ) -> _State:
        if closing:
            rest = closing[1:] if token == closing[0] else ()
            return _State(reasoning if rest else "closed", used, rest)
        if reasoning == "closed":
            return self._states[-1]
        tail = self._ids[-TAIL:]
        text = self._tokenizer.decode(tail)
        if reasoning == "may open":
            begin = text.lstrip()
            if begin.startswith(THINK):
                return _State("open", 0, ())
            return _State("may open" if THINK.startswith(begin) else "closed", 0, ())
        used += 1
        if END_THINK in self._tokenizer.decode(self._ids[-min(used, TAIL) :]):
            return _State("closed", used, ())
        broken = text.endswith("\ufffd") and used < self._tokens + UNFINISHED
        if used < self._tokens or broken:
            return _State("open", used, ())
        end = f"{END_THINK}\n" if text.endswith("\n") else f"\n{END_THINK}\n"
        return _State("open", used, tuple(self._tokenizer.encode_markup(end)))
