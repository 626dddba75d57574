"""The C++ kernels (distribution smollm3-kernels): the fast way on a CPU.

Logits are the same bits alone, batched, in chunks, after a prefix hit, on any number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import smollm3_kernels
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.errors import UserError
from smollm3.infer.adapters import Additions
from smollm3.infer.backends import BLOCK, StepBatch, packed
from smollm3.infer.backends.memory import pool_blocks
from smollm3.model import ModelConfig, rope_tables
from smollm3.portable import usable_cpus

assert smollm3_kernels.BLOCK == BLOCK
# What users call the types of the cache, and the kernels.
KV_CACHE_DTYPES = {"f32": "f32", "bf16": "bf16", "int8": "q8"}
TILE_ROWS = 16  # of a matrix, which the kernels compute together
ROPE_ROWS = 4096  # positions whose tables are made at a time, always whole: the same bits each time


class NativeBackend:
    """A network in packed weights and a pool of `blocks` blocks of keys and values."""

    name = "native"
    copies_blocks = True

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        *,
        blocks: int | None = None,
        dtype: str | None = None,
        kv_cache_dtype: str | None = None,
        threads: int | None = None,
        weight_cache: bool = True,
        isa: str = "",
    ) -> None:
        """dtype: see `packed.plan`. blocks: of the pool; None takes what memory allows.
        kv_cache_dtype: None is f32 for float32 weights, else bf16. threads: None takes the
        processors this process may use. isa: one of smollm3_kernels.instruction_sets(); empty: what
        SMOLLM3_ISA says, else the fastest."""
        isa = isa or os.environ.get("SMOLLM3_ISA", "")
        if isa and isa not in (known := smollm3_kernels.instruction_sets()):
            raise UserError(f"SMOLLM3_ISA={isa}: this processor has {', '.join(known)}; unset it")
        plan = packed.plan(path, config, dtype)
        exact = all(part.form == "f32" for part in plan.parts.values())
        if kv_cache_dtype is None:
            kv_cache_dtype = "f32" if exact else "bf16"
        if kv_cache_dtype not in KV_CACHE_DTYPES:
            raise UserError(
                f"kv_cache_dtype: {kv_cache_dtype!r} is not one of {', '.join(KV_CACHE_DTYPES)}"
            )
        self.config = config
        self.kv_cache_dtype = kv_cache_dtype
        self.threads = threads or usable_cpus()
        matrices = packed.load(plan, self.threads, weight_cache)
        weights: dict[str, Any] = dict(plan.norms)
        for name, data in matrices.items():
            form = plan.parts[name].form
            if name.endswith(".gate"):
                weights[name] = (form, data, 1)
                weights[name.removesuffix("gate") + "up"] = (form, data, 2)
            else:
                weights[name] = (form, data)
        if config.tied:
            weights["unembed"] = weights["embed"]
        self.weight_bytes = sum(part.size for part in plan.parts.values())
        shape = {
            "layers": config.layers, "hidden": config.hidden, "heads": config.heads,
            "kv_heads": config.kv_heads, "head_dim": config.head_dim, "ffn": config.ffn,
            "vocab": config.vocab_size, "eps": config.norm_eps,
            "uses_rope": [int(flag) for flag in config.uses_rope],
        }  # fmt: skip
        # Adapters are as exact as what they are added to.
        self._adapter_form = "f32" if exact else "bf16"
        kind = KV_CACHE_DTYPES[kv_cache_dtype]
        self.block_bytes = smollm3_kernels.block_bytes(shape, kind)
        self.blocks = blocks = blocks or pool_blocks(config, self.block_bytes, torch.device("cpu"))
        try:
            self._model = smollm3_kernels.Model(shape, weights, kind, blocks, self.threads, isa)
        except MemoryError:
            raise UserError(
                f"{blocks * BLOCK} tokens of cache do not fit in memory; take a smaller context"
            ) from None
        self._norm_E = plan.norms["norm"]
        self._tokens = 0
        half = config.head_dim // 2
        self._cos = self._sin = np.empty((0, half), np.float32)

    def step(self, batch: StepBatch) -> Tensor:
        """Logits float32 [R, V]; writes keys and values of all N tokens, and then attends."""
        self._extend_rope(int(batch.positions_N.max()) + 1)
        self._tokens = len(batch.ids_N)
        logits_RV = np.empty((len(batch.wanted_R), self.config.vocab_size), np.float32)
        adapters_S = batch.adapters_S
        if adapters_S is None:
            adapters_S = np.full(len(batch.tables_SB), -1, np.int32)
        self._model.step(
            batch.ids_N,
            batch.positions_N,
            batch.starts,
            batch.tables_SB,
            batch.wanted_R,
            adapters_S,
            self._cos[batch.positions_N],
            self._sin[batch.positions_N],
            logits_RV,
        )
        return torch.from_numpy(logits_RV)

    def states(self) -> Tensor:
        x_NE = np.empty((self._tokens, self.config.hidden), np.float32)
        self._model.read_states(x_NE)
        scale_N1 = 1 / np.sqrt(np.square(x_NE).mean(-1, keepdims=True) + self.config.norm_eps)
        return torch.from_numpy(x_NE * scale_N1 * self._norm_E)

    def add_adapter(self, additions: Additions) -> int:
        """A number for `StepBatch.adapters_S`."""
        parts = {}
        for name, addition in additions.items():
            lengths = None
            if addition.lengths_O is not None:  # whole tiles of them
                O = len(addition.lengths_O)  # noqa: E741
                lengths = np.pad(addition.lengths_O.numpy(), (0, -O % TILE_ROWS))
            a, b = self._packed(addition.a_KI), self._packed(addition.b_OK)
            parts[name] = (self._adapter_form, len(addition.a_KI), a, b, lengths)
        return self._model.add_adapter(parts)

    def _packed(self, matrix: Tensor) -> NDArray[np.uint8]:
        out = packed.aligned(smollm3_kernels.matrix_bytes(self._adapter_form, *matrix.shape))
        octets = matrix.contiguous().numpy().view(np.uint8).ravel()
        rows, columns = matrix.shape
        form = self._adapter_form
        smollm3_kernels.pack("F32", octets, rows, columns, 0, form, 0, self.threads, out)
        return out

    def remove_adapter(self, number: int) -> None:
        self._model.remove_adapter(number)

    def _extend_rope(self, length: int) -> None:
        half = self.config.head_dim // 2
        while len(self._cos) < length:
            start = len(self._cos)
            rope = rope_tables(self.config, torch.arange(start, start + ROPE_ROWS))
            self._cos = np.concatenate([self._cos, rope.cos[:, :half].numpy()])
            self._sin = np.concatenate([self._sin, rope.sin[:, :half].numpy()])

    def export_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """[n, block_bytes]: what `import_blocks` takes, in any block."""
        out = np.empty((len(blocks), self.block_bytes), np.uint8)
        self._model.read_blocks(list(blocks), out)
        return out

    def import_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None:
        self._model.write_blocks(list(blocks), np.ascontiguousarray(data))

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.import_blocks(targets, self.export_blocks(sources))

    def close(self) -> None:
        """Free the pool; the backend is of no use after."""
        del self._model
