import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.errors import UserError
from smollm3.train.schedule import check, learning_rate
from smollm3.train.spec import LearningRate


def rates(steps, **lr):
    return [learning_rate(LearningRate(**lr), k, steps) for k in range(steps)]


def test_warm_up_then_hold():
    assert rates(6, peak=1.0, warmup=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_over_the_last_steps():
    assert rates(8, peak=2.0, decay="linear", decay_steps=4) == [2, 2, 2, 2, 1.5, 1.0, 0.5, 0.0]


def test_linear_over_everything_after_the_warm_up():
    got = rates(6, peak=1.0, warmup=2, decay="linear", end=0.5)
    assert got == pytest.approx([0.5, 1.0, 0.875, 0.75, 0.625, 0.5])


def test_cosine_with_min_lr():
    got = rates(10, peak=1.0, warmup=2, decay="cosine", end=0.1)
    assert got[1] == 1.0
    assert got[5] == pytest.approx(0.55)  # half of the way down
    assert got[3] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert got[-1] == pytest.approx(0.1)


def test_three_stages_make_wsd():
    stages = [
        rates(4, peak=1.0, warmup=2),
        rates(3, peak=1.0),
        rates(4, peak=1.0, decay="linear"),
    ]
    assert [rate for stage in stages for rate in stage] == [
        0.5,
        1,
        1,
        1,
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
        0.0,
    ]


@given(
    st.integers(1, 40),
    st.data(),
    st.sampled_from(["none", "linear", "cosine"]),
    st.floats(0, 1),
)
def test_never_above_the_peak_nor_below_the_end(steps, data, decay, end):
    warmup = data.draw(st.integers(0, steps))
    falling = data.draw(st.none() | st.integers(1, max(1, steps - warmup)))
    lr = LearningRate(peak=2.0, warmup=warmup, decay=decay, decay_steps=falling, end=end)
    if decay != "none" and warmup == steps and falling:
        with pytest.raises(UserError):
            check(lr, steps)
        return
    check(lr, steps)
    got = [learning_rate(lr, k, steps) for k in range(steps)]
    assert all(0 <= rate <= 2 for rate in got)
    assert got[:warmup] == sorted(got[:warmup])
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
    if decay == "none" or warmup == steps:
        assert got[-1] == 2
    else:
        assert got[-1] == pytest.approx(2 * end, abs=1e-12)


@pytest.mark.parametrize(
    ("lr", "words"),
    [
        ({"warmup": 11}, "warmup 11"),
        ({"decay": "linear", "decay_steps": 11}, "decay_steps 11"),
        ({"warmup": 6, "decay": "cosine", "decay_steps": 5}, "warmup 6 and decay_steps 5"),
    ],
)
def test_what_does_not_fit_is_refused(lr, words):
    with pytest.raises(UserError, match=f"{words}.*10 steps"):
        check(LearningRate(peak=1.0, **lr), 10)
