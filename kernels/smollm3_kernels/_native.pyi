from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK: int
TYPES: list[str]
VERSION: int

def instruction_sets() -> list[str]: ...
def form_of(type: str) -> str: ...
def matrix_bytes(form: str, rows: int, columns: int) -> int: ...
def pair_bytes(form: str, rows: int, columns: int) -> int: ...
def block_bytes(shape: dict[str, Any], cache: str) -> int: ...
def pack(
    type: str,
    source: NDArray[np.uint8],
    rows: int,
    columns: int,
    pairs: int,
    form: str,
    which: int,
    threads: int,
    out: NDArray[np.uint8],
) -> None: ...
def unpack(
    form: str, data: NDArray[np.uint8], rows: int, columns: int, out: NDArray[np.float32]
) -> None: ...

class Model:
    def __init__(
        self,
        shape: dict[str, Any],
        weights: dict[str, Any],
        cache: str,
        blocks: int,
        threads: int,
        isa: str = "",
    ) -> None: ...
    def step(
        self,
        ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        starts: NDArray[np.int32],
        tables: NDArray[np.int32],
        rows: NDArray[np.int32],
        adapters: NDArray[np.int32],
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        logits: NDArray[np.float32],
    ) -> None: ...
    def add_adapter(self, parts: dict[str, Any]) -> int: ...
    def remove_adapter(self, number: int) -> None: ...
    def read_states(self, out: NDArray[np.float32]) -> None: ...
    def read_blocks(self, blocks: Sequence[int], out: NDArray[np.uint8]) -> None: ...
    def write_blocks(self, blocks: Sequence[int], data: NDArray[np.uint8]) -> None: ...
