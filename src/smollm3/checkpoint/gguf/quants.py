"""The block formats of GGUF tensors and how their values are computed from the bytes.

A tensor's rows are cut into blocks of `block` values; each block is one record of `dtype`. The
records below are llama.cpp's (ggml-common.h); d scales, m and dmin shift, all float16. The IQ1, IQ2
and IQ3 formats store indices into tables of up to 2,048 vectors; the `gguf` package has the tables
and decodes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import UserError

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


def _two_bits(packed: Bytes) -> Bytes:
    """[..., 32] bytes -> [..., 4, 32]: the lowest two bits of each first."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.asarray((packed[..., None, :] >> shifts) & 3)


def _q2_k(r: Records) -> Floats:
    """d * scale * q - dmin * min in 16 sub-blocks of 16. A byte holds a scale and a min."""
    d, m = _f(r["d"]) * (r["scales"] & 15), _f(r["dmin"]) * (r["scales"] >> 4)
    q = _two_bits(r["q"].reshape(-1, 2, 32)).reshape(-1, 16, 16)
    return np.asarray(d[:, :, None] * q - m[:, :, None], np.float32).reshape(-1, 256)


def q3_k_parts(r: Records) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Scales [N, 16] and values -4..3 [N, 16, 16] of Q3_K.

    Low nibbles of the 6-bit scales lie in 8 bytes, low halves first; their upper bits in 4 more."""
    low = _halves(r["scales"][:, :8])
    high = (r["scales"][:, None, 8:] >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).view(np.int8) - np.int8(32)
    upper = (r["high"][:, None, :] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _two_bits(r["q"].reshape(-1, 2, 32)).reshape(-1, 8, 32) | (upper << 2)
    return scales, (q.view(np.int8) - np.int8(4)).reshape(-1, 16, 16)


def _q3_k(r: Records) -> Floats:
    scales, q = q3_k_parts(r)
    return np.asarray((_f(r["d"]) * scales)[:, :, None] * q).reshape(-1, 256)


# The sixteen values of IQ4_NL and IQ4_XS, and twice those of MXFP4's 4-bit floats.
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


def iq4_nl_values(r: Records) -> NDArray[np.int8]:
    return np.asarray(IQ4_VALUES[_halves(r["q"])])


def _iq4_nl(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * iq4_nl_values(r))


def _iq4_xs(r: Records) -> Floats:
    """8 sub-blocks of 32 with scales of 6 bits: nibbles, and their upper bits in one number."""
    low = np.stack([r["low"] & 15, r["low"] >> 4], axis=-1).reshape(-1, 8)
    high = (r["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)).astype(np.uint8) & 3
    scales = (low | (high << 4)).view(np.int8) - np.int8(32)
    q = IQ4_VALUES[_halves(r["q"].reshape(-1, 8, 16))]
    return np.asarray((_f(r["d"]) * scales)[:, :, None] * q).reshape(-1, 256)


def tq1_0_values(r: Records) -> NDArray[np.int8]:
    """-1, 0 or 1: a byte holds five digits of base 3 (the last four bytes four) as a fraction of
    256, the first in its upper part: of byte * 3^k the first is the k-th digit."""

    def digits(packed: Bytes, count: int) -> Bytes:
        shifted = packed[:, None, :] * np.array([3**k for k in range(count)], np.uint8)[:, None]
        return ((shifted.astype(np.uint16) * 3) >> 8).astype(np.uint8).reshape(len(packed), -1)

    parts = [digits(r["q"][:, :32], 5), digits(r["q"][:, 32:], 5), digits(r["last"], 4)]
    return np.concatenate(parts, axis=1).view(np.int8) - np.int8(1)


def _tq1_0(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * tq1_0_values(r))


def tq2_0_values(r: Records) -> NDArray[np.int8]:
    return _two_bits(r["q"].reshape(-1, 2, 32)).reshape(-1, 256).view(np.int8) - np.int8(1)


def _tq2_0(r: Records) -> Floats:
    return np.asarray(_f(r["d"]) * tq2_0_values(r))


def mxfp4_parts(r: Records) -> tuple[Floats, NDArray[np.int8]]:
    """Half the scale, 2^(e - 128), of each record and twice its values."""
    e = r["e"].astype(np.uint32)
    half = np.where(e < 2, np.uint32(0x00200000) << e, (e - np.uint32(1)) << np.uint32(23))
    return half.astype(np.uint32).view(np.float32), np.asarray(FP4_VALUES[_halves(r["q"])])


def _mxfp4(r: Records) -> Floats:
    half, q = mxfp4_parts(r)
    return np.asarray(half[:, None] * q)


def _tabled(name: str, ggml: int, *fields: tuple[str, str] | tuple[str, str, int]) -> Format:
    """A format whose tables the `gguf` package has."""

    def decode(r: Records) -> Floats:
        try:
            import gguf
        except ImportError:
            raise UserError(f"{name} is decoded by the package gguf; pip install gguf") from None
        raw = r.view(np.uint8).reshape(len(r), -1)
        return np.asarray(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name]))

    return Format(ggml, 256, _record(*fields), decode)


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
    "Q2_K": Format(
        10,
        256,
        _record(("scales", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("dmin", "<f2")),
        _q2_k,
    ),
    "Q3_K": Format(
        11,
        256,
        _record(("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), ("d", "<f2")),
        _q3_k,
    ),
    "IQ4_NL": Format(20, 32, _record(("d", "<f2"), ("q", "u1", 16)), _iq4_nl),
    "IQ4_XS": Format(
        23,
        256,
        _record(("d", "<f2"), ("high", "<u2"), ("low", "u1", 4), ("q", "u1", 128)),
        _iq4_xs,
    ),
    "TQ1_0": Format(34, 256, _record(("q", "u1", 48), ("last", "u1", 4), ("d", "<f2")), _tq1_0),
    "TQ2_0": Format(35, 256, _record(("q", "u1", 64), ("d", "<f2")), _tq2_0),
    "MXFP4": Format(39, 32, _record(("e", "u1"), ("q", "u1", 16)), _mxfp4),
    "IQ1_S": _tabled("IQ1_S", 19, ("d", "<f2"), ("q", "u1", 48)),
    "IQ1_M": _tabled("IQ1_M", 29, ("q", "u1", 48), ("scales", "<u2", 4)),
    "IQ2_XXS": _tabled("IQ2_XXS", 16, ("d", "<f2"), ("q", "u1", 64)),
    "IQ2_XS": _tabled("IQ2_XS", 17, ("d", "<f2"), ("q", "u1", 72)),
    "IQ2_S": _tabled("IQ2_S", 22, ("d", "<f2"), ("q", "u1", 80)),
    "IQ3_XXS": _tabled("IQ3_XXS", 18, ("d", "<f2"), ("q", "u1", 96)),
    "IQ3_S": _tabled("IQ3_S", 21, ("d", "<f2"), ("q", "u1", 108)),
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
