import threading

import numpy as np
import pytest
import torch
from tests.support.data_shards import make_shard, make_stage

from smollm3.data import Loader
from smollm3.errors import UserError
from smollm3.train.forward import slices

PAD = 99


def load(shards, start=None, seed=0, **changes):
    return Loader(shards, make_stage(**changes), start or {}, seed, PAD)


def text_shard(tmp_path, name="a", n=40, lengths=(5, 9, 3, 14)):
    """Documents whose tokens count up through the whole shard."""
    documents, token = [], 0
    for i in range(n):
        length = lengths[i % len(lengths)]
        documents.append(list(range(token, token + length)))
        token += length
    return make_shard(tmp_path / name, documents)


def test_concat_and_chunk_rows_are_consecutive_tokens(tmp_path):
    shard = text_shard(tmp_path)
    batch = load({"a": shard}).batch(0)
    assert batch.ids_BT.flatten().tolist() == list(range(32))
    assert batch.targets_BT.flatten().tolist() == list(range(1, 33))
    assert batch.ids_BT.dtype == batch.targets_BT.dtype == batch.documents_BT.dtype == torch.int64
    assert batch.weights_BT.dtype == torch.float32
    assert batch.used == {"a": 32}
    firsts = set(np.concatenate([[0], shard.ends[:-1]]).tolist())
    for target, weight in zip(batch.targets_BT.flatten(), batch.weights_BT.flatten(), strict=True):
        assert weight == (int(target) not in firsts)
    # documents of 5, 9, 3, 14 tokens: row 0 is tokens 0..7, row 1 tokens 8..15
    assert batch.documents_BT[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert batch.documents_BT[1].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_concat_and_chunk_start_and_the_next_round(tmp_path):
    shard = text_shard(tmp_path, n=4)  # 31 tokens
    loader = load({"a": shard}, start={"a": 21}, batch=2)
    batch = loader.batch(0)
    assert batch.ids_BT[0].tolist() == [21, 22, 23, 24, 25, 26, 27, 28]
    assert batch.ids_BT[1].tolist() == [29, 30, 0, 1, 2, 3, 4, 5]
    assert batch.targets_BT[1].tolist() == [30, 0, 1, 2, 3, 4, 5, 6]
    assert batch.weights_BT[1].tolist() == [1, 0, 1, 1, 1, 1, 0, 1]
    assert batch.documents_BT[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 2]


def test_one_document_round_its_own_end_is_two(tmp_path):
    shard = make_shard(tmp_path / "a", [list(range(10))])
    batch = load({"a": shard}, batch=2).batch(0)
    assert batch.ids_BT[1].tolist() == [8, 9, 0, 1, 2, 3, 4, 5]
    assert batch.documents_BT[1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert batch.weights_BT[1].tolist() == [1, 0, 1, 1, 1, 1, 1, 1]


def chat_shard(tmp_path, name="chat"):
    """Six tokens a document: 2 of prompt, 1 of header, 3 of answer."""
    documents = [[10 * i + j for j in range(6)] for i in range(30)]
    return make_shard(tmp_path / name, documents, [[0, 0, 2, 3, 3, 3]] * 30, form="chat")


@pytest.mark.parametrize(
    ("loss", "mask", "trained"),
    [
        ("assistant", "generated", {3, 4, 5}),
        ("assistant", "published", {2, 3, 4, 5}),
        ("all", "generated", {1, 2, 3, 4, 5}),
    ],
)
@pytest.mark.parametrize("packing", ["concat_and_chunk", "bfd"])
def test_masks_are_those_of_the_target(tmp_path, loss, mask, trained, packing):
    shard = chat_shard(tmp_path)
    batch = load({"a": shard}, loss=loss, mask=mask, packing=packing, context=11, batch=5).batch(0)
    for target, weight in zip(batch.targets_BT.flatten(), batch.weights_BT.flatten(), strict=True):
        assert weight == (int(target) != PAD and int(target) % 10 in trained)


def test_text_counts_whole_under_assistant_loss(tmp_path):
    shards = {"a": text_shard(tmp_path), "chat": chat_shard(tmp_path)}
    mixture = {"a": 1, "chat": 1}
    mixed = load(shards, mixture=mixture, loss="assistant").batch(0)
    plain = load(shards, mixture=mixture, loss="all").batch(0)
    assert (mixed.weights_BT[0] == plain.weights_BT[0]).all()
    assert mixed.weights_BT[1].sum() < plain.weights_BT[1].sum()


def test_bfd_rows_are_whole_documents_with_padding(tmp_path):
    shard = make_shard(tmp_path / "a", [[1] * 5, [2] * 7, [3] * 3, [4] * 20])
    loader = load({"a": shard}, packing="bfd", batch=3, epochs=1)
    assert loader.truncated == {"a": 1}
    assert loader.steps == 1
    batch = loader.batch(0)
    rows = {tuple(row) for row in batch.ids_BT.tolist()}
    # capacity 9: [4]*9 | [2]*7 | [1]*5 + [3]*3; inputs are all but the ninth token
    assert rows == {(4,) * 8, (2,) * 7 + (PAD,), (1, 1, 1, 1, 1, 3, 3, 3)}
    for ids, targets, weights, documents in zip(
        batch.ids_BT, batch.targets_BT, batch.weights_BT, batch.documents_BT, strict=True
    ):
        assert (weights == ((ids == targets) & (ids != PAD))).all()
        assert documents[0] == 0
        assert ((documents[1:] != documents[:-1]) == (ids[1:] != ids[:-1])).all()


def test_bfd_epochs_visit_every_row_once_in_new_orders(tmp_path):
    shard = make_shard(tmp_path / "a", [[i] * 9 for i in range(12)])
    loader = load({"a": shard}, packing="bfd", batch=4, epochs=2)
    assert loader.steps == 6
    orders = [
        [int(row[0]) for k in range(3 * e, 3 * e + 3) for row in loader.batch(k).ids_BT]
        for e in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(12))
    assert orders[0] != orders[1]
    other = load({"a": shard}, packing="bfd", batch=4, seed=1)
    assert [int(row[0]) for row in other.batch(0).ids_BT] != orders[0][:4]


def pair_shard(tmp_path, lengths):
    documents, masks = [], []
    for i, (chosen, rejected) in enumerate(lengths):
        for side, length in enumerate((chosen, rejected)):
            documents.append([20 * i, 20 * i + 1, *[20 * i + 10 + side] * length])
            masks.append([0, 0] + [3] * length)
    return make_shard(tmp_path / "a", documents, masks, form="preference")


def test_pairs(tmp_path):
    shard = pair_shard(tmp_path, [(3, 4), (30, 2), (2, 2), (5, 3)])
    loader = load({"a": shard}, loss="apo_zero", epochs=1, batch=3, context=12)
    assert loader.left_out == {"a": 1}
    assert loader.steps == 1
    batch = loader.batch(0)
    assert sorted(batch.pairs) == [("a", 0), ("a", 2), ("a", 3)]
    assert batch.used == {"a": 3}
    assert batch.ids_BT.shape == (6, 8)  # the longest has 6 inputs, rounded up to 8
    for r, (_, pair) in enumerate(batch.pairs * 2):
        side = r // 3
        length = [(3, 4), (30, 2), (2, 2), (5, 3)][pair][side]
        answer = [20 * pair + 10 + side] * length
        assert batch.ids_BT[r, :2].tolist() == [20 * pair, 20 * pair + 1]
        assert batch.weights_BT[r].tolist() == [0] + [1] * length + [0] * (7 - length)
        assert batch.targets_BT[r][batch.weights_BT[r] > 0].tolist() == answer
    assert not batch.documents_BT.any()


def test_steps(tmp_path):
    shards = {"a": text_shard(tmp_path)}  # 310 tokens: 38 rows of 8
    assert load(shards, steps=7).steps == 7
    assert load(shards, tokens=320).steps == 10
    assert load(shards, tokens=321).steps == 11
    assert load(shards, epochs=1).steps == 10
    assert load(shards, epochs=0.5).steps == 5
    assert load(shards).tokens_per_step == 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_pinned(tmp_path):
    shards = {"a": text_shard(tmp_path)}
    plain = load(shards).batch(3)
    pinned = Loader(shards, make_stage(), {}, 0, PAD, torch.device("cuda", 0)).batch(3)
    for name in ("ids_BT", "targets_BT", "weights_BT", "documents_BT"):
        assert getattr(pinned, name).is_pinned()
        assert torch.equal(getattr(pinned, name), getattr(plain, name))


def test_every_tensor_of_a_batch_for_a_gpu_is_pinned_by_the_loaders_thread(tmp_path, monkeypatch):
    """Stands in for the GPU: copies from pinned memory need not be waited for, and pinning asks
    for the rank's own card, not for the first."""
    pinned, chosen = [], []

    def pin(tensor):
        pinned.append((threading.current_thread().name, tensor))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    batch = Loader(
        {"a": text_shard(tmp_path)}, make_stage(), {}, 0, PAD, torch.device("cuda", 3)
    ).batch(3)
    assert {id(tensor) for _, tensor in pinned} >= {
        id(t) for t in (batch.ids_BT, batch.targets_BT, batch.weights_BT, batch.documents_BT)
    }
    assert all(name.startswith("loader") for name, _ in pinned)
    assert chosen == [torch.device("cuda", 3)]


def test_used_adds_up(tmp_path):
    shards = {"a": text_shard(tmp_path), "b": text_shard(tmp_path, "b")}
    loader = load(shards, mixture={"a": 0.7, "b": 0.3})
    total = {"a": 0, "b": 0}
    for k in range(20):
        assert loader.used(k) == total
        for name, n in loader.batch(k).used.items():
            total[name] += n
    assert sum(total.values()) == 20 * 32
    assert total["a"] == 448  # 0.7 of 640


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 400}, "a: its 310 tokens do not fill one row of 400"),
        ({"loss": "dpo"}, "a: loss: dpo needs preference pairs"),
    ],
)
def test_sources_that_do_not_fit_are_named(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load({"a": text_shard(tmp_path)}, **changes)


def test_pairs_that_do_not_fit_are_named(tmp_path):
    shard = pair_shard(tmp_path, [(3, 40), (30, 2)])
    with pytest.raises(UserError, match=r"a: none of its 2 pairs fits .*the shortest has 32"):
        load({"a": shard}, loss="dpo")
    with pytest.raises(UserError, match="a: loss: all needs text or conversations"):
        load({"a": shard})
    with pytest.raises(UserError, match="takes steps or epochs"):
        load({"a": shard}, loss="dpo", context=64, tokens=100)


def seen(loader):
    """{source: how often each row came} and how many rows counted, over all steps."""
    found, real = {}, 0
    for k in range(loader.steps):
        batch = loader.batch(k)
        assert len(batch.ids_BT) == loader.stage.batch
        rows = batch.weights_BT.any(-1)
        real += int(rows.sum())
        for ids in batch.ids_BT[rows]:
            found[tuple(ids.tolist())] = found.get(tuple(ids.tolist()), 0) + 1
    return found, real


@pytest.mark.parametrize("packing", ["concat_and_chunk", "bfd"])
def test_an_epoch_is_every_row_once(tmp_path, packing):
    """39 rows in batches of 32 are 39 rows, not 64; 200 and 10 rows are 210, not 106 of each."""
    long = make_shard(tmp_path / "a", [[i] * 9 for i in range(200)])
    short = make_shard(tmp_path / "b", [[1000 + i] * 9 for i in range(10)])
    some = make_shard(tmp_path / "c", [[i] * 9 for i in range(39)])
    if packing == "concat_and_chunk":
        assert load({"c": some}, epochs=1, batch=32, mixture={"c": 5}).used(99) == {"c": 43 * 8}
        return
    for epochs in (1, 2):
        loader = load({"c": some}, epochs=epochs, batch=32, packing=packing, mixture={"c": 5})
        counts, real = seen(loader)
        assert set(counts.values()) == {epochs}
        assert (len(counts), real) == (39, 39 * epochs)
        assert loader.used(loader.steps) == {"c": 39 * epochs * 8}
    for weights in ((1, 1), (0.5, 0.5), (7, 7)):
        mixture = dict(zip("ab", weights, strict=True))
        loader = load({"a": long, "b": short}, epochs=1, packing=packing, mixture=mixture)
        counts, real = seen(loader)
        assert (set(counts.values()), len(counts), real) == ({1}, 210, 210)
    loader = load({"a": long, "b": short}, epochs=1, packing=packing, mixture={"a": 1, "b": 4})
    assert loader.used(loader.steps) == {"a": 50 * 8, "b": 10 * 8}


def test_the_last_batch_of_pairs_is_filled_with_blank_ones(tmp_path):
    shard = pair_shard(tmp_path, [(3, 4), (2, 2), (5, 3), (1, 2), (2, 1)])
    loader = load({"a": shard}, loss="dpo", epochs=1, batch=3, context=12)
    first, last = loader.batch(0), loader.batch(1)
    assert (first.blank, last.blank, last.used) == (0, 1, {"a": 2})
    assert sorted(first.pairs + last.pairs[:2]) == [("a", i) for i in range(5)]
    assert last.weights_BT.any(-1).tolist() == [True, True, False] * 2
    parts = list(slices(last, 1))
    assert [(len(part.pairs), part.blank) for part in parts] == [(1, 0), (1, 0), (1, 1)]


def test_conversations_whose_answers_are_cut_off_are_left_out(tmp_path):
    documents = [[i] * n for i, n in enumerate((6, 12, 12))]
    masks = [[0] * start + [1] * (n - start) for n, start in ((6, 2), (12, 4), (12, 10))]
    shard = make_shard(tmp_path / "a", documents, masks, form="chat")
    chat = {"loss": "assistant", "packing": "bfd"}
    loader = load({"a": shard}, **chat)
    assert (loader.truncated, loader.untrained) == ({"a": 1}, {"a": 1})
    assert {int(i) for k in range(9) for i in loader.batch(k).ids_BT.unique()} == {0, 1, PAD}
    assert load({"a": shard}, packing="bfd").untrained == {}
    late = make_shard(tmp_path / "b" / "a", documents[1:], [[0] * 11 + [1]] * 2, form="chat")
    with pytest.raises(UserError, match="a: the answers of all 2 conversations begin beyond a row"):
        load({"a": late}, **chat)
    late.meta["trained"] = {"generated": 1}
    with pytest.raises(UserError, match="a: mask: published marks no token of it"):
        load({"a": late}, mask="published", **chat)
