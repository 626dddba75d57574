"""One forward pass as a stage wants it: precision, rotary tables, attention, compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from smollm3.data.batch import Batch
from smollm3.model import Rope, Transformer, packed, rope_tables
from smollm3.train.spec import TrainStage


class Forward:
    """`forward(batch) -> h_BTE`: final states, each document of a row on its own."""

    def __init__(self, model: Transformer, stage: TrainStage, device: torch.device) -> None:
        self.device = device
        self.rope = rope_tables(model.config, torch.arange(stage.context, device=device))
        self.bfloat16 = stage.precision == "bfloat16"
        self.hidden = torch.compile(model.hidden) if stage.compile else model.hidden

    def precision(self) -> AbstractContextManager[object]:
        """bfloat16 products over float32 weights, or float32 throughout."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def __call__(self, batch: Batch) -> Tensor:
        ids_BT, documents_BT = batch.ids_BT.to(self.device), batch.documents_BT.to(self.device)
        T = ids_BT.shape[1]
        rope = Rope(self.rope.cos[:T], self.rope.sin[:T])
        return self.hidden(ids_BT, rope, packed(documents_BT))


def slices(batch: Batch, size: int | None) -> Iterator[Batch]:
    """`batch` in slices of `size` rows (or pairs), None: whole. A rank's share may be empty."""
    rows = len(batch.pairs) or len(batch.ids_BT)
    for start in range(0, rows, size or rows or 1):
        stop = start + (size or rows)
        if batch.pairs:
            yield _pairs(batch, start, min(stop, rows))
        else:
            yield _rows(batch, slice(start, stop), batch.ids_BT.shape[1])


def _pairs(batch: Batch, start: int, stop: int) -> Batch:
    """Some pairs of a batch, without the columns in which none of them has a target."""
    rows = torch.cat([torch.arange(start, stop), torch.arange(start, stop) + len(batch.pairs)])
    used_T = batch.weights_BT[rows].any(0).nonzero()
    length = int(used_T[-1]) + 1 if len(used_T) else 1
    return replace(_rows(batch, rows, length), pairs=batch.pairs[start:stop])


def _rows(batch: Batch, rows: slice | Tensor, length: int) -> Batch:
    return replace(
        batch,
        ids_BT=batch.ids_BT[rows, :length],
        targets_BT=batch.targets_BT[rows, :length],
        weights_BT=batch.weights_BT[rows, :length],
        documents_BT=batch.documents_BT[rows, :length],
    )
