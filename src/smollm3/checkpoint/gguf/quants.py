"""The block formats of GGUF tensors and how their values are computed from the bytes.

A tensor's rows are cut into blocks of `block` values; each block is one record of `dtype`. The
records below are llama.cpp's (ggml-common.h); d scales, m and dmin shift, all float16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Records = NDArray[Any]  # one-dimensional, of a format's dtype


class Format(NamedTuple):
    """ggml: the type's number in the file. block: values in a record of `dtype`.
    decode: records [N] -> float32 [N, block]."""

    ggml: int
    block: int
    dtype: np.dtype[Any]
    decode: Callable[[Records], Floats]


def _halves(packed: Bytes) -> Bytes:
    """[..., n] bytes -> [..., 2n]: all low nibbles, then all high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _f(values: NDArray[Any]) -> Floats:
    """One number a record, as a column of float32."""
    return values.astype(np.float32)[:, None]


def _plain(records: Records) -> Floats:
    return _f(records)


def _bf16(records: Records) -> Floats:
    return (records.astype(np.uint32) << 16).view(np.float32)[:, None]


def _q8_0(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * r["q"])


def _q4_0(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * (_halves(r["q"]).view(np.int8) - np.int8(8)))


def _q4_1(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * _halves(r["q"]) + _f(r["m"]))


def _five_bits(r: Records) -> Bytes:
    """The fifth bits of the 32 values lie together, value 0's lowest."""
    fifth = np.unpackbits(r["high"], axis=-1, bitorder="little")
    return np.asarray(_halves(r["q"]) | (fifth << np.uint8(4)))


def _q5_0(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * (_five_bits(r).view(np.int8) - np.int8(16)))


def _q5_1(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * _five_bits(r) + _f(r["m"]))


def unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes -> 8 scales and 8 mins of 6 bits: the first four of each in the low bits of bytes
    0-3 and 4-7; the last four with their low nibbles in bytes 8-11, high bits in the tops of 0-7.
    """
    a, b, c = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=1)
    mins = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=1)
    return scales, mins


def pack_scales(scales: Bytes, mins: Bytes) -> Bytes:
    """The inverse of `unpack_scales`."""
    a = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    b = mins[:, :4] | (mins[:, 4:] >> 4 << 6)
    c = (scales[:, 4:] & 15) | (mins[:, 4:] << 4)
    return np.concatenate([a, b, c], axis=1)


def _scaled_pairs(r: Records, q_N8x32: Bytes) -> Floats:
    """d * scale * q - dmin * min in 8 sub-blocks of 32."""
    scales, mins = unpack_scales(r["scales"])
    d, m = _f(r["d"]) * scales, _f(r["dmin"]) * mins
    return np.asarray(d[:, :, None] * q_N8x32 - m[:, :, None]).reshape(-1, 256)


def _pairs_of_32(packed: Bytes) -> Bytes:
    """128 bytes -> [8, 32]: 32 bytes at a time hold two sub-blocks, low nibbles first."""
    return _halves(packed.reshape(-1, 4, 32)).reshape(-1, 8, 32)


def _q4_k(r: Records) -> Floats:
    return _scaled_pairs(r, _pairs_of_32(r["q"]))


def _q5_k(r: Records) -> Floats:
    # Bit j of byte l is the fifth bit of value l in sub-block j.
    fifth = (r["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _scaled_pairs(r, np.bitwise_or(_pairs_of_32(r["q"]), fifth << np.uint8(4)))


def _q6_k(r: Records) -> Floats:
    # Two halves of 128 values: 64 bytes of low nibbles, 32 bytes with the upper bits of four.
    low = _halves(r["low"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (r["high"].reshape(-1, 2, 1, 32) >> shifts) & 3
    q = (low | (high << 4)).view(np.int8) - np.int8(32)
    d = _f(r["d"]) * r["scales"]
    return np.asarray(d[:, :, None] * q.reshape(-1, 16, 16)).reshape(-1, 256)


def _record(*fields: tuple[str, str] | tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype(list(fields))


FORMATS = {
    "F32": Format(0, 1, np.dtype("<f4"), _plain),
    "F16": Format(1, 1, np.dtype("<f2"), _plain),
    "BF16": Format(30, 1, np.dtype("<u2"), _bf16),
    "Q8_0": Format(8, 32, _record(("d", "<f2"), ("q", "i1", 32)), _q8_0),
    "Q4_0": Format(2, 32, _record(("d", "<f2"), ("q", "u1", 16)), _q4_0),
    "Q4_1": Format(3, 32, _record(("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)), _q4_1),
    "Q5_0": Format(6, 32, _record(("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)), _q5_0),
    "Q5_1": Format(
        7, 32, _record(("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)), _q5_1
    ),
    "Q4_K": Format(
        12,
        256,
        _record(("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)),
        _q4_k,
    ),
    "Q5_K": Format(
        13,
        256,
        _record(
            ("d", "<f2"),
            ("dmin", "<f2"),
            ("scales", "u1", 12),
            ("high", "u1", 32),
            ("q", "u1", 128),
        ),
        _q5_k,
    ),
    "Q6_K": Format(
        14,
        256,
        _record(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")),
        _q6_k,
    ),
}
NAMES = {form.ggml: name for name, form in FORMATS.items()}

CHUNK = 1 << 16  # values decoded or encoded at a time: what is in between stays in the cache


def dequantize(raw: Bytes, name: str) -> Floats:
    """The values of whole blocks of format `name`, flat. Non-finite scales give non-finite values,
    silently: the caller checks."""
    form = FORMATS[name]
    records = raw.view(form.dtype)
    if name == "F32":
        return records.astype(np.float32)
    out = np.empty((len(records), form.block), np.float32)
    step = CHUNK // form.block
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(records), step):
            out[start : start + step] = form.decode(records[start : start + step])
    return out.reshape(-1)
