"""The sampler: from one row of logits to one token, the same for every backend.

V vocabulary. NumPy on one row at a time: on a CPU faster than torch, and a row's token cannot
depend on what is sampled beside it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import UserError
from smollm3.infer.generation import TopLogprobs
from smollm3.infer.params import SamplingParams

Floats = NDArray[np.float32]

SORTED = 2048  # values, at most, to find the k-th or the nucleus by sorting
# Where a mask leaves so few tokens they are looked at alone.
FEW = 4096
RUN = 256  # tokens summed at once when a token is drawn from the whole vocabulary
# A temperature whose reciprocal float32 still holds.
COLDEST = 1e-30
TOO_EARLY = np.float32(-1e9)  # a logit less than any, and more than what a mask leaves of none

# [256, 8]: what each byte of a mask adds to the logits of its eight tokens.
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_ADDED = np.where(_BITS == 1, np.float32(0), np.float32(-np.inf))


class Chosen(NamedTuple):
    id: int
    logprob: float
    top_logprobs: TopLogprobs


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the token's place."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


class Adjustments:
    """What a request adds to the logits: penalties on the tokens it has had, its biases, and what
    keeps the tokens that would end it away until it is long enough."""

    def __init__(
        self, params: SamplingParams, prompt: Iterable[int], stops: Iterable[int] = ()
    ) -> None:
        """params: settled, none of them None. stops: tokens that end the answer."""
        self._params = params
        self._penalises = (
            params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        )
        self._biased = np.fromiter(params.logit_bias.keys(), np.int64)
        self._biases = np.fromiter(params.logit_bias.values(), np.float32)
        self._stops = np.fromiter(stops, np.int64)
        self._missing = params.min_tokens
        self._places: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)  # in the answer
        if self._penalises:
            for token in prompt:
                self._place(token)

    @property
    def any(self) -> bool:
        return bool(self._penalises or len(self._biased) or self._missing > 0)

    def push(self, token: int) -> None:
        """The answer has this token now."""
        self._missing -= 1
        if self._penalises:
            place = self._place(token)  # which may move the counts
            self._counts[place] += 1

    def _place(self, token: int) -> int:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token
        return place

    def apply(self, logits_V: Floats) -> None:
        """In place. The bias comes last, so that it does what it says."""
        params, n = self._params, len(self._places)
        if n:
            ids, counts = self._ids[:n], self._counts[:n]
            values = logits_V[ids]
            factor = np.float32(params.repetition_penalty)
            values = np.where(values > 0, values / factor, values * factor)
            values -= np.float32(params.presence_penalty) * (counts > 0)
            values -= np.float32(params.frequency_penalty) * counts
            logits_V[ids] = values
        if len(self._biased):
            logits_V[self._biased] += self._biases
        if self._missing > 0:
            logits_V[self._stops] = TOO_EARLY


class Sampler:
    """Scratch memory for one row; not to be used by two threads at once."""

    def __init__(self, V: int) -> None:
        self._weights_V = np.empty(V, np.float32)
        self._adjusted_V = np.empty(V, np.float32)
        self._added = np.empty((-(-V // 32) * 4, 8), np.float32)

    def choose(
        self,
        logits_V: Floats,
        params: SamplingParams,
        position: int,
        adjustments: Adjustments | None = None,
        mask: NDArray[np.int32] | None = None,
    ) -> Chosen:
        """The token for place `position` of its sequence.

        params: settled, none of them None. mask: bit t % 32 of word t // 32 allows token t.
        Log-probabilities are the model's own, before penalties, masks, temperature and filters.
        UserError for logits that are not numbers, and where nothing is left to choose from.
        """
        likeliest = int(logits_V.argmax())
        peak = float(logits_V[likeliest])
        if not math.isfinite(peak):
            raise UserError(
                "the model's logits are not finite numbers: its weights are damaged, or its dtype "
                "is too narrow for them (try bfloat16 or float32)"
            )
        total = self._weigh(logits_V, peak, 1.0)
        normaliser = peak + math.log(total)
        top = self._top(logits_V, normaliser, params.logprobs) if params.logprobs else ()
        token = self._pick(logits_V, likeliest, total, params, position, adjustments, mask)
        return Chosen(token, float(logits_V[token]) - normaliser, top)

    def _pick(
        self,
        logits_V: Floats,
        likeliest: int,
        total: float,
        params: SamplingParams,
        position: int,
        adjustments: Adjustments | None,
        mask: NDArray[np.int32] | None,
    ) -> int:
        """The weights hold exp(logits - largest), whose sum is `total`."""
        adjusted = adjustments is not None and adjustments.any
        if not params.temperature and not adjusted and (mask is None or _allows(mask, likeliest)):
            return likeliest
        values, ids = logits_V, None
        if adjustments is not None and adjusted:
            values = self._adjusted_V
            values[:] = logits_V
            adjustments.apply(values)
        if mask is not None:
            values, ids = self._masked(values, mask)
        if values is not logits_V or params.temperature != 1:
            peak = float(values.max()) if values.size else -math.inf
            if peak == -math.inf:
                raise UserError(
                    "nothing may follow: the request's constraint and biases allow none"
                )
            if not params.temperature:
                place = int(values.argmax())
                return place if ids is None else int(ids[place])
            total = self._weigh(values, peak, max(params.temperature or 0.0, COLDEST))
        weights = self._weights_V[: values.size]
        place = _draw(weights, total, params, uniform(params.seed, position))
        return place if ids is None else int(ids[place])

    def _weigh(self, values: Floats, peak: float, temperature: float) -> float:
        """exp((values - peak) / temperature) into the weights; their sum."""
        weights = self._weights_V[: values.size]
        np.subtract(values, np.float32(peak), out=weights)
        if temperature != 1:
            with np.errstate(over="ignore"):  # to -inf, whose weight is 0
                np.multiply(weights, np.float32(1 / temperature), out=weights)
        np.exp(weights, out=weights)
        return float(weights.sum())

    def _masked(
        self, values: Floats, mask: NDArray[np.int32]
    ) -> tuple[Floats, NDArray[np.int64] | None]:
        """The allowed values with their ids, or, where they are many, all with -inf for others."""
        V = values.size
        # Of a negative number it counts the bits of the absolute value.
        if int(np.bitwise_count(mask.view(np.uint32)).sum()) <= FEW:
            words = np.flatnonzero(mask)
            bits = np.flatnonzero(np.unpackbits(mask[words].view(np.uint8), bitorder="little"))
            ids = words[bits // 32] * 32 + bits % 32
            ids = ids[: np.searchsorted(ids, V)]
            return values[ids], ids
        octets = mask.view(np.uint8)
        added = self._added[: len(octets)]
        np.take(_ADDED, octets, axis=0, out=added, mode="clip")
        masked, known = self._adjusted_V, min(added.size, V)
        np.add(values[:known], added.reshape(-1)[:known], out=masked[:known])
        masked[known:] = -np.inf  # the model has more entries than the tokenizer
        return masked, None

    def _top(self, logits_V: Floats, normaliser: float, k: int) -> TopLogprobs:
        """The k likeliest; of equal ones the lower id first."""
        ids = np.flatnonzero(logits_V >= kth_largest(logits_V, min(k, logits_V.size)))
        best = ids[np.argsort(-logits_V[ids], kind="stable")[:k]]
        return tuple((int(i), float(logits_V[i]) - normaliser) for i in best)


def _allows(mask: NDArray[np.int32], token: int) -> bool:
    return token < 32 * len(mask) and bool(int(mask[token // 32]) >> (token % 32) & 1)


def _draw(weights: Floats, total: float, params: SamplingParams, number: float) -> int:
    """Inverse of the cumulative distribution over the kept tokens, at `number` of [0, 1).

    Tokens stay in the vocabulary's order: rounding that swaps two near-equal ones in a sort
    cannot change the draw.
    """
    least = least_kept(weights, total, params)
    if least > 0:
        kept = np.flatnonzero(weights >= least)
        if kept.size <= FEW:
            return int(kept[_inverse(weights[kept], number)])
        np.multiply(weights, weights >= least, out=weights)
    # First which run of tokens, then which of the run: the whole's cumulative sum takes 400 us.
    ends = np.add.reduceat(weights, np.arange(0, weights.size, RUN), dtype=np.float64).cumsum()
    target = number * ends[-1]
    run = int(np.searchsorted(ends, target, side="right"))
    inside = weights[run * RUN : (run + 1) * RUN]
    target -= ends[run - 1] if run else 0.0
    place = int(np.searchsorted(inside.cumsum(dtype=np.float64), target, side="right"))
    if place == inside.size:  # by rounding: the last that can be drawn
        place = int(np.flatnonzero(inside)[-1])
    return run * RUN + place


def _inverse(weights: Floats, number: float) -> int:
    ends = weights.cumsum(dtype=np.float64)
    return int(np.searchsorted(ends, number * ends[-1], side="right"))


def least_kept(weights: Floats, total: float, params: SamplingParams) -> float:
    """The smallest weight that top_k, top_p and min_p, applied in this order, all keep; 0 if all.

    weights: the largest is 1. top_p counts within what top_k leaves. Tokens equal to the last
    kept one are kept too.
    """
    top_k, top_p, least = params.top_k or 0, params.top_p or 1.0, params.min_p or 0.0
    if 0 < top_k < weights.size:
        kth = kth_largest(weights, top_k)
        least = max(least, kth)
        above = _where(weights, weights > kth)
        total = float(above.sum()) + (top_k - above.size) * kth
    if top_p < 1:
        # What is less than an equal share of the rest that top_p leaves out is in that rest.
        cut = max((1 - top_p) * total / weights.size, least)
        least = max(least, mass_reached(_where(weights, weights >= cut), top_p * total))
    return least


def mass_reached(weights: Floats, mass: float) -> float:
    """The largest weight w for which all weights of at least w sum to `mass`; 0 if none does."""
    return _reached(weights, mass, lambda values: values.cumsum(dtype=np.float64), _mass_above)


def kth_largest(values: Floats, k: int) -> float:
    """k: from 1 to values.size."""
    return _reached(values, k, lambda values: np.arange(1, values.size + 1), _count_above)


def _reached(
    values: Floats,
    amount: float,
    cumulative: Callable[[Floats], NDArray[Any]],
    above: Callable[[Floats, Any], float],
) -> float:
    """The largest value for which all values of at least that amount to `amount`; 0 if none does.

    A sample, sorted, says between which two values it lies; those between are few (Floyd and
    Rivest 1975). Sorting 128,256 values takes 4 ms, this a tenth.
    """
    while values.size > SORTED:
        sample = np.sort(values[:: values.size // SORTED])[::-1]
        place = int(np.searchsorted(cumulative(sample) * (values.size / sample.size), amount))
        spread = 4 + 3 * math.isqrt(min(place, sample.size))
        low = sample[min(place + spread, sample.size - 1)]
        high = sample[place - spread] if place >= spread else np.float32(np.inf)
        heavier = above(values, high)
        if heavier >= amount:
            kept = _where(values, values > high)
        else:
            between = _where(values, (values >= low) & (values <= high))
            there = above(between, -np.inf)
            if heavier + there >= amount:
                kept = between
                amount -= heavier
            else:
                kept = _where(values, values < low)
                amount -= heavier + there
        if kept.size == values.size:  # all alike
            break
        values = kept
    descending = np.sort(values)[::-1]
    place = int(np.searchsorted(cumulative(descending), amount))
    return float(descending[place]) if place < descending.size else 0.0


def _mass_above(values: Floats, bound: Any) -> float:
    return float(np.multiply(values, values > bound).sum())


def _count_above(values: Floats, bound: Any) -> float:
    return int(np.count_nonzero(values > bound))


def _where(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """values[chosen], which takes ten times as long where half are chosen at random."""
    return values.take(np.flatnonzero(chosen))
