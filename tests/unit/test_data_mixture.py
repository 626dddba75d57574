import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.data import Mixture

weights = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=2),
    st.floats(1e-6, 10, allow_nan=False),
    min_size=1,
    max_size=12,
)
# 57 sources of the size and number of digits of the published mixtures.
PUBLISHED = {f"s{i:02d}": round(0.37 * 0.82**i + 4.5e-05, 7) for i in range(57)}


@settings(max_examples=40)
@given(weights, st.integers(0, 10**12), st.integers(0, 60), st.integers(0, 60))
def test_stretches_join(shares, start, first, second):
    mixture = Mixture(shares)
    middle, stop = start + first, start + first + second
    joined = mixture.samples(start, middle) + mixture.samples(middle, stop)
    assert joined == mixture.samples(start, stop)
    assert len(joined) == first + second


@settings(max_examples=40)
@given(weights, st.integers(0, 10**9), st.integers(0, 80))
def test_samples_of_a_source_are_consecutive(shares, start, n):
    mixture = Mixture(shares)
    counts = mixture.counts(start)
    assert sum(counts.values()) == start
    for name, index in mixture.samples(start, start + n):
        assert index == counts[name]
        counts[name] += 1
    assert counts == mixture.counts(start + n)


@settings(max_examples=40)
@given(weights, st.integers(0, 10**9))
def test_shares_are_exact_within_the_stated_bound(shares, n):
    counts = Mixture(shares).counts(n)
    total = sum(shares.values())
    for name, weight in shares.items():
        share = weight / total
        assert abs(counts[name] - n * share) <= 0.5 + share * len(shares) / 2 + 1e-5


def test_equal_weights_take_turns():
    samples = Mixture({"b": 1, "a": 1.0}).samples(0, 4)
    assert samples == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


def test_three_to_one():
    names = [name for name, _ in Mixture({"a": 0.3, "b": 0.1}).samples(0, 8)]
    assert names == ["a", "a", "b", "a", "a", "a", "b", "a"]


@settings(max_examples=40)
@given(weights)
def test_only_proportions_and_names_count(shares):
    other = Mixture({name: weight * 4 for name, weight in reversed(shares.items())})
    assert other.samples(1000, 1020) == Mixture(shares).samples(1000, 1020)


@pytest.mark.parametrize("k", [0, 10**9])
def test_any_batch_of_the_published_mixture_costs_milliseconds(k):
    mixture = Mixture(PUBLISHED)
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        samples = mixture.samples(k * 576, (k + 1) * 576)
        best = min(best, time.process_time() - began)
    assert len(samples) == len(set(samples)) == 576
    assert best < 0.02
