"""Batch k is a function of (stage, shards, seed, k), whatever was asked before and by how many."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.data_shards import make_shard, make_stage

from smollm3.data import Loader

PAD = 60_000


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)

    def documents(n):
        return [rng.integers(0, 5000, rng.integers(2, 40)).tolist() for _ in range(n)]

    chats, pairs = documents(90), documents(80)

    def masks(docs):
        return [[0, *([3] * (len(d) - 1))] for d in docs]

    return {
        "web": make_shard(folder / "web", documents(120)),
        "code": make_shard(folder / "code", documents(70)),
        "chat": make_shard(folder / "chat", chats, masks(chats), form="chat"),
        "pairs": make_shard(folder / "pairs", pairs, masks(pairs), form="preference"),
    }


STAGES = {
    "concat_and_chunk": {"mixture": {"web": 0.6, "code": 0.15, "chat": 0.25}},
    "bfd": {"mixture": {"web": 0.3, "chat": 0.7}, "packing": "bfd", "loss": "assistant"},
    "pairs": {"mixture": {"pairs": 1}, "loss": "apo_zero", "context": 64},
}


def loader(shards, kind, **changes):
    stage = make_stage(**({"context": 24, "batch": 8} | STAGES[kind] | changes))
    return Loader(shards, stage, {"web": 17} if kind == "concat_and_chunk" else {}, 5, PAD)


def same(a, b):
    tensors = ("ids_BT", "targets_BT", "weights_BT", "documents_BT")
    return all(torch.equal(getattr(a, t), getattr(b, t)) for t in tensors) and (
        a.used == b.used and a.pairs == b.pairs
    )


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("k", [0, 13, 10**9])
def test_ranks_together_are_the_batch(shards, kind, world, k):
    whole = loader(shards, kind).batch(k)
    parts = [loader(shards, kind).batch(k, rank, world) for rank in range(world)]
    assert all(part.used == whole.used for part in parts)
    assert tuple(itertools.chain.from_iterable(p.pairs for p in parts)) == whole.pairs
    sides = 2 if kind == "pairs" else 1
    for name in ("ids_BT", "targets_BT", "weights_BT", "documents_BT"):
        expected = getattr(whole, name)
        rows = []
        for side in range(sides):
            for part in parts:
                tensor = getattr(part, name)
                fill = PAD if name in ("ids_BT", "targets_BT") else 0
                missing = expected.shape[1] - tensor.shape[1]
                padded = torch.nn.functional.pad(tensor, (0, missing), value=fill)
                rows.append(padded.chunk(sides)[side])
        assert torch.equal(torch.cat(rows), expected)


@pytest.mark.parametrize("kind", STAGES)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None
)
@given(order=st.lists(st.integers(0, 300), min_size=1, max_size=6))
def test_batches_do_not_depend_on_what_was_asked_before(shards, kind, order):
    used = loader(shards, kind)
    for k in order:
        assert same(used.batch(k), loader(shards, kind).batch(k))


def test_a_later_stage_goes_on_where_the_first_ended(shards):
    first = loader(shards, "concat_and_chunk", mixture={"web": 1}, steps=5)
    rest = Loader(
        shards,
        make_stage(mixture={"web": 1}, context=24, batch=8),
        {"web": 17 + first.used(5)["web"]},
        5,
        PAD,
    )
    assert same(rest.batch(0), first.batch(5))
    # At another length: the first token of the new stage follows the last input of the old.
    longer = Loader(
        shards,
        make_stage(mixture={"web": 1}, context=48, batch=4),
        {"web": 17 + first.used(5)["web"]},
        5,
        PAD,
    )
    assert torch.equal(longer.batch(0).ids_BT.flatten(), first.batch(5).ids_BT.flatten())


def test_every_token_is_a_target_once_an_epoch_but_for_document_starts(shards):
    shard = shards["code"]
    n, context = shard.n_tokens, 16
    stage = make_stage(mixture={"code": 1}, context=context, batch=4)
    batches = Loader(shards, stage, {}, 0, PAD)
    seen = np.zeros(n, int)
    for k in range(n):  # n steps of 4 * 16 tokens are 64 epochs
        batch = batches.batch(k)
        places = (k * 4 * context + 1 + np.arange(4 * context)) % n
        assert (shard.tokens[:][places] == batch.targets_BT.flatten().numpy()).all()
        np.add.at(seen, places, batch.weights_BT.flatten().numpy().astype(int))
    starts = np.concatenate([[0], shard.ends[:-1]]).astype(int)
    assert (seen[starts] == 0).all()
    assert (np.delete(seen, starts) == 64).all()


@pytest.mark.parametrize("kind", STAGES)
def test_no_target_crosses_a_document(shards, kind):
    batches = loader(shards, kind)
    for k in range(10):
        batch = batches.batch(k)
        same_document = batch.documents_BT[:, 1:] == batch.documents_BT[:, :-1]
        follows = batch.ids_BT[:, 1:] == batch.targets_BT[:, :-1]
        assert follows.all()
        assert not batch.weights_BT[:, :-1][~same_document].any()
        assert (batch.documents_BT[:, 0] == 0).all()
        assert (batch.documents_BT.diff() >= 0).all()
        assert not batch.weights_BT[batch.targets_BT == PAD].any()


def test_bfd_epoch_holds_every_document_once(shards):
    stage = make_stage(mixture={"chat": 1}, packing="bfd", context=48, batch=1, epochs=1)
    batches = Loader(shards, stage, {}, 3, PAD)
    found = []
    for k in range(batches.steps):
        batch = batches.batch(k)
        row = torch.cat([batch.ids_BT[0], batch.targets_BT[0, -1:]])
        last = batch.documents_BT[0, -1] + (batch.weights_BT[0, -1] == 0).long()
        documents = torch.cat([batch.documents_BT[0], last[None]])
        for document in documents.unique():
            tokens = row[(documents == document) & (row != PAD)].tolist()
            found += [tuple(tokens)] if tokens else []
    shard = shards["chat"]
    expected = [tuple(shard.tokens[shard.document(i)].tolist()) for i in range(shard.documents)]
    assert sorted(found) == sorted(expected)
