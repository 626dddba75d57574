"""A backend whose logits are a hash of all that a token may see, read from its pool of blocks.

So an answer is right only if every block, table and position is; and it takes no time.
"""

import itertools
import threading

import numpy as np
import torch

from smollm3.infer.backends import BLOCK, StepBatch, pool_places
from smollm3.model import ModelConfig

CONFIG = ModelConfig(
    vocab_size=300,
    layers=1,
    hidden=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    ffn=8,
    uses_rope=(True,),
    rope_theta=10_000.0,
    context=400,
)
EMPTY = -1


class FakeBackend:
    name = "fake"
    copies_blocks = True
    kv_cache_dtype = "ids"
    block_bytes = 4 * BLOCK

    def __init__(self, blocks: int = 64, config: ModelConfig = CONFIG, spread: float = 8.0) -> None:
        """spread: of the logits; below 1 sampled answers hardly repeat themselves."""
        self.config = config
        self.blocks = blocks
        self.spread = spread
        self.pool = np.full(blocks * BLOCK, EMPTY, np.int32)
        self.batches: list[StepBatch] = []
        self.closed = False
        self.adapters: set[int] = set()
        self.numbers = itertools.count()  # none is given twice, so that no two adapters are alike
        self.fail = lambda batch: None  # may raise
        self.thread: threading.Thread | None = None

    def step(self, batch: StepBatch) -> torch.Tensor:
        self.thread = self.thread or threading.current_thread()
        assert threading.current_thread() is self.thread
        self.batches.append(batch)
        self.fail(batch)
        places_N = pool_places(batch.tables_SB, batch.starts, batch.positions_N)
        assert len(set(places_N.tolist())) == len(places_N)
        self.pool[places_N] = batch.ids_N
        if batch.adapters_S is not None:  # what is kept tells which adapter made it
            assert self.adapters.issuperset(set(batch.adapters_S.tolist()) - {-1})
            self.pool[places_N] += 1000 * (1 + np.repeat(batch.adapters_S, np.diff(batch.starts)))
        owner_N = np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))
        V = self.config.vocab_size
        rows = [self._logits(batch, owner_N[i], batch.positions_N[i]) for i in batch.wanted_R]
        return torch.from_numpy(np.array(rows, np.float32).reshape(len(rows), V))

    def _logits(self, batch: StepBatch, s: int, position: int) -> np.ndarray:
        seen = np.arange(position + 1)
        ids = self.pool[batch.tables_SB[s, seen // BLOCK] * BLOCK + seen % BLOCK]
        assert (ids != EMPTY).all()
        return self.logits_after(ids)

    def logits_after(self, ids) -> np.ndarray:
        code = 17
        for token in np.asarray(ids).tolist():
            code = (code * 1_000_003 + token + 1) % 2**61
        tokens = np.arange(self.config.vocab_size, dtype=np.uint64)
        mixed = (tokens + np.uint64(1)) * np.uint64(code | 1)
        mixed ^= mixed >> np.uint64(29)
        return (mixed % np.uint64(65_521)).astype(np.float32) / 65_521 * self.spread

    def states(self) -> torch.Tensor:
        """Of each token of the last step the first figures of its logits, which tell its past."""
        batch = self.batches[-1]
        owner_N = np.repeat(np.arange(len(batch.starts) - 1), np.diff(batch.starts))
        rows = [self._logits(batch, owner_N[i], p) for i, p in enumerate(batch.positions_N)]
        return torch.from_numpy(
            np.array(rows, np.float32)[:, : self.config.hidden] - self.spread / 2
        )

    def add_adapter(self, additions) -> int:
        number = next(self.numbers)
        self.adapters.add(number)
        return number

    def remove_adapter(self, number: int) -> None:
        self.adapters.remove(number)

    def export_blocks(self, blocks) -> np.ndarray:
        return self.pool.reshape(-1, BLOCK)[list(blocks)].view(np.uint8)

    def import_blocks(self, blocks, data: np.ndarray) -> None:
        self.pool.reshape(-1, BLOCK)[list(blocks)] = np.ascontiguousarray(data).view(np.int32)

    def copy_blocks(self, sources, targets) -> None:
        pool = self.pool.reshape(-1, BLOCK)
        pool[list(targets)] = pool[list(sources)]

    def close(self) -> None:
        self.closed = True
