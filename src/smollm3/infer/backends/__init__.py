"""What runs the network for the engine: one forward step of several sequences, over paged memory.

N tokens of a step, E hidden size, S sequences, B blocks of the longest, R tokens whose logits
are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from smollm3.infer.adapters import Additions
from smollm3.model import ModelConfig

BLOCK = 32  # tokens whose keys and values lie together

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class StepBatch:
    """One forward step: several sequences in one row of N tokens."""

    ids_N: Ints
    positions_N: Ints  # place of each token in its sequence
    starts: Ints  # [S+1]: sequence s owns tokens starts[s]..starts[s+1]-1, consecutive positions
    tables_SB: Ints  # block b of sequence s holds its places 32b..32b+31; 0-padded
    wanted_R: Ints  # indices into N whose logits are wanted, ascending; may be empty
    adapters_S: Ints | None = None  # what `add_adapter` gave, or -1; None: no sequence has one


class Backend(Protocol):
    """A network and its pool of blocks. Only the engine's thread calls it."""

    name: str  # "torch", "native", ...: for people
    kv_cache_dtype: str  # what a block holds ("float32", "int8", ...): for saved prefixes
    config: ModelConfig
    blocks: int  # in the pool
    block_bytes: int
    copies_blocks: bool  # also such as are not full

    def step(self, batch: StepBatch) -> Tensor:
        """Logits float32 [R, V]; writes keys and values of all N tokens, and then attends."""

    def states(self) -> Tensor:
        """Final normed states float32 [N, E] of all tokens of the last step."""

    def add_adapter(self, additions: Additions) -> int:
        """A number for `StepBatch.adapters_S`. UserError where a backend has no adapters."""

    def remove_adapter(self, number: int) -> None: ...

    def export_blocks(self, blocks: Sequence[int]) -> NDArray[np.uint8]:
        """[n, block_bytes]: what `import_blocks` takes, in any block."""

    def import_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None: ...

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """All are read before one is written."""

    def close(self) -> None: ...


def pool_places(tables_SB: Ints, starts: Ints, positions_N: Ints) -> NDArray[Any]:
    """[N] place in the pool, counted in tokens, that each token's keys and values take."""
    owner_N = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return tables_SB[owner_N, positions_N // BLOCK].astype(np.int64) * BLOCK + positions_N % BLOCK
