import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from smollm3.data import Batch
from smollm3.data.spec import PREFERENCE_LOSSES
from smollm3.model import ModelConfig, Transformer, packed
from smollm3.train import losses
from smollm3.train.forward import slices

CONFIG = ModelConfig(
    vocab_size=50, layers=1, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=8,
    uses_rope=(True,), rope_theta=1e4, context=16, init_std=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG)
    model.init_weights(0)
    return model


def make_batch(rows=4, T=12, weighted=0.5, pairs=()):
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(CONFIG.vocab_size, (rows, T + 1), generator=generator)
    weights_BT = (torch.rand(rows, T, generator=generator) < weighted).float()
    documents_BT = torch.zeros(rows, T, dtype=torch.int64)
    return Batch(ids_BT[:, :-1], ids_BT[:, 1:], weights_BT, documents_BT, {}, pairs)


def test_log_probs_are_zero_without_weight_and_scale_with_it(model):
    batch = make_batch()
    batch.weights_BT[0, 3] = 0.25
    h_BTE = model.hidden(batch.ids_BT)
    plain_BT = -F.cross_entropy(
        model.logits(h_BTE).transpose(1, 2), batch.targets_BT, reduction="none"
    )
    expected = plain_BT * batch.weights_BT
    torch.testing.assert_close(losses.log_probs(model, h_BTE, batch), expected)


def test_chunks_change_nothing(model, monkeypatch):
    batch = make_batch(weighted=0.9)

    def loss_and_gradients():
        model.zero_grad()
        sums = losses.language_modelling(model, model.hidden(batch.ids_BT), batch)
        sums.total.backward()
        return sums, [p.grad.clone() for p in model.parameters()]

    whole, gradients = loss_and_gradients()
    monkeypatch.setattr(losses, "LOGITS", 5 * CONFIG.vocab_size)
    largest = 0

    def logits(h_NE):
        nonlocal largest
        largest = max(largest, len(h_NE))
        return model.unembed(h_NE)

    monkeypatch.setattr(model, "logits", logits)
    chunked, chunked_gradients = loss_and_gradients()
    assert largest == 5
    torch.testing.assert_close(whole.total, chunked.total)
    torch.testing.assert_close(gradients, chunked_gradients)


def test_no_weight_gives_zero_and_a_gradient_of_zero(model):
    batch = make_batch(weighted=0.0)
    model.zero_grad()
    sums = losses.language_modelling(model, model.hidden(batch.ids_BT), batch)
    sums.total.backward()
    assert (sums.total.item(), sums.weight) == (0.0, 0.0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        # rewards +1 and -2
        ("apo_zero", 1 - 1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(2))),
        ("apo_down", 1 / (1 + math.exp(-1)) + 1 - 1 / (1 + math.exp(-3))),
        ("dpo", math.log(1 + math.exp(-3))),
    ],
)
def test_preferences_by_hand(loss, expected):
    got = losses.PREFERENCES[loss](torch.tensor([1.0]), torch.tensor([-2.0]))
    assert float(got) == pytest.approx(expected, abs=1e-6)


def test_every_preference_loss_of_a_recipe_is_there():
    assert set(losses.PREFERENCES) == set(PREFERENCE_LOSSES)


def test_blank_pairs_count_nothing(model):
    batch = make_batch(rows=6, pairs=(("x", 0), ("x", 1), ("x", 2)))
    batch.weights_BT[[2, 5]] = 0
    h_BTE, zeros = model.hidden(batch.ids_BT), torch.zeros(6)
    rows = [0, 1, 3, 4]
    two = replace(batch, **{k: getattr(batch, k)[rows] for k in ("targets_BT", "weights_BT")})
    made = losses.preference(model, h_BTE, replace(batch, blank=1), zeros, loss="dpo", beta=0.1)
    plain = losses.preference(model, h_BTE[rows], two, zeros[:4], loss="dpo", beta=0.1)
    assert made.weight == plain.weight == 2
    torch.testing.assert_close(made.total, plain.total)


def test_preference_at_the_reference_is_one_and_slices_add_up(model):
    batch = make_batch(rows=6, pairs=(("x", 0), ("x", 1), ("x", 2)))
    with torch.no_grad():
        reference_B = losses.log_probs(model, model.hidden(batch.ids_BT), batch).sum(-1)
        same = losses.preference(
            model, model.hidden(batch.ids_BT), batch, reference_B, loss="apo_zero", beta=0.1
        )
        assert float(same.total) / same.weight == pytest.approx(1.0)
        assert [float(m) for m in same.metrics] == [0.0, 0.0]

        reference_B = torch.linspace(-60, -20, 6)
        whole = losses.preference(
            model, model.hidden(batch.ids_BT), batch, reference_B, loss="dpo", beta=0.1
        )
        parts = [
            losses.preference(
                model,
                model.hidden(part.ids_BT),
                part,
                reference_B[[i for _, i in part.pairs] + [3 + i for _, i in part.pairs]],
                loss="dpo",
                beta=0.1,
            )
            for part in slices(batch, 2)
        ]
    assert [p.weight for p in parts] == [2, 1]
    assert float(sum(p.total for p in parts)) == pytest.approx(float(whole.total), rel=1e-5)
    for i in range(2):
        total = sum(float(p.metrics[i]) for p in parts)
        assert total == pytest.approx(float(whole.metrics[i]), rel=1e-5)


def test_slices_of_rows_and_pairs():
    rows = make_batch(rows=5)
    assert [len(part.ids_BT) for part in slices(rows, 2)] == [2, 2, 1]
    assert torch.equal(torch.cat([part.targets_BT for part in slices(rows, 2)]), rows.targets_BT)
    (whole,) = slices(rows, None)
    assert torch.equal(whole.weights_BT, rows.weights_BT)

    pairs = make_batch(rows=6, weighted=1.0, pairs=tuple(("x", i) for i in range(3)))
    pairs.weights_BT[2, 5:] = 0  # the last pair's answers are shorter
    pairs.weights_BT[5, 7:] = 0
    first, second = slices(pairs, 2)
    assert first.ids_BT.shape == (4, 12)
    assert second.ids_BT.shape == (2, 8)
    assert torch.equal(second.ids_BT, pairs.ids_BT[[2, 5], :8])
    assert second.pairs == (("x", 2),)

    empty = replace(
        rows,
        **{
            f"{k}_BT": getattr(rows, f"{k}_BT")[:0]
            for k in ("ids", "targets", "weights", "documents")
        },
    )
    assert list(slices(empty, None)) == []


def test_a_slice_ends_with_the_last_target_that_counts():
    rows = make_batch(rows=5, weighted=1.0)
    for row, end in enumerate((12, 3, 7, 8, 0)):
        rows.weights_BT[row, end:] = 0
    widths = {1: [12, 8, 8, 8, 8], 2: [12, 8, 8], 4: [12, 8], 5: [12]}
    for size, expected in widths.items():
        parts = list(slices(rows, size))
        assert [part.ids_BT.shape[1] for part in parts] == expected
        assert sum(float(part.weights_BT.sum()) for part in parts) == 30
        for at, part in enumerate(parts):
            for key in ("ids_BT", "targets_BT", "weights_BT", "documents_BT"):
                whole = getattr(rows, key)[at * size : (at + 1) * size]
                assert torch.equal(getattr(part, key), whole[:, : part.ids_BT.shape[1]])


@pytest.mark.parametrize("pairs", [False, True])
def test_gradients_without_the_columns_behind_are_those_with_them(model, pairs):
    """To float rounding: products of other shapes may add in another order."""
    named = (("x", 0), ("x", 1)) if pairs else ()
    batch = make_batch(rows=4, weighted=1.0, pairs=named)
    for row, end in enumerate((5, 9, 2, 7)):
        batch.weights_BT[row, end:] = 0
        batch.documents_BT[row, end + 1 :] = int(not pairs)  # padding is a document apart

    def gradients(parts):
        model.zero_grad()
        for part in parts:
            h_BTE = model.hidden(part.ids_BT, attend=packed(part.documents_BT))
            losses.language_modelling(model, h_BTE, part).total.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    whole = gradients([batch])
    for size in (1, 2, None):
        parts = list(slices(batch, size))
        assert size != 1 or min(part.ids_BT.shape[1] for part in parts) == 8
        for name, found in gradients(parts).items():
            torch.testing.assert_close(found, whole[name], rtol=1e-4, atol=1e-6, msg=name)
