"""mlx-lm as a backend, for Macs: its model and its cache; one sequence at a time.

What a step has written is copied block by block, so that prefixes are found again as elsewhere.
L layers, G key/value heads, D head dim, T tokens.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.errors import UserError
from smollm3.infer.adapters import Additions
from smollm3.infer.backends import BLOCK, StepBatch
from smollm3.infer.backends.memory import pool_blocks
from smollm3.model import ModelConfig


class MlxBackend:
    """A folder as mlx-lm reads it, quantised ones included. For an Engine of one row."""

    name = "mlx"
    copies_blocks = False  # what is not full lies in the cache of one sequence

    def __init__(self, folder: Path, config: ModelConfig, blocks: int | None = None) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: mlx-lm reads folders; take another engine for a GGUF file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the bindings it is built with
            self._mx = _package("mlx.core")
            self._caches = _package("mlx_lm.models.cache")
            self._model = _package("mlx_lm.utils").load_model(folder)[0]
        self.config = config
        self._table: list[int] = []  # the blocks of the sequence that the cache is of
        self._kept: dict[int, Any] = {}  # block -> [2 L, G, BLOCK, D], keys and values in turn
        self._cache = self._caches.make_prompt_cache(self._model)
        self._model(self._mx.array([[0]]), cache=self._cache)
        self._like = self._cache[0].keys  # [1, G, T, D]
        self.kv_cache_dtype = str(self._like.dtype).removeprefix("mlx.core.")
        _, G, _, D = self._like.shape
        self.block_bytes = 2 * config.layers * G * BLOCK * D * self._like.itemsize
        self.blocks = blocks or pool_blocks(config, self.block_bytes, torch.device("cpu"))

    def step(self, batch: StepBatch) -> Tensor:
        mx = self._mx
        start, N = int(batch.positions_N[0]), len(batch.ids_N)
        self._go_to(start, batch.tables_SB[0].tolist())
        logits_NV = self._model(mx.array(batch.ids_N)[None], cache=self._cache)[0]
        logits_RV = logits_NV[mx.array(batch.wanted_R)].astype(mx.float32)
        full = range(start // BLOCK, (start + N) // BLOCK)
        for index in full:
            place = slice(index * BLOCK, (index + 1) * BLOCK)
            halves = [half[0, :, place] for c in self._cache for half in (c.keys, c.values)]
            self._kept[self._table[index]] = mx.stack(halves)
        mx.eval(logits_RV, *(self._kept[self._table[index]] for index in full))
        mx.eval([c.state[:2] for c in self._cache])
        return torch.from_numpy(np.array(logits_RV))

    def states(self) -> Tensor:
        raise UserError("embeddings: not with engine mlx, only with torch and native")

    def add_adapter(self, additions: Additions) -> int:
        raise UserError("adapter: not with engine mlx; `smollm3 merge` it and serve the model")

    def remove_adapter(self, number: int) -> None:
        """There is none."""

    def export_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        rows = [np.array(self._kept[b].reshape(-1).view(self._mx.uint8)) for b in blocks]
        return np.stack(rows)

    def import_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        _, G, _, D = self._like.shape
        for block, row in zip(blocks, data, strict=True):
            values = self._mx.array(row).view(self._like.dtype)
            self._kept[block] = values.reshape(2 * self.config.layers, G, BLOCK, D)
        self._table = []

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Never asked for, as `copies_blocks` says."""
        raise NotImplementedError

    def close(self) -> None:
        self._kept.clear()
        del self._model, self._cache

    def _go_to(self, start: int, table: list[int]) -> None:
        """Make the cache that of the sequence of these blocks, with its first `start` tokens."""
        known = -(-start // BLOCK)
        offset = self._cache[0].offset
        if start and start <= offset and self._table[:known] == table[:known]:
            self._caches.trim_prompt_cache(self._cache, offset - start)  # rejected draft tokens
        else:
            self._cache = self._caches.make_prompt_cache(self._model)
            if start:
                joined = self._mx.concatenate([self._kept[b] for b in table[:known]], axis=2)
                for layer, cache in enumerate(self._cache):
                    keys, values = joined[2 * layer], joined[2 * layer + 1]
                    cache.state = (keys[None], values[None], start)
        self._table = table


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise UserError(
            f"engine: mlx needs mlx-lm ({e}); pip install mlx-lm (and where there is no Apple "
            "chip mlx-cpu)"
        ) from None
