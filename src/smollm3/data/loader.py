"""Batch k of a stage as a function of (stage, shards, seed, k)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smollm3.data.batch import Batch
from smollm3.data.mixture import Mixture
from smollm3.data.order import permutation
from smollm3.data.packing import packing_index
from smollm3.data.shards import GENERATED, PUBLISHED, Shard
from smollm3.data.spec import BatchSpec
from smollm3.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Row:
    """n + 1 tokens, the document each belongs to, and whether it is trained on as a target."""

    tokens: Ints
    documents: Ints
    trained: NDArray[np.bool_]


_BLANK = _Row(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))


class _Source(ABC):
    """The rows of one source. `rows`: how many make an epoch; row i >= rows goes on in the next.

    left_out, truncated: documents (pairs) that do not fit into a row. untrained: of those, what is
    left out as the row would end before the first token that is trained on.
    """

    rows: int
    left_out = 0
    truncated = 0
    untrained = 0

    def __init__(self, shard: Shard, mask_bit: int | None) -> None:
        """mask_bit: of `shard.masks`, None to train on every token."""
        self.shard = shard
        self.mask_bit = mask_bit

    @abstractmethod
    def row(self, i: int) -> _Row: ...

    def _trained(self, where: slice) -> NDArray[np.bool_]:
        if self.mask_bit is None or self.shard.masks is None:
            return np.ones(where.stop - where.start, np.bool_)
        trained: NDArray[np.bool_] = (self.shard.masks[where] & self.mask_bit) != 0
        return trained


class _ConcatAndChunk(_Source):
    """The tokens of the shard as one ring, cut every `context` tokens from `start` on."""

    def __init__(self, shard: Shard, mask_bit: int | None, context: int, start: int) -> None:
        super().__init__(shard, mask_bit)
        self.context, self.start = context, start
        self.rows = shard.n_tokens // context
        if shard.n_tokens < context + 1:
            raise _too_small(shard, context)

    def row(self, i: int) -> _Row:
        """context + 1 tokens; the last is the first of row i + 1."""
        n = self.shard.n_tokens
        offset = self.start + i * self.context
        round_, offset = divmod(offset, n)
        stop = offset + self.context + 1
        if stop <= n:
            return self._piece(slice(offset, stop), round_)
        pieces = self._piece(slice(offset, n), round_), self._piece(slice(0, stop - n), round_ + 1)
        return _Row(
            *(np.concatenate([getattr(p, key) for p in pieces]) for key in _Row.__annotations__)
        )

    def _piece(self, where: slice, round_: int) -> _Row:
        documents = self.shard.documents_of(where.start, where.stop)
        return _Row(
            self.shard.tokens[where].astype(np.int64),
            documents + round_ * self.shard.documents,
            self._trained(where),
        )


class _BestFitDecreasing(_Source):
    """Whole documents in best-fit-decreasing rows, in a new order every epoch."""

    def __init__(self, shard: Shard, mask_bit: int | None, context: int, seed: int) -> None:
        super().__init__(shard, mask_bit)
        self.context, self.seed = context, seed
        lengths = shard.lengths()
        cut = np.flatnonzero(lengths > context + 1)
        idle = [i for i in cut.tolist() if not self._trained(self._place(i))[1:].any()]
        kept = np.delete(np.arange(len(lengths)), idle)
        self.truncated, self.untrained = len(cut) - len(idle), len(idle)
        if not len(kept):
            raise UserError(
                f"{shard.name}: the answers of all {len(lengths)} conversations begin beyond a row "
                f"of {context} tokens; raise the stage's context"
            )
        name = f"{shard.split}.bfd-{context + 1}{f'-{mask_bit}' if idle else ''}"
        documents, self._ends = packing_index(shard.folder, name, lengths[kept], context + 1)
        self._documents = kept[documents]
        self.rows = len(self._ends)

    def _place(self, document: int) -> slice:
        """Where the part of a document that fits into a row lies."""
        where = self.shard.document(document)
        return slice(where.start, min(where.stop, where.start + self.context + 1))

    def row(self, i: int) -> _Row:
        epoch, place = divmod(i, self.rows)
        row = int(_order(self.rows, f"{self.seed}/{self.shard.name}/{epoch}")[place])
        start = int(self._ends[row - 1]) if row else 0
        documents = self._documents[start : self._ends[row]].tolist()
        places = [self._place(document) for document in documents]
        lengths = [place.stop - place.start for place in places]
        return _Row(
            np.concatenate([self.shard.tokens[place] for place in places]).astype(np.int64),
            np.repeat(np.arange(len(places)), lengths),
            np.concatenate([self._trained(place) for place in places]),
        )


class _Pairs(_Source):
    """Preference pairs in a new order every epoch; row 2i and 2i + 1 are a pair's two sides."""

    def __init__(self, shard: Shard, mask_bit: int | None, context: int, seed: int) -> None:
        super().__init__(shard, mask_bit)
        self.seed = seed
        longest = shard.lengths().reshape(-1, 2).max(axis=1)
        self._fitting = np.flatnonzero(longest <= context + 1)
        self.rows = len(self._fitting)
        self.left_out = len(longest) - self.rows
        if not self.rows:
            raise UserError(
                f"{shard.name}: none of its {len(longest)} pairs fits into a context of {context} "
                f"tokens (the shortest has {longest.min()}); raise the stage's context"
            )

    def pair(self, i: int) -> int:
        """The number of the pair in the shard."""
        epoch, place = divmod(i, self.rows)
        order = _order(self.rows, f"{self.seed}/{self.shard.name}/{epoch}")
        return int(self._fitting[order[place]])

    def row(self, i: int) -> _Row:
        where = self.shard.document(i)
        tokens = self.shard.tokens[where].astype(np.int64)
        return _Row(tokens, np.zeros(len(tokens), np.int64), self._trained(where))


@lru_cache(maxsize=64)
def _order(n: int, key: str) -> Ints:
    return permutation(n, key)


def _too_small(shard: Shard, context: int) -> UserError:
    return UserError(
        f"{shard.name}: its {shard.n_tokens} tokens do not fill one row of {context}; "
        "give it more data or the stage a shorter context"
    )


class Loader:
    """The batches of a training stage. It has no state: any batch can be had at any time, and
    the ranks' parts of a batch put together are the same for every number of ranks.

    concat_and_chunk: sample i of a source is `context` tokens from start + i * context on, in a
    ring. bfd: sample i is a row of whole documents; preference losses: a pair. Both are visited
    in an order that is shuffled anew each epoch.
    A target is never the first token of another document. Under `loss: assistant` conversations
    count by their mask; text sources count every token.

    steps: optimizer steps of the stage.
    left_out, truncated, untrained: by source, pairs and documents that are longer than a row; of
        the last kind no token would be trained on, so they are left out.

    With `epochs` each source gives its rows that often: the source with the largest weight all of
    them, the others in proportion to their weights. The last batch is filled up with blank rows.
    """

    def __init__(
        self,
        shards: dict[str, Shard],
        stage: BatchSpec,
        start: dict[str, int],
        seed: int,
        pad_id: int,
        device: torch.device | None = None,
    ) -> None:
        """start: where each source continues, in tokens (packing: concat_and_chunk). device: that
        batches are for; if it is a GPU they lie in pinned memory. A source that cannot be used in
        this stage is a UserError that names it."""
        self.stage = stage
        self.pad_id = pad_id
        self._sources = {
            name: _source(shards[name], stage, start.get(name, 0), seed)
            for name in sorted(stage.mixture)
        }
        weights = {name: Fraction(repr(float(w))) for name, w in stage.mixture.items()}
        self._samples: int | None = None
        if stage.epochs is not None:
            most = max(weights.values())
            weights = {n: self._sources[n].rows * w / most for n, w in weights.items()}
            total = Fraction(repr(float(stage.epochs))) * sum(weights.values())
            self._samples = max(1, math.ceil(total))
        self.mixture = Mixture(weights)
        self.left_out = {n: s.left_out for n, s in self._sources.items() if s.left_out}
        self.truncated = {n: s.truncated for n, s in self._sources.items() if s.truncated}
        self.untrained = {n: s.untrained for n, s in self._sources.items() if s.untrained}
        self.steps = self._count_steps()
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "loader", self._begin)  # so: one batch at a time
        self._asked: tuple[int, int, int] | None = None
        self._ahead: Future[Batch] | None = None

    def _begin(self) -> None:
        """Pinning belongs to a GPU; untold, the threads of all ranks would use the first."""
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)

    def _count_steps(self) -> int:
        stage = self.stage
        if stage.steps is not None:
            return stage.steps
        if self._samples is not None:
            return math.ceil(self._samples / stage.batch)
        if stage.is_preference:
            raise UserError(f"tokens: a stage with loss: {stage.loss} takes steps or epochs")
        assert stage.tokens is not None  # the stage's check
        return math.ceil(stage.tokens / self.tokens_per_step)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a whole batch, padding included; of pairs the most that there can be."""
        rows = self.stage.batch * (2 if self.stage.is_preference else 1)
        return rows * self.stage.context

    def used(self, k: int) -> dict[str, int]:
        """Tokens (pairs) taken from each source by batches 0..k-1; in bfd rows with padding."""
        each = 1 if self.stage.is_preference else self.stage.context
        counts = self.mixture.counts(self._upto(k * self.stage.batch))
        return {name: n * each for name, n in counts.items()}

    def _upto(self, sample: int) -> int:
        return sample if self._samples is None else min(sample, self._samples)

    def batch(self, k: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Rank's part of batch k: rows rank * B // world_size to (rank + 1) * B // world_size.

        Who asks for one batch after another has the next made meanwhile, by a thread.
        """
        asked, self._asked = self._asked, (k, rank, world_size)
        follows = asked == (k - 1, rank, world_size)
        ahead, self._ahead = self._ahead, None
        if ahead is None or not follows:
            ahead = self._thread.submit(self._make, k, rank, world_size)
        if follows:
            self._ahead = self._thread.submit(self._make, k + 1, rank, world_size)
        return ahead.result()

    def _make(self, k: int, rank: int, world_size: int) -> Batch:
        size = self.stage.batch
        before, after = self.used(k), self.used(k + 1)
        used = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        first, last = (k * size + r * size // world_size for r in (rank, rank + 1))
        samples = self.mixture.samples(self._upto(first), self._upto(last))
        blank = last - first - len(samples)
        if self.stage.is_preference:
            return self._pairs(samples, blank, used)
        rows = [self._sources[name].row(i) for name, i in samples]
        return self._stack(rows + [_BLANK] * blank, self.stage.context, used, ())

    def _pairs(self, samples: list[tuple[str, int]], blank: int, used: dict[str, int]) -> Batch:
        """A blank pair stands for the first of all, which a reference knows, without its tokens."""
        samples = samples + self.mixture.samples(0, 1) * blank
        pairs = []
        for name, i in samples:
            source = self._sources[name]
            assert isinstance(source, _Pairs)
            pairs.append((name, source.pair(i)))
        real = pairs[: len(pairs) - blank]
        rows = [
            row
            for side in (0, 1)
            for row in [*(self._sources[n].row(2 * p + side) for n, p in real), *[_BLANK] * blank]
        ]
        longest = max((len(row.tokens) - 1 for row in rows), default=0)
        width = max(8, -(-longest // 8) * 8)
        return replace(self._stack(rows, width, used, tuple(pairs)), blank=blank)

    def _stack(
        self, rows: list[_Row], width: int, used: dict[str, int], pairs: tuple[tuple[str, int], ...]
    ) -> Batch:
        """Rows of n + 1 tokens as [B, width] inputs and targets; padding is a document apart,
        but for pairs, whose rows are one document."""
        shape = (len(rows), width + 1)
        tokens = np.full(shape, self.pad_id, np.int64)
        documents = np.zeros(shape, np.int64)
        trained = np.zeros(shape, np.bool_)
        for r, row in enumerate(rows):
            n = len(row.tokens)
            if not n:
                continue
            tokens[r, :n] = row.tokens
            documents[r, :n] = row.documents - row.documents[0]
            documents[r, n:] = 0 if pairs else documents[r, n - 1] + 1
            trained[r, :n] = row.trained
        weights = trained[:, 1:] & (documents[:, 1:] == documents[:, :-1])
        return Batch(
            ids_BT=self._tensor(tokens[:, :-1]),
            targets_BT=self._tensor(tokens[:, 1:]),
            weights_BT=self._tensor(weights.astype(np.float32)),
            documents_BT=self._tensor(documents[:, :-1]),
            used=used,
            pairs=pairs,
        )

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        made = torch.from_numpy(array.copy())
        return made.pin_memory() if self._gpu else made


def _source(shard: Shard, stage: BatchSpec, start: int, seed: int) -> _Source:
    if stage.is_preference != (shard.format == "preference"):
        needs = "preference pairs" if stage.is_preference else "text or conversations"
        raise UserError(
            f"{shard.name}: loss: {stage.loss} needs {needs}, this source has format: "
            f"{shard.format}; change the mixture"
        )
    bit = GENERATED if stage.mask == "generated" else PUBLISHED
    mask_bit = None if stage.loss == "all" else bit
    trained = shard.meta.get("trained", {stage.mask: 1})
    if mask_bit is not None and shard.masks is not None and not trained.get(stage.mask):
        raise UserError(
            f"{shard.name}: mask: {stage.mask} marks no token of it; the chat template has no "
            "generation blocks: take mask: generated"
        )
    if stage.is_preference:
        return _Pairs(shard, mask_bit, stage.context, seed)
    if stage.packing == "bfd":
        return _BestFitDecreasing(shard, mask_bit, stage.context, seed)
    return _ConcatAndChunk(shard, mask_bit, stage.context, start)
