import json
import math
import random
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from smollm3.train.loss_spike import PATIENCE, RARE, WARM_UP, LossSpikeGuard


def warm(loss=3.0, spread=0.1):
    guard, rng = LossSpikeGuard(), random.Random(0)
    for _ in range(2 * WARM_UP):
        assert guard.accepts(rng.gauss(loss, spread), 1.0)
    return guard


def test_no_numbers_are_never_accepted():
    for loss, norm in [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)]:
        assert not LossSpikeGuard().accepts(loss, norm)


def test_a_spike_is_skipped_and_leaves_the_mean():
    guard = warm()
    mean = guard.mean
    assert not guard.accepts(30.0, 1.0)
    assert guard.mean == mean
    assert guard.accepts(3.0, 1.0)
    assert (guard.skipped, guard.skipped_in_a_row) == (1, 0)


def test_spikes_are_six_deviations_and_half_a_nat():
    wide = warm(spread=0.5)
    assert wide.accepts(wide.mean + 2.0, 1.0)
    assert not wide.accepts(wide.mean + 5.0, 1.0)
    steady = warm(spread=0.0)
    assert steady.accepts(3.4, 1.0)
    assert not warm(spread=0.0).accepts(3.6, 1.0)


def test_falling_is_no_spike_and_the_beginning_has_none():
    guard = LossSpikeGuard()
    assert all(guard.accepts(loss, 1.0) for loss in (8.0, 20.0, 3.0, 9.0))
    assert warm().accepts(0.01, 1.0)


def test_gives_up_after_twenty_in_a_row():
    guard = LossSpikeGuard()
    for i in range(PATIENCE):
        assert guard.gives_up is False, i
        guard.accepts(math.nan, 1.0)
    assert guard.gives_up
    guard.accepts(1.0, 1.0)
    assert not guard.gives_up


@given(st.lists(st.floats(0, 10), min_size=1, max_size=120), st.integers(0, 119))
def test_its_memory_survives_json(losses, cut):
    whole, first = LossSpikeGuard(), LossSpikeGuard()
    decisions = [whole.accepts(x, 1.0) for x in losses]
    for x in losses[:cut]:
        first.accepts(x, 1.0)
    second = LossSpikeGuard(**json.loads(json.dumps(asdict(first))))
    assert [second.accepts(x, 1.0) for x in losses[cut:]] == decisions[cut:]
    assert second == whole


def test_a_spike_that_comes_again_between_good_steps_is_rare_data():
    guard, decisions = warm(), []
    for _ in range(3 * RARE):
        decisions.append(guard.accepts(9.0, 1.0))
        for _ in range(20):
            assert guard.accepts(3.0, 1.0)
    assert decisions == [False] * RARE + [True] * 2 * RARE
    assert guard.mean < 3.5  # what is rare does not become what is usual


def test_broken_steps_are_skipped_however_many_spikes_there_were():
    guard = warm()
    for _ in range(RARE):
        assert not guard.accepts(9.0, 1.0)
        assert guard.accepts(3.0, 1.0)
    assert not guard.accepts(math.nan, 1.0)
    assert not guard.accepts(9.0, 1.0)  # after a broken step
    assert guard.accepts(3.0, 1.0)
    assert guard.accepts(9.0, 1.0)
    assert [guard.accepts(9.0, 1.0) for _ in range(PATIENCE)] == [False] * PATIENCE  # diverged
    assert guard.gives_up


def test_every_number_can_be_kept():
    guard = warm()
    assert all(guard.accepts(loss, 1.0, spikes=True) for loss in (9.0, 50.0, 70.0))
    assert not guard.accepts(math.inf, 1.0, spikes=True)
