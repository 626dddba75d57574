"""The sampler: what each setting does to one row of logits."""

import hashlib
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.errors import UserError
from smollm3.infer import SamplingParams, sampler
from smollm3.infer.params import PUBLISHED
from smollm3.infer.sampler import Adjustments, Sampler, kth_largest, least_kept, uniform

PLAIN = SamplingParams(1.0, 0, 1.0, 0.0, repetition_penalty=1.0)


def params(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, **others) -> SamplingParams:
    return SamplingParams(temperature, top_k, top_p, min_p, **others).over(PLAIN)


def choose(logits, settings=PLAIN, position=0, **more):
    logits = np.asarray(logits, np.float32)
    return Sampler(logits.size).choose(logits, settings, position, **more)


def bits(V: int, allowed) -> np.ndarray:
    words = np.zeros(-(-V // 32), np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"presence_penalty": None}, "presence_penalty"),
        ({"frequency_penalty": 1e9}, "frequency_penalty"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stop": ["a", 3]}, "stop"),
        ({"stop": ["a"] * 101}, "stop"),
        ({"stop_token_ids": 3}, "stop_token_ids"),
        ({"stop_token_ids": "12"}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"n": 0}, "n"),
        ({"n": 1001}, "n"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_params_that_make_no_sense(changes, name):
    with pytest.raises(UserError, match=f"^{name}: "):
        SamplingParams(**changes)


def test_settings_take_one_form():
    one = SamplingParams(stop="a", stop_token_ids=[3])
    assert (one.stop, one.stop_token_ids) == (("a",), (3,))
    assert hash(SamplingParams(logit_bias={1: 2.0}, stop=["a", "b"]))
    with pytest.raises(UserError, match="must be a number, not nan"):
        SamplingParams(logit_bias={1: math.nan})


def test_choices_have_seeds_of_their_own():
    choices = SamplingParams(seed=7, n=4, top_k=3).choices()
    assert choices[0] == SamplingParams(seed=7, top_k=3)
    assert len({c.seed for c in choices}) == 4
    assert choices == SamplingParams(seed=7, n=4, top_k=3).choices()
    assert choices[:2] == SamplingParams(seed=7, n=2, top_k=3).choices()
    assert choices[1].seed != SamplingParams(seed=8, n=2).choices()[1].seed


def test_the_published_settings():
    assert SamplingParams().over(PUBLISHED) == SamplingParams(
        temperature=0.6, top_k=0, top_p=0.95, min_p=0.0, repetition_penalty=1.0
    )
    assert SamplingParams(top_p=0.5, repetition_penalty=1.2).over(PUBLISHED).top_p == 0.5


def test_numbers_are_keyed_by_seed_and_place():
    numbers = [uniform(seed, place) for seed in range(40) for place in range(50)]
    assert len(set(numbers)) == 2000
    assert sum(numbers) / 2000 == pytest.approx(0.5, abs=0.02)
    assert all(0 <= x < 1 for x in numbers)
    digest = hashlib.blake2b(b"3/5", digest_size=4).digest()
    assert uniform(3, 5) == int.from_bytes(digest, "little") / 2**32  # the same on every machine


def test_frequencies_are_the_probabilities():
    logits = [2.0, 0.5, 1.0, -3.0, 0.0]
    n, temperature = 20_000, 0.7
    chosen = [choose(logits, params(temperature), place) for place in range(n)]
    counts = Counter(c.id for c in chosen)
    for token, p in enumerate(np.exp(log_softmax(np.array(logits) / temperature))):
        assert counts[token] / n == pytest.approx(p, abs=4 * (p / n) ** 0.5)
    expected = log_softmax(logits)
    assert [c.logprob for c in chosen] == pytest.approx([expected[c.id] for c in chosen], abs=1e-6)


def test_a_large_vocabulary_is_drawn_by_runs():
    """Longer than one run, and with the ends of the distribution in the first and last."""
    V = 5 * sampler.RUN + 7
    logits = np.full(V, -np.inf, np.float32)
    logits[[3, sampler.RUN, V - 1]] = [0.0, 1.0, 0.5]
    counts = Counter(choose(logits, PLAIN, place).id for place in range(4000))
    for token, p in zip((3, sampler.RUN, V - 1), np.exp(log_softmax([0.0, 1.0, 0.5])), strict=True):
        assert counts[token] / 4000 == pytest.approx(p, abs=0.03)


def drawn(probs, **settings) -> set[int]:
    """The tokens that can be drawn."""
    with np.errstate(divide="ignore"):
        logits = np.log(np.asarray(probs, np.float32))
    return {choose(logits, params(**settings), place).id for place in range(400)}


def test_filters():
    probs = [0.1, 0.4, 0.05, 0.3, 0.15]
    assert drawn(probs) == {0, 1, 2, 3, 4}
    assert drawn(probs, top_k=2) == {1, 3}
    assert drawn(probs, top_p=0.69) == {1, 3}
    assert drawn(probs, top_p=0.71) == {1, 3, 4}
    assert drawn(probs, top_p=1e-6) == {1}
    assert drawn(probs, min_p=0.3) == {1, 3, 4}
    # top_p counts in what top_k left: 0.4 is 0.57 of {0.4, 0.3}
    assert drawn(probs, top_k=2, top_p=0.56) == {1}
    assert drawn(probs, top_k=2, top_p=0.6) == {1, 3}
    # temperature comes first: at 0.1 nearly everything is the likeliest
    assert drawn(probs, temperature=0.1, min_p=0.2) == {1}
    assert drawn(probs, temperature=1e-30) == {1}
    assert drawn(probs, temperature=5e-324) == {1}
    assert drawn([0.0, 0.5, 0.5]) == {1, 2}
    assert drawn(probs, temperature=0.0) == {1}


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-32, 2)])
@pytest.mark.parametrize("top_k", [0, 2])
def test_the_ends_of_the_distribution(monkeypatch, number, token, top_k):
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: number)
    assert drawn([0.0, 0.5, 0.5, 0.0], top_k=top_k) == {token}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    V=st.sampled_from([5, 200, 5000, 20_000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 50, 150, 3999, 19_990]),
    top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)
def test_least_kept_is_that_of_a_full_sort(seed, V, spread, top_k, top_p, min_p):
    weights = np.exp(np.random.default_rng(seed).standard_normal(V) * spread).astype(np.float32)
    weights /= weights.max()
    wanted = params(1.0, top_k, top_p, min_p)
    kept = weights >= least_kept(weights, float(weights.sum()), wanted)
    top = np.sort(weights.astype(np.float64))[::-1][: top_k or V]
    before = (top / top.sum()).cumsum() - top / top.sum()
    if (abs(before - top_p) < 1e-5).any():
        return  # float32 sums may fall on the other side
    smallest = top[(before < top_p) & (top >= np.float32(min_p) * top[0])].min()
    # Equal ones, and where nothing is filtered all, are kept.
    assert kept.sum() == (weights >= np.float32(smallest)).sum()


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([1, 10, 3000, 9000, 30_000]),
    levels=st.sampled_from([1, 3, 1000, 0]),
    place=st.floats(0, 1),
)
def test_kth_largest_is_that_of_a_full_sort(seed, n, levels, place):
    values = np.random.default_rng(seed).standard_normal(n).astype(np.float32)
    if levels:
        values = np.round(values * levels / 3).astype(np.float32)
    k = 1 + int(place * (n - 1))
    assert kth_largest(values, k) == np.sort(values)[-k]


def test_the_likeliest_are_told():
    logits = np.random.default_rng(0).standard_normal(400).astype(np.float32)
    logits[[7, 9]] = 5.0
    chosen = choose(logits, params(0.0, logprobs=5))
    expected = log_softmax(logits)
    order = sorted(range(400), key=lambda i: (-logits[i], i))[:5]
    assert [i for i, _ in chosen.top_logprobs] == order
    assert order[:2] == [7, 9]
    assert chosen.id == 7
    assert [p for _, p in chosen.top_logprobs] == pytest.approx(expected[order], abs=1e-5)
    assert len(choose(logits[:3], params(0.0, logprobs=5)).top_logprobs) == 3
    assert choose(logits, params(0.0)).top_logprobs == ()


# penalties, biases


def test_penalties_and_biases():
    logits = [2.0, -1.0, 0.5, 3.0]
    hard = params(0.0, repetition_penalty=2.0, presence_penalty=0.25, frequency_penalty=0.5)
    adjustments = Adjustments(hard, [0, 1])
    for token in (1, 3, 3):
        adjustments.push(token)
    adjusted = np.array(logits, np.float32)
    adjustments.apply(adjusted)
    # prompt only; prompt and answer; neither; answer twice
    assert adjusted.tolist() == [1.0, -2.0 - 0.25 - 0.5, 0.5, 1.5 - 0.25 - 1.0]
    chosen = choose(logits, hard, adjustments=adjustments)
    assert chosen.id == 0
    assert chosen.logprob == pytest.approx(log_softmax(logits)[0])  # the model's own
    biased = params(0.0, logit_bias={2: 1.5, 1: -100})
    assert choose(logits, biased, adjustments=Adjustments(biased, [0])).id == 3
    biased = params(0.0, logit_bias={2: 2.6})
    assert choose(logits, biased, adjustments=Adjustments(biased, [])).id == 2
    assert not Adjustments(params(), [1, 2]).any
    many = params(frequency_penalty=0.1)
    adjustments = Adjustments(many, [])
    for token in [*range(300), *range(300)]:
        adjustments.push(token)
    adjusted = np.zeros(301, np.float32)
    adjustments.apply(adjusted)
    assert adjusted[:300] == pytest.approx(-0.2)
    assert adjusted[300] == 0


# masks


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    V=st.sampled_from([3, 32, 70, 6000, 9001]),
    share=st.sampled_from([0.001, 0.3, 0.9, 1.0]),
    temperature=st.sampled_from([0.0, 1.0, 0.5]),
    top_p=st.sampled_from([0.7, 1.0]),
)
def test_a_mask_is_the_distribution_of_what_it_allows(seed, V, share, temperature, top_p):
    draw = np.random.default_rng(seed)
    logits = draw.standard_normal(V).astype(np.float32) * 3
    allowed = np.flatnonzero(draw.random(V) < share)
    if not allowed.size:
        allowed = np.array([V // 2])
    wanted = params(temperature, top_p=top_p, logit_bias={int(allowed[0]): 0.5})
    adjustments = Adjustments(wanted, [])
    for place in range(5):
        chosen = choose(logits, wanted, place, adjustments=adjustments, mask=bits(V, allowed))
        alone = logits.copy()
        adjustments.apply(alone)
        expected = allowed[choose(alone[allowed], params(temperature, top_p=top_p), place).id]
        assert chosen.id in allowed
        assert chosen.id == expected
        assert chosen.logprob == pytest.approx(log_softmax(logits)[chosen.id], abs=1e-5)


def test_masks_of_another_size():
    """A tokenizer may have fewer entries than the model; bits beyond the model mean nothing."""
    logits = np.arange(5000, dtype=np.float32) / 1000
    short = bits(4200, range(4200))
    assert choose(logits, params(0.0), mask=short).id == 4199
    assert choose(logits, params(1.0, top_k=1), mask=short).id == 4199
    assert choose(logits, params(0.0), mask=bits(4200, [3, 77])).id == 77
    assert choose(logits[:50], params(1.0, top_k=1), mask=bits(64, [3, 60])).id == 3
    assert choose(logits[:50], params(0.0), mask=bits(64, [3, 60])).id == 3


def test_nothing_left_is_an_error_of_the_request():
    with pytest.raises(UserError, match="nothing may follow"):
        choose([1.0, 2.0], mask=bits(2, []))
    with pytest.raises(UserError, match="nothing may follow"):
        choose([1.0, -math.inf], params(0.0), mask=bits(2, [1]))
    for bad in ([1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]):
        with pytest.raises(UserError, match="not finite"):
            choose(bad)
