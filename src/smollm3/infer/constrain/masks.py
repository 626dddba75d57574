"""Answers that keep to a schema, pattern, grammar or to declared tools, and to a thinking budget.

What may follow is a mask over the vocabulary, made by llguidance; a forced token is one that the
mask leaves alone. Sampling under masks is all there is, so drafts cannot change an answer.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from smollm3.errors import UserError
from smollm3.infer.constrain.checks import Check
from smollm3.infer.constrain.grammars import (
    Choice,
    ConstraintSpec,
    Grammar,
    Json,
    Reasoning,
    Regex,
    Tools,
    UserGrammar,
    any_object,
    checks_of,
    needs_tools,
    read_parts,
    write_grammar,
)
from smollm3.infer.constrain.library import Mask, compiled, library, line_of, mask_of
from smollm3.infer.constrain.thinking import Budget, reasoning_of
from smollm3.infer.errors import UnsupportedConstraint
from smollm3.infer.speculation import agreement
from smollm3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = [
    "Choice",
    "ConstraintSpec",
    "Constraints",
    "Grammar",
    "Json",
    "Regex",
    "TokenConstraint",
    "Tools",
]

KEPT = 32  # grammars that are ready
MAX_GRAMMAR = 1 << 19  # characters, of many tools


class TokenConstraint:
    """What may follow in one answer. Token ids are the model's; see `hooks.Constraint`.

    warnings: what was asked for and is not enforced while it is written. checks: of the finished
    content ("") or of a tool's arguments (its name), what to look for."""

    def __init__(
        self,
        matcher: LLMatcher | None,
        budget: Budget | None,
        words: int,
        warnings: Sequence[str] = (),
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        """words: of a mask, 32 tokens each. A matcher or a budget is given, or both."""
        self.warnings = warnings
        self.checks = checks or {}
        self._matcher = matcher
        self._budget = budget
        self._words = words
        self._mask: Mask | None = None  # of the grammar, as it stands

    @property
    def finished(self) -> bool:
        """Only a stop token may follow."""
        return self._matcher is not None and self._matcher.is_stopped()

    def mask(self) -> Mask | None:
        """[words] bits of the tokens that may come next, None if all may; not to be written to.
        Raises UserError where the grammar has become too complex to go on."""
        if self._budget and (forced := self._budget.forced):
            return _only(forced[0], self._words)
        if self._matcher and self._mask is None:
            self._mask = mask_of(self._matcher, self._words)
        return self._mask

    def accept(self, token: int) -> None:
        if self._budget:
            self._budget.accept(token)
        if self._matcher and not self._matcher.consume_token(token):
            raise UserError(f"token {token} does not fit: {line_of(self._matcher.get_error())}")
        self._mask = None

    def forced(self) -> list[int]:
        """Tokens that must follow, each the only one its mask will have."""
        if self._budget and (forced := self._budget.forced):
            return forced
        return self._before_budget(self._matcher.compute_ff_tokens()) if self._matcher else []

    def fitting(self, ids: Sequence[int]) -> int:
        """How many of the ids may follow, one after the other, as far as that is cheap to say."""
        if forced := self.forced():
            return agreement(forced, ids)
        if self._matcher:
            ids = ids[: self._matcher.validate_tokens(list(ids))]
        return len(self._before_budget(ids))

    def rollback(self, n: int) -> None:
        if self._budget:
            self._budget.rollback(n)
        if self._matcher and n and not self._matcher.rollback(n):
            raise UserError(f"cannot go back: {line_of(self._matcher.get_error())}")
        self._mask = None

    def _before_budget(self, ids: Sequence[int]) -> list[int]:
        room = self._budget.room if self._budget else None
        return list(ids[:room])


class Constraints:
    """Makes the constraints of a model's requests; grammars are compiled once and kept.

    vocab_size: the model's, which may be larger than the tokenizer's. Thread-safe.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._words = (vocab_size + 31) // 32
        self._tags = tokenizer.tags
        # And why their parts are not those that were asked for.
        self._ready: OrderedDict[tuple[str, str], tuple[LLMatcher, list[str | None]]] = (
            OrderedDict()
        )
        self._made: LLTokenizer | None = None
        self._lock = Lock()

    def start(
        self,
        spec: ConstraintSpec | None,
        prompt: Sequence[int],
        thinking_budget: int | None = None,
        salt: str = "",
    ) -> TokenConstraint | None:
        """The constraint of an answer to `prompt`, None if there is nothing to constrain.

        In an answer that may begin with reasoning, `spec` is about what follows it.
        thinking_budget: tokens of reasoning, after which its block is closed. salt: grammars are
        kept for requests with the same one. Raises UnsupportedConstraint for what cannot be
        satisfied, is not supported or would take too long.
        """
        if thinking_budget is not None and (
            isinstance(thinking_budget, bool)
            or not isinstance(thinking_budget, int)
            or thinking_budget < 0
        ):
            raise UserError(f"thinking_budget: must be a whole number, not {thinking_budget!r}")
        reasoning = reasoning_of(self._tokenizer, prompt)
        budget = None
        if thinking_budget is not None and reasoning != "closed":
            budget = Budget(self._tokenizer, reasoning, thinking_budget)
        if spec is None:
            return TokenConstraint(None, budget, self._words) if budget else None
        try:
            parts = read_parts(spec)
            matcher, parts = self._compiled(spec, parts, reasoning, salt)
        except UserError as e:
            raise UnsupportedConstraint(str(e)) from None
        warnings = [line for part in parts for line in part.warnings]
        checks = checks_of(spec, parts)
        return TokenConstraint(matcher, budget, self._words, warnings, checks)

    def _compiled(
        self, spec: ConstraintSpec, parts: list[UserGrammar], reasoning: Reasoning, salt: str
    ) -> tuple[LLMatcher, list[UserGrammar]]:
        """The grammar of an answer, and its parts as they could be had."""
        asked = salt, write_grammar(spec, parts, reasoning, self._tags)
        with self._lock:
            if asked in self._ready:
                self._ready.move_to_end(asked)
                matcher, errors = self._ready[asked]
                return matcher.deep_copy(), _instead(parts, errors)
        errors = [self._error_of(part) for part in parts]
        # Arguments that need not be as declared may be any object; nothing else may.
        needed = needs_tools(spec)
        for part, error in zip(parts, errors, strict=True):
            if error and (needed or not part.name.startswith("arguments_")):
                raise UserError(error)
        parts = _instead(parts, errors)
        grammar = write_grammar(spec, parts, reasoning, self._tags)
        matcher = self._compile("tools" if isinstance(spec, Tools) else parts[0].where, grammar)
        with self._lock:
            self._ready[asked] = matcher, errors
            if len(self._ready) > KEPT:
                self._ready.popitem(last=False)
            return matcher.deep_copy(), parts

    def _error_of(self, part: UserGrammar) -> str | None:
        """Why the part cannot be had."""
        try:
            matcher = self._compile(part.where, part.text)
        except UserError as e:
            return str(e)
        try:
            satisfiable = bool(mask_of(matcher, self._words).any())
        except UserError:
            satisfiable = False
        return None if satisfiable else f"{part.where}: no text satisfies it, or it is too complex"

    def _compile(self, where: str, grammar: str) -> LLMatcher:
        if len(grammar) > MAX_GRAMMAR:
            raise UserError(f"{where}: together larger than {MAX_GRAMMAR} characters")
        return compiled(where, self._vocabulary(), grammar)

    def _vocabulary(self) -> LLTokenizer:
        """The tokenizer as the library wants it, made once: 1 s for 128,256 tokens."""
        with self._lock:
            if self._made is None:
                try:
                    self._made = library().LLTokenizer(
                        self._tokenizer.source,
                        n_vocab=self._vocab_size,
                        eos_token=list(self._tokenizer.stop_ids),
                    )
                except ValueError as e:
                    reason = line_of(str(e))
                    raise UserError(f"this tokenizer cannot be constrained: {reason}") from None
            return self._made


def _instead(parts: list[UserGrammar], errors: Sequence[str | None]) -> list[UserGrammar]:
    """The parts, with any object instead of those that cannot be had."""
    pairs = zip(parts, errors, strict=True)
    return [any_object(part, error) if error else part for part, error in pairs]


def _only(token: int, words: int) -> Mask:
    mask = np.zeros(words, np.uint32)
    mask[token // 32] = 1 << token % 32
    return mask.view(np.int32)
