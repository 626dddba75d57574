"""Blocks and the plan of each step, without a model."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.infer.backends import BLOCK
from smollm3.infer.blocks import STEP, BlockPool, beginning_keys, block_keys, blocks_of, root
from smollm3.infer.scheduler import Scheduler, Sequence, batch_of

# blocks


def test_keys_are_chained_and_salted():
    ids = list(range(100))
    keys = block_keys(ids, root("a"))
    assert len(keys) == 3
    assert len({*keys, *block_keys(ids, root("b"))}) == 6
    assert block_keys(ids[:70], root("a")) == keys[:2]
    assert block_keys([*ids[:40], 0, *ids[41:]], root("a"))[0] == keys[0]
    assert len({*keys[1:], *block_keys([*ids[:40], 0, *ids[41:]], root("a"))[1:]}) == 4
    assert block_keys(ids[32:64], keys[0]) == keys[1:2]
    assert block_keys(ids[32:64], root("a")) != keys[1:2]
    assert min(map(len, keys)) >= 16
    assert root("\ud800") != root("?")  # whatever characters a caller's salt has


def test_the_keys_of_beginnings_are_nobody_elses():
    ids, parent = list(range(40)), root("a")
    keys = beginning_keys(ids, parent)
    assert len(keys) == BLOCK // STEP - 1 == len(set(keys))  # the whole block has a key of its own
    assert not {*keys, *beginning_keys(ids, root("b"))} & set(block_keys(ids, parent))
    for n in range(40):
        assert beginning_keys(ids[:n], parent) == keys[: n // STEP]
    assert beginning_keys([*ids[:9], 0, *ids[10:]], parent)[:3] == [
        *keys[:2],
        *beginning_keys([*ids[:9], 0, 10, 11], parent)[2:],
    ]
    assert beginning_keys([*ids[:9], 0, *ids[10:]], parent)[2] != keys[2]


def test_the_longest_beginning_is_found():
    blocks = BlockPool(3)
    short, long = blocks.take(), blocks.take()
    keys = beginning_keys(range(31), root(""))
    assert blocks.find_beginning(keys) is blocks.find_beginning([]) is None
    blocks.publish(short, keys[:2])
    blocks.publish(long, keys[:5])
    assert blocks.find_beginning(keys) == (long, 5 * STEP)
    assert blocks.find_beginning(keys[:2]) == (short, 2 * STEP)
    blocks.release([short])
    blocks.release([long])
    assert blocks.cached == 2
    blocks.find_beginning(keys[:1])  # used again, so the other goes first
    assert [blocks.take() for _ in range(2)] == [2, long]
    assert blocks.find_beginning(keys) == (short, 2 * STEP)


def test_blocks_of():
    assert [blocks_of(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]


def test_the_least_recently_used_goes_first_and_tails_before_heads():
    blocks = BlockPool(4)
    first, second = [blocks.take() for _ in range(2)], [blocks.take() for _ in range(2)]
    assert first + second == [0, 1, 2, 3]
    assert blocks.take() is None
    for block, key in zip(first + second, (b"a", b"b", b"c", b"d"), strict=True):
        blocks.publish(block, [key])
    blocks.release(second)
    blocks.release(first)
    assert (blocks.available, blocks.cached) == (4, 4)
    assert list(blocks.find([b"a", b"b", b"x", b"c"])) == first
    for block in blocks.find([b"c"]):  # used again
        blocks.share(block)
        blocks.release([block])
    assert [blocks.take() for _ in range(4)] == [3, 1, 0, 2]
    assert list(blocks.find([b"a"])) == []


def test_the_first_to_be_published_stays():
    blocks = BlockPool(3)
    one, other = blocks.take(), blocks.take()
    blocks.publish(one, [b"k"])
    blocks.publish(other, [b"k"])
    assert list(blocks.find([b"k"])) == [one]
    blocks.release([other])
    assert (blocks.available, blocks.cached) == (2, 0)
    assert blocks.take() == other  # empty ones before those that can be found, low ones first


@given(st.data())
@settings(max_examples=60)
def test_blocks_are_never_lost_nor_given_twice(data):
    blocks = BlockPool(6)
    held: list[list[int]] = []
    keys = iter(range(1000))
    known: dict[bytes, int] = {}
    for _ in range(data.draw(st.integers(1, 60))):
        action = data.draw(st.sampled_from(["take", "share", "publish", "release"]))
        if action == "take":
            block = blocks.take()
            users = {b for table in held for b in table}
            assert (block is None) == (len(users) == 6)
            if block is not None:
                assert block not in users
                known = {k: b for k, b in known.items() if b != block}
                held.append([block])
        elif action == "share" and known:
            key = data.draw(st.sampled_from(sorted(known)))
            [block] = blocks.find([key])
            assert block == known[key]
            blocks.share(block)
            held.append([block])
        elif action == "publish" and held:
            [block] = data.draw(st.sampled_from(held))
            if block not in known.values():
                key = str(next(keys)).encode()
                blocks.publish(block, [key])
                known[key] = block
        elif action == "release" and held:
            blocks.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        users = {b for table in held for b in table}
        assert blocks.available == 6 - len(users)
        assert blocks.cached == len(set(known.values()) - users)
    for table in held:
        blocks.release(table)
    assert blocks.available == 6
    assert len({blocks.take() for _ in range(6)}) == 6


# the plan


def scheduler(count=64, rows=8, tokens=64, logits=20, drafts=8) -> Scheduler:
    return Scheduler(BlockPool(count), rows, tokens, logits, drafts)


def sequence(ids, new=10, **more) -> Sequence:
    ids = list(ids)
    return Sequence(ids, len(ids) + new, **more)


def run(sch: Scheduler, draft=None, token=7) -> list:
    """One step in which every sampled token is `token`, and drafts are right where they are it."""
    plan = sch.plan(draft)
    for s in plan:
        seq, length = s.sequence, len(s.sequence.ids)
        if seq.logits_from is not None:
            sch.advance(seq, s.start + s.count)
            seq.logits_from = max(seq.logits_from, seq.computed)
            if not seq.pending:
                sch.remove(seq)
            continue
        for row in range(s.wanted):
            seq.ids.append(token)
            if len(seq.ids) == seq.limit or s.drafts[row : row + 1] != [token]:
                break
        sch.advance(seq, s.start + s.count + max(len(seq.ids) - length - 1, 0))
        if len(seq.ids) == seq.limit:
            sch.remove(seq)
    return plan


def sizes(plan) -> list[tuple[int, int, int]]:
    return [(s.start, s.size, s.wanted) for s in plan]


def test_prompts_come_in_chunks_and_answers_go_first():
    sch = scheduler()
    short, long = sequence(range(200, 210)), sequence(range(150))
    sch.add(short)
    assert sizes(run(sch)) == [(0, 10, 1)]
    sch.add(long)
    assert sizes(run(sch)) == [(10, 1, 1), (0, 63, 0)]
    assert sizes(run(sch)) == [(11, 1, 1), (63, 63, 0)]
    assert sizes(run(sch)) == [(12, 1, 1), (126, 24, 1)]
    assert sizes(run(sch)) == [(13, 1, 1), (150, 1, 1)]


def test_older_prompts_first_and_no_more_than_rows():
    sch = scheduler(rows=2)
    asked = [sequence([i] * 40, new=1) for i in range(3)]
    for seq in asked:
        sch.add(seq)
    assert [s.sequence for s in run(sch)] == asked[:2]
    assert [(s.sequence, s.start) for s in run(sch)] == [(asked[1], 24), (asked[2], 0)]


def test_a_known_beginning_is_not_computed_again():
    sch = scheduler(tokens=500)
    first = sequence(range(96), new=1)
    sch.add(first)
    assert sizes(run(sch)) == [(0, 96, 1)]
    again, longer, salted = (
        sequence(range(96)),
        sequence(range(100)),
        sequence(range(96), cache_salt="x"),
    )
    for seq in (again, longer, salted):
        sch.add(seq)
    # The last token is always computed; whole blocks are shared, and of another it has a copy.
    assert sizes(run(sch)) == [(92, 4, 1), (96, 4, 1), (0, 96, 1)]
    assert [seq.cached_tokens for seq in (first, again, longer, salted)] == [0, 92, 96, 0]
    assert again.blocks[:2] == longer.blocks[:2] != salted.blocks[:2]
    assert sch.copied() == [(longer.blocks[2], again.blocks[2])]
    assert sch.copied() == []


def test_logits_that_are_wanted_are_computed():
    sch = scheduler(tokens=500, logits=500)
    sch.add(sequence(range(96), new=1))
    run(sch)
    for first, start in ((0, 0), (3, 0), (31, 28), (32, 32), (70, 68), (95, 92)):
        seq = sequence(range(96), new=0, logits_from=first)
        sch.add(seq)
        assert sizes(run(sch)) == [(start, 96 - start, 96 - first)]
        assert not sch.running


def test_scores_want_so_many_logits_of_a_step():
    sch = scheduler(tokens=500, logits=20)
    sch.add(sequence(range(50), new=0, logits_from=30))
    sch.add(sequence(range(50, 100), new=0, logits_from=0))
    assert sizes(run(sch)) == [(0, 50, 20)]
    assert sizes(run(sch)) == [(0, 20, 20)]
    assert sizes(run(sch)) == [(20, 20, 20)]
    assert sizes(run(sch)) == [(40, 10, 10)]


def test_one_computes_what_several_begin_with():
    """Of many that share a beginning the others wait, instead of computing it beside the first."""
    sch = scheduler(tokens=500)
    asked = [sequence([*range(64), i], new=2) for i in range(5)]
    other = sequence(range(100, 140))
    for seq in [*asked, other]:
        sch.add(seq)
    assert [s.sequence for s in run(sch)] == [asked[0], other]
    assert sizes(run(sch))[2:] == [(64, 1, 1)] * 4
    assert sum(seq.cached_tokens for seq in asked) == 4 * 64


def test_answers_are_found_by_the_next_turn():
    sch = scheduler(tokens=500)
    seq = sequence(range(30), new=40)
    sch.add(seq)
    while sch.running or sch.waiting:
        run(sch)
    follow = sequence([*seq.ids, 5])
    sch.add(follow)
    run(sch)
    assert follow.cached_tokens == 68  # of 70: the last token was never computed


def test_options_of_a_question_and_answers_to_it_share_all_of_it():
    """Of a question of 50 tokens 32 are a block; 16 of the others are copied."""
    for more in ({"new": 0, "logits_from": 49}, {"new": 5}):
        sch = scheduler(tokens=500)
        asked = [
            sequence([*range(50), *([] if more["new"] else [100 + i] * 9)], **more)
            for i in range(4)
        ]
        for seq in asked:
            sch.add(seq)
        assert [(s.sequence, s.start) for s in run(sch)] == [(asked[0], 0)]
        run(sch)
        assert [seq.cached_tokens for seq in asked] == [0, 48, 48, 48]
        sources, targets = zip(*sch.copied(), strict=True)
        assert len(set(sources)) == 1
        assert len(set(targets) - set(sources)) == 3


def test_the_same_words_behind_another_text_are_not_copied():
    sch = scheduler(tokens=500)
    words = list(range(200, 220))
    for before, after, start in (
        (range(32), words, 0),
        (range(100, 132), [7] * 20, 0),
        (range(100, 132), words, 32),  # both are known, but not one behind the other
    ):
        sch.add(sequence([*before, *after], new=1))
        assert sizes(run(sch)) == [(start, 52 - start, 1)]
    assert sch.copied() == []


def test_who_shares_only_a_greeting_does_not_wait_for_it():
    sch = scheduler(tokens=500)
    for i in range(3):
        sch.add(sequence([*range(20), *[100 + i] * 40]))
    assert len(run(sch)) == 3


def test_a_backend_that_copies_nothing():
    sch = Scheduler(BlockPool(64), 8, 500, 20, 8, copies=False)
    for _ in range(3):
        sch.add(sequence(range(50)))
    assert sizes(run(sch)) == [(0, 50, 1)]
    assert sizes(run(sch))[1:] == [(32, 18, 1)] * 2
    assert sch.copied() == []


def test_the_last_block_is_copied_though_its_own_is_given_away():
    """There is no other: the new sequence takes the one that it copies."""
    sch = scheduler(count=2, tokens=500)
    sch.add(sequence(range(60), new=1))
    run(sch)
    again = sequence([*range(56), 9], new=1)
    sch.add(again)
    assert sizes(run(sch)) == [(56, 1, 1)]
    [(source, target)] = sch.copied()
    assert source == target
    assert sch.blocks.available == 2


def test_the_newest_makes_room_and_goes_on_later():
    sch = scheduler(count=4, tokens=500)
    old, new = sequence(range(60), new=60), sequence(range(100, 130), new=60)
    for seq in (old, new):
        sch.add(seq)
    steps = 0
    while old in sch.running or old in sch.waiting:
        plan = run(sch)
        assert plan[0].sequence is old
        steps += 1
    assert steps == 60
    assert sch.preemptions >= 1
    while sch.running or sch.waiting:
        run(sch)
    assert len(new.ids) == 90
    assert sch.blocks.available == 4


def test_running_prompts_keep_what_they_will_need():
    """A prompt is not started where its blocks are promised to one that is on its way."""
    sch = scheduler(count=6, tokens=32)
    first, second = sequence(range(128), new=5), sequence(range(200, 280), new=5)
    for seq in (first, second):
        sch.add(seq)
    while len(first.ids) == 128:
        assert [s.sequence for s in run(sch)] == [first]
    assert sch.preemptions == 0


def test_drafts():
    sch = scheduler(drafts=8)
    seq = sequence(range(10), new=12)
    sch.add(seq)
    asked = []

    def draft(s, limit):
        asked.append(limit)
        return [7, 7, 9, 7]

    run(sch, draft)
    assert asked == []  # a prompt
    plan = run(sch, draft)
    assert (plan[0].ids, plan[0].wanted) == ([7, 7, 7, 9, 7], 5)
    assert len(seq.ids) == 14  # two right, one sampled
    assert seq.computed == 13
    other = sequence([1])
    sch.add(other)
    run(sch, draft)
    run(sch, draft)
    assert asked == [8, 7, 4, 4]  # shared by two; never beyond the limit


def test_drafts_take_no_blocks_from_others():
    sch = scheduler(count=2)
    one, two = sequence(range(31), new=30), sequence(range(100, 131), new=30)
    for seq in (one, two):
        sch.add(seq)
    run(sch)
    plan = run(sch, lambda s, limit: [7] * limit)
    assert [s.size for s in plan] == [1, 1]
    assert sch.preemptions == 0


@st.composite
def workloads(draw):
    count = draw(st.integers(2, 12))
    asked = []
    for _ in range(draw(st.integers(1, 14))):
        length = draw(st.integers(1, (count - 1) * BLOCK))
        new = draw(st.integers(1, count * BLOCK - length))
        kind = draw(st.integers(0, 2))  # a common beginning, or one's own
        ids = [kind or draw(st.integers(10, 99))] * length
        first = draw(st.sampled_from([None, None, None, 0, length // 2, length]))
        asked.append((ids, new if first is None else 0, first, draw(st.sampled_from(["", "s"]))))
    arrivals = [draw(st.integers(0, 20)) for _ in asked]
    cancels = [draw(st.sampled_from([None, None, 0, 3, 10])) for _ in asked]
    numbers = {
        "count": count,
        "rows": draw(st.integers(1, 6)),
        "tokens": draw(st.integers(1, 100)),
        "logits": draw(st.integers(1, 40)),
        "drafts": draw(st.integers(0, 12)),
    }
    return asked, arrivals, cancels, numbers


@given(workloads(), st.booleans())
@settings(max_examples=150)
def test_every_request_ends_and_every_block_is_given_back(workload, drafting):
    asked, arrivals, cancels, numbers = workload
    sch = scheduler(**numbers)
    sequences = [
        Sequence(list(ids), len(ids) + new, salt, first) for ids, new, first, salt in asked
    ]
    age = Counter()
    draft = (lambda s, limit: [7, 7, 8, 7, 7, 7][:limit]) if drafting else None
    for step in range(5000):
        for seq, arrival in zip(sequences, arrivals, strict=True):
            if arrival == step:
                sch.add(seq)
        for seq, when in zip(sequences, cancels, strict=True):
            if when is not None and age[seq] == when and (seq.running or seq in sch.waiting):
                sch.remove(seq)
        was_oldest = sch.running[:1]
        plan = run(sch, draft)
        check(plan, sch, was_oldest, numbers)
        age.update(s.sequence for s in plan)
        if step > max(arrivals) and not plan:
            break
    assert not sch.running
    assert not sch.waiting
    for seq, when in zip(sequences, cancels, strict=True):
        if when is None:
            assert len(seq.ids) == seq.limit
    assert sch.blocks.available == numbers["count"]


def check(plan, sch, was_oldest, numbers) -> None:
    tokens = sum(s.size for s in plan)
    if was_oldest:
        assert plan, "the oldest always goes on"
        assert was_oldest[0] in [s.sequence for s in plan] or numbers["tokens"] <= tokens
    singles = sum(s.count == 1 for s in plan)
    assert tokens <= max(numbers["tokens"], singles)
    assert len(plan) <= numbers["rows"]
    assert sum(len(s.drafts) for s in plan) <= numbers["drafts"]
    assert [s.arrival for s in sch.running] == sorted(s.arrival for s in sch.running)
    assert [s.arrival for s in sch.waiting] == sorted(s.arrival for s in sch.waiting)
    written = Counter()
    for s in sch.running:
        assert len(s.blocks) >= blocks_of(s.computed)
        written.update(s.blocks[s.computed // BLOCK :])
    assert max(written.values(), default=1) == 1  # nobody else's block is written


def test_the_arrays_of_a_step():
    sch = scheduler(tokens=500)
    one, two = sequence(range(40)), sequence(range(100, 103))
    for seq in (one, two):
        sch.add(seq)
    run(sch)
    three = sequence(range(200, 270), new=0, logits_from=66)
    sch.add(three)
    batch = batch_of(sch.plan(lambda s, limit: [4, 5] if s is one else []))
    assert batch.ids_N.tolist() == [7, 4, 5, 7, *range(200, 270)]
    assert batch.positions_N.tolist() == [40, 41, 42, 3, *range(70)]
    assert batch.starts.tolist() == [0, 3, 4, 74]
    assert batch.wanted_R.tolist() == [0, 1, 2, 3, 70, 71, 72, 73]
    assert batch.tables_SB.shape == (3, 3)
    used = [list(one.blocks), list(two.blocks), list(three.blocks)]
    for row, table in zip(batch.tables_SB.tolist(), used, strict=True):
        assert row == table + [0] * (3 - len(table))
    for name in ("ids_N", "positions_N", "starts", "tables_SB", "wanted_R"):
        assert getattr(batch, name).dtype == np.int32
    assert all(a < b for a, b in pairwise(batch.wanted_R.tolist()))


@pytest.mark.parametrize("tokens", [1, 5, 64])
def test_a_prompt_of_any_length_starts(tokens):
    for length in (1, 2, 31, 32, 33, 64):
        sch = scheduler(tokens=tokens, count=4)
        seq = sequence(range(length), new=2)
        sch.add(seq)
        while sch.running or sch.waiting:
            assert run(sch)
        assert len(seq.ids) == length + 2
