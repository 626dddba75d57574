"""Speculative decoding: draft tokens from what the sequence has said before (prompt lookup), or of
a smaller model.

A draft token is accepted exactly where it is the token that would have been sampled, so it changes
nothing but the time. Too many of them cost time, hence `StepCosts` and `Pace`.
"""

from __future__ import annotations

import time
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from smollm3.errors import UserError
from smollm3.infer.backends import BLOCK, Backend, StepBatch
from smollm3.tokenizer import Tokenizer

LONGEST = 64  # tokens of a draft
LOOKS = 16  # earlier places with the same last two tokens that are compared, the newest first
MATCH = 32  # tokens of a match, after which longer ones are no better
# How often one more token is right, at first, behind a match of at least so many tokens.
PRIOR = {2: 0.2, 3: 0.35, 4: 0.5, 8: 0.8, 16: 0.9, MATCH: 0.95}
CHUNK = 512  # tokens that a draft model reads at once
NEGLIGIBLE = 0.02  # chance of a token at which a draft ends
MEASURED = 64  # tokens of a step, at most, whose time is learnt
ASSUMED_SHARE = 0.2  # of a step that a draft model takes for a token, until it is known
PROBE = 16  # a draft model that is always wrong is asked again after so many tokens


class StepCosts:
    """What draft tokens cost, in steps without any.

    measured: learn it from the steps; for backends whose logits do not depend on how many tokens
    a step has. Else, and until it is known, a step takes `first` longer with a draft token in it
    and `more` longer with each further one.
    """

    def __init__(self, first: float = 0.1, more: float = 0.1, measured: bool = True) -> None:
        self._first = first
        self._more = more
        self._measured = measured
        self._rows = 1  # sequences in the newest step
        self._seconds: dict[int, float] = {}  # tokens of a step -> what it takes
        self._sizes: list[int] = []  # the keys, ascending

    def record(self, rows: int, tokens: int, seconds: float) -> None:
        """A step of `rows` sequences, each with one token of its own, took so long."""
        self._rows = rows
        if self._measured and tokens <= MEASURED:
            if tokens not in self._seconds:
                insort(self._sizes, tokens)
            self._seconds[tokens] = _mixed(self._seconds.get(tokens), seconds)

    def extra(self, k: int) -> float:
        """What k draft tokens of one sequence cost, in units of one token of it.

        A step of n sequences makes n tokens: time that is a share x of it costs n x tokens.
        """
        if self._sizes and k:
            base = self._time(self._rows)
            return self._rows * max(self._time(self._rows + k) / base - 1, 0.0)
        return self._rows * (self._first + self._more * (k - 1)) if k else 0.0

    def share(self, seconds: float | None) -> float:
        """`seconds` in units of one token of a sequence."""
        if seconds is None or not self._sizes:
            return ASSUMED_SHARE
        return self._rows * seconds / self._time(self._rows)

    def _time(self, tokens: int) -> float:
        """Between two known sizes on a straight line, beyond the largest as between all."""
        sizes, known = self._sizes, self._seconds
        at = bisect_left(sizes, tokens)
        if at < len(sizes) and sizes[at] == tokens:
            return known[tokens]
        if len(sizes) == 1:
            [size] = sizes
            return known[size] * (1 + self._more * (tokens - size) / size)
        low, high = (at - 1, at) if 0 < at < len(sizes) else (0, -1)
        a, b = sizes[low], sizes[high]
        return max(known[a] + (known[b] - known[a]) * (tokens - a) / (b - a), 1e-9)


def _mixed(old: float | None, new: float) -> float:
    """Nearer to what is less: a step can be held up, not hurried."""
    if old is None:
        return new
    weight = 0.5 if new < old else 0.1
    return old + weight * (new - old)


class Pace:
    """How many draft tokens to propose, from how often the recent ones were accepted."""

    def __init__(self, prior: float) -> None:
        self._right = 4 * prior
        self._asked = 4.0

    def learn(self, right: int, wrong: int) -> None:
        self._right = 0.9 * self._right + right
        self._asked = 0.9 * self._asked + right + wrong

    def length(self, limit: int, extra: Callable[[int], float]) -> int:
        """The best k, at most `limit`: k tokens, each right with probability a, give
        (1 + a + ... + a^k) tokens for the time of 1 + extra(k)."""
        rate = self._right / self._asked
        expected = chance = fastest = 1.0
        best = 0
        for k in range(1, limit + 1):
            chance *= rate
            expected += chance
            if (speed := expected / (1 + extra(k))) > fastest:
                best, fastest = k, speed
            if chance < NEGLIGIBLE:
                break
        return best


@dataclass(frozen=True)
class _Draft:
    """start: place of its first token in the sequence. pace: which it is to teach."""

    start: int
    tokens: list[int]
    pace: Pace

    def teach(self, ids: Sequence[int]) -> None:
        """ids: the sequence, as far as it is known now."""
        right = agreement(self.tokens, ids[self.start : self.start + len(self.tokens)])
        asked = min(len(ids) - self.start, len(self.tokens))
        if asked:
            self.pace.learn(right, wrong=int(right < asked))


class PromptLookup:
    """Proposes what followed the longest earlier occurrence of the sequence's end.

    For one sequence, whose ids only grow. A call costs some microseconds for each new token and
    some tens at most for the search. Drafts that it keeps to itself teach it as well, so it
    begins to speak where the sequence begins to repeat itself.
    """

    def __init__(self, costs: StepCosts | None = None) -> None:
        self._costs = costs or StepCosts(measured=False)
        self._last: dict[tuple[int, int], int] = {}  # two tokens -> where they last ended
        self._before = [0, 0]  # place -> where the same two tokens ended before it, 0: nowhere
        self._paces = {least: Pace(prior) for least, prior in PRIOR.items()}
        self._draft: _Draft | None = None

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        self._learn(ids)
        self._index(ids)
        length, end = self._match(ids)
        if not length:
            return []
        pace = next(p for least, p in reversed(self._paces.items()) if least <= length)
        tokens = list(ids[end : end + LONGEST])
        while len(tokens) < LONGEST:  # the occurrence overlaps the end: as if it went on
            tokens += tokens[: LONGEST - len(tokens)]
        self._draft = _Draft(len(ids), tokens, pace)
        return tokens[: pace.length(min(limit, LONGEST), self._costs.extra)]

    def _learn(self, ids: Sequence[int]) -> None:
        draft, self._draft = self._draft, None
        if draft:
            draft.teach(ids)

    def _index(self, ids: Sequence[int]) -> None:
        """Places that something follows."""
        for place in range(len(self._before), len(ids)):
            pair = (ids[place - 2], ids[place - 1])
            self._before.append(self._last.get(pair, 0))
            self._last[pair] = place

    def _match(self, ids: Sequence[int]) -> tuple[int, int]:
        """(length, end) of the longest earlier occurrence among the newest; (0, 0) without."""
        best = (0, 0)
        end = self._last.get((ids[-2], ids[-1]), 0) if len(ids) > 1 else 0
        for _ in range(LOOKS):
            if not end:
                break
            length = 2
            while length < min(MATCH, end) and ids[end - length - 1] == ids[-length - 1]:
                length += 1
            if length > best[0]:
                best = (length, end)
            if length == MATCH:
                break
            end = self._before[end]
        return best


class Prediction:
    """Proposes what follows in a text that the answer is expected to be.

    For one sequence, whose ids only grow. text: the two tokens that stand before the answer, and
    the answer. Where both part it goes on behind the next place that has the last two tokens.
    """

    def __init__(self, text: Sequence[int], costs: StepCosts | None = None) -> None:
        self._text = list(text)
        self._costs = costs or StepCosts(measured=False)
        self._pace = Pace(prior=0.8)
        self._draft: _Draft | None = None
        self._read: int | None = None  # of the sequence's ids
        self._at = 0  # in the text: what comes next, 0 where that is not known
        self._latest = 0  # such a place
        self._ends: dict[tuple[int, int], list[int]] = {}  # two tokens -> behind them
        for place in range(2, len(self._text)):
            self._ends.setdefault((text[place - 2], text[place - 1]), []).append(place)

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        if self._draft:
            self._draft.teach(ids)
        for place in range(len(ids) - 1 if self._read is None else self._read, len(ids)):
            self._follow(ids[max(place - 1, 0)], ids[place])
        self._read, self._draft = len(ids), None
        if not self._at:
            return []
        tokens = self._text[self._at : self._at + LONGEST]
        self._draft = _Draft(len(ids), tokens, self._pace)
        return tokens[: self._pace.length(min(limit, len(tokens)), self._costs.extra)]

    def _follow(self, before: int, token: int) -> None:
        if 0 < self._at < len(self._text) and self._text[self._at] == token:
            self._at += 1
        else:
            ends = self._ends.get((before, token), [])
            self._at = next((end for end in ends if end > self._latest), ends[0] if ends else 0)
        self._latest = max(self._latest, self._at)


def agreement(draft: Sequence[int], actual: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(draft, actual, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(draft), len(actual)))


class DraftModel:
    """A smaller model over the same vocabulary, with a pool of blocks of its own."""

    def __init__(self, backend: Backend, tokenizer: Tokenizer, target: Tokenizer) -> None:
        """Raises UserError unless both models number their tokens alike."""
        if not tokenizer.numbers_like(target):
            raise UserError("draft: its vocabulary is not the model's; choose one of its family")
        self.backend = backend
        self.entries = tokenizer.vocab_size
        self.seconds: float | None = None  # that a token takes
        self._free = deque(range(backend.blocks))

    def drafter(self, costs: StepCosts | None = None) -> ModelDrafter:
        """One for a sequence. costs: of the model that the drafts are for."""
        return ModelDrafter(self, costs or StepCosts(measured=False))

    def record(self, seconds: float) -> None:
        self.seconds = _mixed(self.seconds, seconds)

    def take(self, count: int) -> list[int]:
        """Blocks, all of them or none."""
        if count > len(self._free):
            return []
        return [self._free.popleft() for _ in range(count)]

    def give(self, blocks: list[int]) -> None:
        self._free.extend(blocks)


class ModelDrafter:
    """Greedy tokens of a draft model for one sequence, whose ids only grow. Its blocks are free
    again when it is dropped."""

    def __init__(self, model: DraftModel, costs: StepCosts) -> None:
        self._model = model
        self._costs = costs
        self._pace = Pace(prior=0.7)
        self._blocks: list[int] = []
        self._read = 0  # of the sequence's first tokens, keys and values are in the blocks
        self._draft = _Draft(0, [], self._pace)
        weakref.finalize(self, model.give, self._blocks)

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        start, draft = self._draft.start, self._draft.tokens
        right = agreement(draft, ids[start : start + len(draft)])
        if asked := min(len(draft), len(ids) - start):
            self._pace.learn(right, wrong=int(right < asked))
        if draft:  # all but its last token were read
            self._read = start + min(right, len(draft) - 1)
        length = self._pace.length(limit, self._extra)
        if not length and len(ids) - start >= PROBE:
            length = 1
        length = min(length, limit, self._model.backend.config.context - len(ids))
        if length < 1 or not self._reserve(len(ids) + length - 1):
            self._draft = _Draft(start, [], self._pace)
            return []
        self._draft = _Draft(len(ids), self._write(ids, length), self._pace)
        return self._draft.tokens

    def _extra(self, k: int) -> float:
        return self._costs.extra(k) + k * self._costs.share(self._model.seconds)

    def _reserve(self, places: int) -> bool:
        missing = -(-places // BLOCK) - len(self._blocks)
        if missing > 0:
            self._blocks += self._model.take(missing)
        return len(self._blocks) * BLOCK >= places

    def _write(self, ids: Sequence[int], length: int) -> list[int]:
        """Read what is new of the sequence, then write `length` tokens."""
        start = min(self._read, len(ids) - 1)
        for begin in range(start, len(ids), CHUNK):
            token = self._step(ids[begin : begin + CHUNK], begin, last=begin + CHUNK >= len(ids))
        tokens = [token]
        started = time.perf_counter()
        while len(tokens) < length:
            tokens.append(self._step(tokens[-1:], len(ids) + len(tokens) - 1, last=True))
        if length > 1:
            self._model.record((time.perf_counter() - started) / (length - 1))
        self._read = len(ids) + length - 1
        return tokens

    def _step(self, ids: Sequence[int], start: int, last: bool) -> int:
        """The likeliest token behind ids, which stand from place `start` on."""
        N = len(ids)
        logits = self._model.backend.step(
            StepBatch(
                ids_N=np.array(ids, np.int32),
                positions_N=np.arange(start, start + N, dtype=np.int32),
                starts=np.array([0, N], np.int32),
                tables_SB=np.array([self._blocks], np.int32),
                wanted_R=np.arange(N - last, N, dtype=np.int32),
            )
        )
        return int(logits[0, : self._model.entries].argmax()) if last else -1
