"""Any part of any tensor can be drawn alone, with the bits that it has in the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.model import ModelConfig, init, initial_weight, nope_pattern

CONFIG = ModelConfig(64, 2, 16, 4, 2, 4, 24, nope_pattern(2, 2), 1e4, 32)


@pytest.fixture(autouse=True)
def short_draws(monkeypatch):
    monkeypatch.setattr(init, "DRAW", 40)  # runs of 5 rows of 8


@settings(max_examples=50)
@given(st.data())
def test_a_part_has_the_bits_of_the_whole(data):
    shape = (23, 8)
    part = tuple(
        slice(*sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2))))
        for n in shape
    )
    init.DRAW = 40
    whole = initial_weight(CONFIG, 1, "x.weight", shape)
    assert torch.equal(initial_weight(CONFIG, 1, "x.weight", shape, part), whole[part])


def test_runs_are_drawn_from_seeds_of_their_own():
    whole = initial_weight(CONFIG, 1, "x.weight", (20, 8))
    runs = whole.split(5)
    for i, run in enumerate(runs):
        for other in runs[:i]:
            assert not torch.equal(run, other)
    assert not torch.equal(whole, initial_weight(CONFIG, 2, "x.weight", (20, 8)))
    assert not torch.equal(whole, initial_weight(CONFIG, 1, "y.weight", (20, 8)))


def test_norms_are_ones():
    assert initial_weight(CONFIG, 1, "norm.weight", (16,), (slice(3, 5),)).tolist() == [1, 1]


def test_residual_products_are_scaled_by_depth(monkeypatch):
    monkeypatch.setattr(init, "DRAW", 2**20)
    plain = initial_weight(CONFIG, 1, "blocks.0.ffn.up.weight", (400, 400)).std()
    scaled = initial_weight(CONFIG, 1, "blocks.0.ffn.down.weight", (400, 400)).std()
    assert float(plain) == pytest.approx(0.02, rel=0.02)
    assert float(scaled) == pytest.approx(0.01, rel=0.02)  # 1/sqrt(2 x 2 layers)
