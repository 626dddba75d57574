"""CPU kernels for smollm3; see smollm3.infer.backends.native for their use."""

from smollm3_kernels._native import (
    BLOCK,
    VERSION,
    Model,
    block_bytes,
    form_of,
    instruction_sets,
    matrix_bytes,
    pack,
    pair_bytes,
    unpack,
)

__all__ = [
    "BLOCK",
    "VERSION",
    "Model",
    "block_bytes",
    "form_of",
    "instruction_sets",
    "matrix_bytes",
    "pack",
    "pair_bytes",
    "unpack",
]
