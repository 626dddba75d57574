"""One forward pass as a stage wants it: precision, rotary tables, attention, compilation."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smollm3.data.batch import Batch
from smollm3.errors import UserError
from smollm3.model import Attend, Rope, Transformer, packed, rope_tables
from smollm3.quiet import quiet
from smollm3.train.losses import cross_entropy
from smollm3.train.spec import TrainStage

ALIGNED = 8  # columns, as products on GPUs like them; few widths, and all of a full row
Gather = Callable[[Tensor], Tensor]  # [B, own columns, ...] -> [B, all columns, ...]


class Forward:
    """`forward(batch) -> h_BTE`: final states, each document of a row on its own.

    mine: of a batch of whole rows, what `hidden` is given on this rank.
    """

    def __init__(
        self,
        model: Transformer,
        stage: TrainStage,
        device: torch.device,
        columns: Callable[[int], list[tuple[int, int]] | None] = lambda width: None,
        gather: Gather | None = None,
        autocast: bool | None = None,
        multiple: int = 1,
    ) -> None:
        """columns: [start, end) of this rank's columns of a row so wide, None: all of them.
        multiple: what rows are padded to. gather: from own to all columns. autocast: bfloat16
        products over float32 weights (absent: as the stage's precision says)."""
        self.hidden, self.device, self.columns, self.gather = model.hidden, device, columns, gather
        self.multiple = multiple
        self.rope = rope_tables(model.config, torch.arange(stage.context, device=device))
        self.autocast = stage.is_half if autocast is None else autocast
        self.compiled = stage.compile
        self.segments = stage.compile or gather is not None or device.type == "cuda"

    def precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.autocast else nullcontext()

    def mine(self, batch: Batch) -> Batch:
        """This rank's columns of `batch`; documents stay whole, as attention needs all of them."""
        batch = _padded(batch, -batch.ids_BT.shape[1] % self.multiple)
        columns = self.columns(batch.ids_BT.shape[1])
        if columns is None:
            return batch
        own = torch.cat([torch.arange(*each) for each in columns])
        return replace(
            batch,
            ids_BT=batch.ids_BT[:, own],
            targets_BT=batch.targets_BT[:, own],
            weights_BT=batch.weights_BT[:, own],
        )

    def __call__(self, batch: Batch) -> Tensor:
        """batch: from `mine`."""
        width = batch.documents_BT.shape[1]
        ids_BT = batch.ids_BT.to(self.device, non_blocking=True)
        columns = self.columns(width)
        if columns is None:
            rope = Rope(self.rope.cos[:width], self.rope.sin[:width])
        else:
            own = torch.cat([torch.arange(*each) for each in columns]).to(self.device)
            rope = Rope(self.rope.cos[own], self.rope.sin[own])
        return self.hidden(ids_BT, rope, self._attend(batch.documents_BT, columns))

    def _attend(self, documents_BT: Tensor, columns: list[tuple[int, int]] | None) -> Attend:
        if not self.segments:
            return packed(documents_BT.to(self.device))
        from smollm3.train.attention import Segments, segmented  # its operations take a second

        segments = Segments.of(documents_BT, columns).to(self.device)
        if self.compiled:  # one graph for any number of documents, from the first on
            for lengths in (segments.cu_q, segments.cu_k):
                torch._dynamo.maybe_mark_dynamic(lengths, 0)
        return segmented(segments, documents_BT.shape[1], self.gather)


def compile_parts(model: Transformer) -> None:
    """Compile the blocks, each as one graph; all alike, they share two: with and without RoPE. Also
    what `losses` does with logits."""
    # Graphs count by their code, which all models of a process share: those of every stage, with
    # and without gradients, for rows of one width and of any.
    torch._dynamo.config.recompile_limit = 64
    for block in model.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True)
    compiled: Any = torch.compile(cross_entropy, fullgraph=True)
    model.cross_entropy = compiled


def use_float8(model: Transformer, device: torch.device) -> None:
    """Make the products of the blocks float8, forward and backward, with one scale for a tensor
    (torchao's `tensorwise`). Embedding, head, norms stay, and keys' and values' products, which are
    too small to gain.

    A scale for each row is closer, but finding it takes what the products save: on an H200 the 3B
    at 4k trains 1.21 times as fast as in bfloat16 with one, 1.00 times with many. Where the device
    has no float8 products (NVIDIA's since compute capability 8.9) they are emulated: rounded alike,
    and slower. UserError without torchao.
    """
    with quiet():
        try:
            torchao = importlib.import_module("torchao.float8")
        except ImportError as e:
            raise UserError(
                f"precision: float8 needs torchao ({e}); pip install 'smollm3[gpu]'"
            ) from None
        emulate = device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9)
        config = replace(torchao.Float8LinearConfig.from_recipe_name("tensorwise"), emulate=emulate)
        for block in model.blocks:
            torchao.convert_to_float8_training(
                block,
                config=config,
                module_filter_fn=lambda _, name: name not in ("attention.k", "attention.v"),
            )


def _padded(batch: Batch, more: int) -> Batch:
    """`batch` with so many more columns without weight, a document apart."""
    if not more:
        return batch
    return replace(
        batch,
        ids_BT=F.pad(batch.ids_BT, (0, more)),
        targets_BT=F.pad(batch.targets_BT, (0, more)),
        weights_BT=F.pad(batch.weights_BT, (0, more)),
        documents_BT=F.pad(batch.documents_BT, (0, more), value=-1),
    )


def slices(batch: Batch, size: int | None) -> Iterator[Batch]:
    """`batch` in slices of `size` rows (or pairs), None: whole. A rank's share may be empty.

    Each without the columns behind the last target that counts in any of its rows: nothing before
    them sees them. What is left is a multiple of ALIGNED columns, if the batch is so wide.
    """
    count = len(batch.pairs) or len(batch.ids_BT)
    for start in range(0, count, size or count or 1):
        stop = min(start + (size or count), count)
        if not batch.pairs:
            yield _rows(batch, slice(start, stop))
            continue
        blank = max(0, stop - max(start, count - batch.blank))
        both = torch.cat([torch.arange(start, stop), torch.arange(start, stop) + count])
        yield replace(_rows(batch, both), pairs=batch.pairs[start:stop], blank=blank)


def _rows(batch: Batch, rows: slice | Tensor) -> Batch:
    counts_T = batch.weights_BT[rows].any(0).nonzero()
    last = int(counts_T[-1]) if len(counts_T) else 0
    length = -(-(last + 1) // ALIGNED) * ALIGNED
    return replace(
        batch,
        ids_BT=batch.ids_BT[rows, :length],
        targets_BT=batch.targets_BT[rows, :length],
        weights_BT=batch.weights_BT[rows, :length],
        documents_BT=batch.documents_BT[rows, :length],
    )
