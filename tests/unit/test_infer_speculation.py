"""Guesses: what prompt lookup and draft models propose, and that a draft model's memory holds."""

import gc
import random
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.errors import UserError
from smollm3.infer.backends import BLOCK, pool_places
from smollm3.infer.speculation import (
    LONGEST,
    MATCH,
    DraftModel,
    Pace,
    PromptLookup,
    StepCosts,
    agreement,
)
from smollm3.tokenizer import Tokenizer

FREE = StepCosts(0, 0, measured=False)
pieces = st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=30)


def occurrences(ids, count) -> list[int]:
    """Where the last `count` ids end, before the end."""
    return [e for e in range(count, len(ids)) if ids[e - count : e] == ids[len(ids) - count :]]


class Eager(Pace):
    def length(self, limit, extra):
        return limit


def eager() -> PromptLookup:
    """One that says all it guesses."""
    lookup = PromptLookup(FREE)
    lookup._paces = dict.fromkeys(lookup._paces, Eager(1.0))
    return lookup


@settings(max_examples=150)
@given(pieces, st.integers(1, 12))
def test_lookup_proposes_what_followed_the_longest_match(pieces, limit):
    lookup, ids = eager(), []
    for piece in pieces:
        ids += piece
        proposed = lookup.propose(ids, limit)
        assert len(proposed) <= limit
        if len(ids) < 3 or not occurrences(ids, 2):
            assert proposed == []
            continue
        assert len(proposed) == limit
        longest = max(n for n in range(2, len(ids)) if occurrences(ids, n))
        goes_on = ids + proposed
        newest = occurrences(ids, 2)[-16:]
        # The longest among the newest 16 occurrences of two tokens.
        among = max(n for n in range(2, longest + 1) for e in newest if e in occurrences(ids, n))
        assert any(proposed == goes_on[e : e + limit] for e in occurrences(ids, min(among, MATCH)))


def test_the_newest_of_equal_matches_wins():
    assert eager().propose([1, 2, 3, 1, 2, 4, 1, 2], 1) == [4]
    assert eager().propose([9, 1, 2, 3, 1, 2, 4, 9, 1, 2], 2) == [3, 1]


def test_repetition_goes_on():
    assert eager().propose([5, 6, 7, 5, 6, 7], 8) == [5, 6, 7, 5, 6, 7, 5, 6]
    assert eager().propose([5, 5, 5], 3) == [5, 5, 5]


@pytest.mark.parametrize("ids", [[], [1], [1, 1], [1, 2, 3]])
def test_no_match_no_guess(ids):
    assert eager().propose(ids, 5) == []


def test_lookup_speaks_where_it_pays():
    """Silent in noise, longer and longer in a copy, silent again behind it."""
    rng = random.Random(0)
    text = [rng.randrange(50_000) for _ in range(400)]
    lookup, ids = PromptLookup(StepCosts(0.15, 0.15, measured=False)), list(text)
    lengths = []
    for token in text[:200]:
        ids.append(token)
        lengths.append(len(lookup.propose(ids, 32)))
    assert lengths[0] == 0
    assert max(lengths[:6]) > 0
    assert min(lengths[60:]) >= 12
    few = 0
    noise = [rng.randrange(12) for _ in range(400)]
    for token in noise:  # each pair of tokens has been seen, what follows is chance
        ids.append(token)
        few += len(lookup.propose(ids, 32))
    assert few < 100


def test_lookup_is_fast_in_long_texts():
    rng = random.Random(1)
    ids = [rng.randrange(3000) for _ in range(65_536)]
    ids[40_000:] = ids[:25_536]
    lookup = PromptLookup()
    lookup.propose(ids, 16)
    times = []
    for _ in range(200):
        ids.append(rng.randrange(3000))
        start = time.thread_time()
        lookup.propose(ids, 16)
        times.append(time.thread_time() - start)
    assert sorted(times)[100] < 200e-6  # 10 us on a quiet machine


def test_pace_takes_the_best_ratio():
    def jumps(k):  # as kernels do that change their method
        return 0.02 * k if k < 4 else 0.5 + 0.15 * k

    for extra in (jumps, lambda k: 0.05 * k, lambda k: 0.5 * k, lambda k: 0.4 + 0.01 * k):
        for right, wrong in ((0, 9), (1, 9), (5, 5), (9, 1), (60, 1)):
            pace = Pace(0.5)
            pace.learn(right, wrong)
            rate = pace._right / pace._asked

            def speed(k, rate=rate, extra=extra):
                return sum(rate**i for i in range(k + 1)) / (1 + (extra(k) if k else 0))

            best = max(range(33), key=speed)
            assert speed(pace.length(32, extra)) == pytest.approx(speed(best), rel=0.02)
            assert pace.length(3, extra) <= 3
    assert Pace(0.2).length(8, lambda k: 0.3 * k) == 0


def test_costs_are_learnt_from_steps():
    costs = StepCosts()
    assert costs.extra(0) == 0
    before = costs.extra(3)
    costs.record(1, 1, 0.040)
    assert costs.extra(3) == pytest.approx(before)  # as supposed
    costs.record(1, 5, 0.060)
    assert costs.extra(4) == pytest.approx(0.5)
    assert costs.extra(2) == pytest.approx(0.25)
    assert costs.extra(8) == pytest.approx(1.0)
    for _ in range(50):
        costs.record(1, 9, 0.160)
    costs.record(1, 9, 1.0)  # something else ran
    assert costs.extra(8) == pytest.approx(3.0, rel=0.8)
    costs.record(1, 9, 0.160)
    costs.record(1, 9, 0.160)
    assert costs.extra(8) == pytest.approx(3.0, rel=0.2)
    assert costs.extra(4) == pytest.approx(0.5)
    assert costs.share(0.010) == pytest.approx(0.25)
    # Beside four others, time is theirs too.
    costs.record(5, 5, 0.060)
    assert costs.extra(4) == pytest.approx(5 * (0.160 / 0.060 - 1), rel=0.3)


def test_costs_that_are_not_measured_do_not_depend_on_the_clock():
    costs = StepCosts(first=0.4, more=0.1, measured=False)
    costs.record(1, 1, 0.040)
    costs.record(1, 5, 0.040)
    assert costs.extra(1) == pytest.approx(0.4)
    assert costs.extra(3) == pytest.approx(0.6)
    costs.record(2, 2, 0.040)
    assert costs.extra(3) == pytest.approx(1.2)
    assert costs.share(1.0) == costs.share(None)


# draft models


class Follower:
    """A backend without weights: the next token is a function of all tokens that the cache holds
    for the sequence, so it shows whatever is missing or stale there."""

    def __init__(self, config, blocks=40, seed=0):
        self.name, self.config, self.blocks, self.seed = "test", config, blocks, seed
        self.pool = np.full(blocks * BLOCK, -1)
        self.steps = 0

    def next(self, ids) -> int:
        return random.Random(f"{self.seed} {ids}").randrange(200)

    def step(self, batch):
        self.steps += 1
        places = pool_places(batch.tables_SB, batch.starts, batch.positions_N)
        self.pool[places] = batch.ids_N
        rows = []
        for n in batch.wanted_R:
            upto = np.arange(batch.positions_N[n] + 1)
            held = self.pool[batch.tables_SB[0][upto // BLOCK] * BLOCK + upto % BLOCK]
            assert (held >= 0).all()
            rows.append(torch.nn.functional.one_hot(torch.tensor(self.next(held.tolist())), 300))
        return torch.stack(rows).float() if rows else torch.zeros(0, 300)


class Config:
    context = 4096


def make_draft(tokenizer, **options):
    return DraftModel(Follower(Config(), **options), tokenizer, tokenizer)


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.integers(1, 80), st.floats(0, 1))
def test_a_draft_model_guesses_as_if_it_read_everything_anew(tokenizer, rng, prompt, luck):
    model = make_draft(tokenizer)
    drafters = [(model.drafter(FREE), [rng.randrange(200) for _ in range(prompt)]) for _ in "ab"]
    for _ in range(25):
        drafter, ids = rng.choice(drafters)
        limit = rng.randint(0, 6)
        guess = drafter.propose(ids, limit)
        assert len(guess) <= limit
        truth = list(ids)
        for token in guess:
            assert token == model.backend.next(truth)
            truth.append(token)
        right = sum(rng.random() < luck for _ in guess)
        ids += [*guess[:right], rng.randrange(200)]


def test_a_draft_model_that_is_right_is_asked_for_more(tokenizer):
    model = make_draft(tokenizer)
    drafter, ids, lengths = model.drafter(), [1, 2, 3], []
    for _ in range(30):
        guess = drafter.propose(ids, 8)
        lengths.append(len(guess))
        ids += guess
        ids.append(model.backend.next(ids))
    assert lengths[-1] > lengths[0] > 0


def test_a_draft_model_that_is_wrong_is_nearly_left_alone(tokenizer):
    model = make_draft(tokenizer)
    drafter, ids = model.drafter(), [1, 2, 3]
    for i in range(200):
        drafter.propose(ids, 8)
        ids.append(200 + i % 7)
    assert model.backend.steps < 30
    calls = [len(drafter.propose([*ids, *range(i)], 8)) for i in range(64)]
    assert 3 <= sum(calls) <= 6  # but asked again now and then


def test_a_full_pool_means_no_guesses_and_dropping_frees_it(tokenizer):
    model = make_draft(tokenizer, blocks=4)
    first, second = model.drafter(), model.drafter()
    ids = [7] * (3 * BLOCK)
    assert first.propose(ids, 1)
    assert second.propose(ids, 1) == []
    assert second.propose(ids[: BLOCK - 2], 1)
    del first
    gc.collect()
    assert second.propose(ids, 1)
    del second
    gc.collect()
    assert sorted(model._free) == [0, 1, 2, 3]


def test_a_draft_model_keeps_to_its_context(tokenizer):
    model = make_draft(tokenizer, blocks=200)
    drafter = model.drafter(FREE)
    assert drafter.propose([7] * (Config.context - 2), 8)
    assert len(drafter.propose([7] * (Config.context - 2), 8)) <= 2
    assert drafter.propose([7] * Config.context, 8) == []


def test_vocabularies_must_be_the_same(tokenizer):
    other = Tokenizer.train(["another text altogether"] * 4, 292, tokenizer.template)
    with pytest.raises(UserError, match="draft: its vocabulary is not the model's"):
        DraftModel(Follower(Config()), other, tokenizer)
    DraftModel(Follower(Config()), tokenizer.with_template("x"), tokenizer)


def test_agreement():
    assert agreement([1, 2, 3], [1, 2, 4]) == 2
    assert agreement([1, 2], [1, 2, 4]) == 2
    assert agreement([], [1]) == 0
    assert LONGEST >= 32
