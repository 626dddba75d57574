"""CPU kernels for smollm3; smollm3.infer.backends.native is their only user."""

from smollm3_kernels._native import (
    BLOCK,
    TYPES,
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
    "TYPES",
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
