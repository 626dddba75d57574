"""Which tokens of which sequences go into the next step.

Answers that are being written go first, one token each and the drafts of what may follow; what is
left of the step's tokens goes to prompts, oldest first. When blocks run out the newest sequence
gives its own up and is computed again later, so the old ones always end.
"""

from __future__ import annotations

import itertools
from array import array
from bisect import insort
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from smollm3.infer.adapters import LoadedAdapter
from smollm3.infer.backends import BLOCK, StepBatch
from smollm3.infer.blocks import STEP, BlockPool, beginning_keys, block_keys, blocks_of, root

_arrivals = itertools.count()


@dataclass(eq=False)
class Sequence:
    """ids: prompt and answer so far; keys and values of the first `computed` are in `blocks`.
    limit: the greatest length that ids will have.
    logits_from: the first place whose logits are wanted; None: the last one's alone are.
    whole: all of it is computed for the states of its tokens, and no logits.
    """

    ids: list[int]
    limit: int
    cache_salt: str = ""
    logits_from: int | None = None
    whole: bool = False
    adapter: LoadedAdapter | None = None
    computed: int = 0
    blocks: array[int] = field(default_factory=lambda: array("i"))
    keys: list[bytes] = field(default_factory=list)  # of the full blocks of ids, as far as known
    published: int = 0  # blocks
    cached_tokens: int | None = None  # found in the prefix cache when it first started
    running: bool = False
    arrival: int = field(default_factory=lambda: next(_arrivals))

    prompt: int = 0  # tokens, at first

    def __post_init__(self) -> None:
        self.prompt = len(self.ids)
        self.keys = block_keys(self.ids, self.root)

    @cached_property
    def root(self) -> bytes:
        return root(self.cache_salt, self.adapter.key if self.adapter else "")

    def parent(self, index: int) -> bytes:
        """The key that block `index` follows."""
        return self.keys[index - 1] if index else self.root

    @property
    def pending(self) -> int:
        return len(self.ids) - self.computed

    @property
    def first_wanted(self) -> int:
        """The first place that the cache cannot stand for."""
        if self.whole:
            return 0
        return len(self.ids) - 1 if self.logits_from is None else self.logits_from

    @property
    def reusable(self) -> int:
        """How many of its tokens the cache can stand for. The last one is always computed."""
        return min(self.first_wanted, len(self.ids) - 1)


@dataclass(frozen=True)
class Slice:
    """Tokens of one sequence in a step, from place `start` on: `count` of its own, then drafts.
    wanted: the logits of the last so many are."""

    sequence: Sequence
    start: int
    count: int
    drafts: list[int]
    wanted: int

    @property
    def size(self) -> int:
        return self.count + len(self.drafts)

    @property
    def adapter(self) -> int:
        """The backend's number of it; -1: none."""
        return self.sequence.adapter.number if self.sequence.adapter else -1

    @property
    def ids(self) -> list[int]:
        return self.sequence.ids[self.start : self.start + self.count] + self.drafts


Draft = Callable[[Sequence, int], list[int]]  # draft tokens for a sequence, at most so many


class Scheduler:
    """max_num_seqs: sequences that run at once. max_num_batched_tokens: of a step, where that is
    not fewer than the sequences. max_num_logits: of a step, at most so many wanted by sequences
    that want those of many tokens. max_num_draft_tokens: of a step, shared by its sequences.
    copies: whether the backend copies blocks that are not full."""

    def __init__(
        self,
        blocks: BlockPool,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_logits: int,
        max_num_draft_tokens: int,
        copies: bool = True,
    ) -> None:
        self.blocks = blocks
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_logits = max_num_logits
        self.max_num_draft_tokens = max_num_draft_tokens
        self.copies = copies
        self.running: list[Sequence] = []  # both by arrival
        self.waiting: list[Sequence] = []
        self.preemptions = 0
        self._plan: dict[Sequence, Slice] = {}
        self._to_copy: list[tuple[int, int]] = []
        self._left = 0  # tokens of the step that is being planned
        self._preempted = False  # while planning it

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """It has ended or was cancelled: its blocks are free at once."""
        if sequence.running:
            self._stop(sequence)
        else:
            self.waiting.remove(sequence)

    def plan(self, draft: Draft | None = None) -> list[Slice]:
        """The next step; empty only if there are no sequences."""
        self._plan, self._left, self._preempted = {}, self.max_num_batched_tokens, False
        for sequence in self.running.copy():
            if sequence.running and sequence.pending == 1:
                self._put(sequence, 1)
        if draft is not None and self._plan:
            for sequence in list(self._plan):
                self._put_drafts(sequence, draft, self.max_num_draft_tokens // len(self._plan))
        logits = self.max_num_logits
        for sequence in self._prompts():
            if self._left <= 0:
                break
            count = min(sequence.pending, self._left)
            if sequence.logits_from is not None:
                unwanted = max(sequence.logits_from - sequence.computed, 0)
                count = min(count, unwanted + logits)
            placed = self._put(sequence, count)
            if placed and sequence.logits_from is not None:
                logits -= placed.wanted
        plan, self._plan = list(self._plan.values()), {}  # it keeps no sequence that ends
        return plan

    def copied(self) -> list[tuple[int, int]]:
        """(from, to): blocks that must be copied before the planned step, all at once."""
        copies, self._to_copy = self._to_copy, []
        return copies

    def advance(self, sequence: Sequence, computed: int) -> None:
        """After a step: keys and values of the first `computed` ids are in place."""
        sequence.computed = computed
        full, known = computed // BLOCK, len(sequence.keys)
        if full > known:  # of the answer
            ids = sequence.ids[known * BLOCK : full * BLOCK]
            sequence.keys += block_keys(ids, sequence.parent(known))
        for index in range(sequence.published, full):
            keys = [*self._beginnings(sequence, index, computed), sequence.keys[index]]
            self.blocks.publish(sequence.blocks[index], keys)
        sequence.published = full
        if computed == sequence.prompt:  # others may have asked the same, or go on from it
            self._publish_beginning(sequence)

    def _prompts(self) -> Iterator[Sequence]:
        """Those with more than the newest token to compute: running, then such as may start.
        The loop that takes them may preempt later ones."""
        for sequence in self.running.copy():
            if sequence.running and sequence not in self._plan:
                yield sequence
        for sequence in self.waiting[: self.max_num_seqs]:
            if len(self.running) >= self.max_num_seqs or self._preempted:
                return  # one that has just made room is older than who would take it
            found = self._found(sequence)
            if found is None:
                return
            if not self._is_coming(sequence, len(found)):
                self._start(sequence, found)
                yield sequence

    def _found(self, sequence: Sequence) -> list[int] | None:
        """The blocks known of its beginning; None if there is no room for the rest of it now."""
        found = list(self.blocks.find(sequence.keys[: sequence.reusable // BLOCK]))
        room = self.blocks.available - sum(self.blocks.idle(block) for block in found)
        # What running prompts have yet to take is theirs.
        room -= sum(max(blocks_of(len(s.ids)) - len(s.blocks), 0) for s in self.running)
        needed = blocks_of(min(len(sequence.ids) + 1, sequence.limit)) - len(found)
        return found if needed <= room else None

    def _is_coming(self, sequence: Sequence, index: int) -> bool:
        """Whether another sequence is computing just now all that it can use of its block `index`:
        better wait for it."""
        start = index * BLOCK
        end = min(sequence.reusable, start + BLOCK)
        end -= (end - start) % (STEP if self.copies else BLOCK)
        ids = sequence.ids[start:end]
        return bool(ids) and any(
            s.computed < end
            and s.ids[start:end] == ids
            and len(s.keys) >= index
            and s.parent(index) == sequence.parent(index)
            for s in self.running
        )

    def _start(self, sequence: Sequence, found: Items[int]) -> None:
        for block in found:
            self.blocks.share(block)
        sequence.blocks = array("i", found)
        sequence.published = len(found)
        sequence.computed = len(found) * BLOCK
        self._copy_beginning(sequence)
        if sequence.cached_tokens is None:
            sequence.cached_tokens = sequence.computed
        sequence.running = True
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_arrival)

    def _copy_beginning(self, sequence: Sequence) -> None:
        """What is known of its next block, into a block of its own, for which `_found` has room.
        What is copied stays in place until the step, also where `take` gives its block away."""
        keys = self._beginnings(sequence, len(sequence.blocks), sequence.reusable)
        source, tokens = self.blocks.find_beginning(keys) or (0, 0)
        if tokens and self._grow(sequence, sequence.computed + tokens):
            self._to_copy.append((source, sequence.blocks[-1]))
            sequence.computed += tokens

    def _publish_beginning(self, sequence: Sequence) -> None:
        """Let what its last block, which is not full, begins with be found. That is not written
        again, also where the sequence goes on."""
        last = sequence.computed // BLOCK
        if keys := self._beginnings(sequence, last, sequence.computed):
            self.blocks.publish(sequence.blocks[last], keys)

    def _beginnings(self, sequence: Sequence, index: int, end: int) -> list[bytes]:
        """The keys of what block `index` begins with, up to place `end` of its sequence."""
        start = index * BLOCK
        ids = sequence.ids[start : min(end, start + BLOCK)]
        return beginning_keys(ids, sequence.parent(index)) if self.copies else []

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._publish_beginning(sequence)
        self.blocks.release(sequence.blocks)
        sequence.blocks = array("i")
        sequence.computed = sequence.published = 0
        sequence.running = False

    def _put(self, sequence: Sequence, count: int) -> Slice | None:
        """Up to `count` tokens of its own into the step, as many as find a place; newer sequences
        make room."""
        end = sequence.computed + count
        while not self._grow(sequence, end):
            newest = self.running[-1]
            if newest is sequence:
                break
            self._stop(newest)
            insort(self.waiting, newest, key=_arrival)
            self.preemptions += 1
            self._preempted = True
            if newest in self._plan:
                self._left += self._plan.pop(newest).size
        count = min(count, len(sequence.blocks) * BLOCK - sequence.computed)
        return self._enter(sequence, count, []) if count > 0 else None

    def _put_drafts(self, sequence: Sequence, draft: Draft, most: int) -> None:
        most = min(most, sequence.limit - len(sequence.ids) - 1, self._left)
        if most <= 0 or sequence.logits_from is not None:
            return
        drafts = draft(sequence, most)[:most]
        end = sequence.computed + 1
        self._grow(sequence, end + len(drafts))
        drafts = drafts[: len(sequence.blocks) * BLOCK - end]
        if drafts:
            self._left += 1
            self._enter(sequence, 1, drafts)

    def _enter(self, sequence: Sequence, count: int, drafts: list[int]) -> Slice:
        start = sequence.computed
        end = start + count + len(drafts)
        wanted = 0 if sequence.whole else max(0, end - max(sequence.first_wanted, start))
        self._plan[sequence] = entered = Slice(sequence, start, count, drafts, wanted)
        self._left -= entered.size
        return entered

    def _grow(self, sequence: Sequence, places: int) -> bool:
        """Give it blocks for so many tokens, as far as there are any without users."""
        while len(sequence.blocks) * BLOCK < places:
            block = self.blocks.take()
            if block is None:
                return False
            sequence.blocks.append(block)
        return True


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival


def batch_of(slices: Items[Slice]) -> StepBatch:
    """The arrays of a step; the wanted rows are those of the slices in turn."""
    sizes = np.array([s.size for s in slices], np.int32)
    starts = np.concatenate([[0], sizes.cumsum()]).astype(np.int32)
    adapters_S = np.array([s.adapter for s in slices], np.int32)
    tables_SB = np.zeros((len(slices), max(len(s.sequence.blocks) for s in slices)), np.int32)
    for row, s in enumerate(slices):
        tables_SB[row, : len(s.sequence.blocks)] = s.sequence.blocks
    return StepBatch(
        ids_N=np.fromiter(itertools.chain.from_iterable(s.ids for s in slices), np.int32),
        positions_N=np.concatenate([np.arange(s.start, s.start + s.size) for s in slices]).astype(
            np.int32
        ),
        starts=starts,
        tables_SB=tables_SB,
        wanted_R=np.concatenate(
            [np.arange(end - s.wanted, end) for s, end in zip(slices, starts[1:], strict=True)]
        ).astype(np.int32),
        adapters_S=adapters_S if adapters_S.max() >= 0 else None,
    )
