"""Float32 values to the block formats of GGUF.

Q8_0, Q4_0 and Q5_0 are llama.cpp's own quantisation, byte for byte. For Q4_K and Q6_K both search
for scales: of many ways to round the values, the least-squares fit of smallest error. llama.cpp
weights large values more; without weights the KL of the outputs measured lower (docs/log.md).
With an importance matrix all formats below 8 bits are searched, and errors weigh as it says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smollm3.checkpoint.gguf.quants import (
    CHUNK,
    FORMATS,
    Bytes,
    Floats,
    Records,
    iq4_nl_values,
    mxfp4_parts,
    pack_scales,
    q3_k_parts,
    tq1_0_values,
    tq2_0_values,
)

TINY = 1e-30  # blocks with nothing above this are zero: float16 scales end at 6e-8


def _inverse(values: Floats) -> Floats:
    """1/x, and 0 where x is too near 0 for that."""
    out = np.zeros_like(values)
    np.divide(np.float32(1), values, out=out, where=np.abs(values) > TINY)
    return out


def _records(name: str, **fields: NDArray[Any]) -> Records:
    out = np.empty(len(fields["d"]), FORMATS[name].dtype)
    for field, values in fields.items():
        out[field] = values
    return out


def _two_nibbles(q: Bytes) -> Bytes:
    """[..., 2n] -> [..., n]: the first half in the low nibbles."""
    half = q.shape[-1] // 2
    return np.asarray((q[..., :half] & np.uint8(15)) | (q[..., half:] << np.uint8(4)))


def _bf16(x_N1: Floats, weights: Floats | None) -> Records:
    bits = x_N1[:, 0].view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)  # nearest, ties to even


def _q8_0(x: Floats, weights: Floats | None) -> Records:
    d = np.abs(x).max(axis=1) / np.float32(127)
    scaled = x * _inverse(d)[:, None]
    away_from_zero = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return _records("Q8_0", d=d, q=away_from_zero)


def _largest(x: Floats) -> Floats:
    """The value of largest magnitude in each row, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]


def _offset_binary(x: Floats, half: int, weights: Floats | None) -> tuple[Floats, Bytes]:
    """Scale and values 0..2*half-1. Without weights the value of largest magnitude becomes -half
    exactly."""
    if weights is None:
        d = _largest(x) / np.float32(-half)
    else:
        d = _fit_scale(x, half, weights).astype(np.float16).astype(np.float32)
    q = np.trunc(x * _inverse(d)[:, None] + np.float32(half + 0.5))
    return d, q.clip(0, 2 * half - 1).astype(np.uint8)


def _q4_0(x: Floats, weights: Floats | None) -> Records:
    d, q = _offset_binary(x, 8, weights)
    return _records("Q4_0", d=d, q=_two_nibbles(q))


def _q5_0(x: Floats, weights: Floats | None) -> Records:
    d, q = _offset_binary(x, 16, weights)
    high = np.packbits(q >> 4, axis=1, bitorder="little")
    return _records("Q5_0", d=d, high=high, q=_two_nibbles(q))


def _dot(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("nk,nk->n", a, b))


def _fit_line(x: Floats, top: int, weights: Floats | None) -> tuple[Floats, Floats]:
    """scale and shift >= 0 of each row such that x ~ scale * q - shift with q in 0..top.

    Given q the least-squares line takes scale * sum(x q) - shift * sum(x) off the squared error: of
    21 step sizes the largest wins, then two rounds refine it (round to the line, fit the line).
    All sums are weighted.
    """
    wx = x if weights is None else weights * x
    n = np.float32(x.shape[1]) if weights is None else weights.sum(axis=1)
    sum_x = wx.sum(axis=1)
    scale, shift = np.zeros_like(sum_x), np.minimum(sum_x / n, 0)  # a constant
    best = shift * sum_x

    def consider(q: Floats) -> None:
        nonlocal scale, shift, best
        q.clip(0, top, out=q)
        wq = q if weights is None else weights * q
        sum_q, qq, xq = wq.sum(axis=1), _dot(wq, q), _dot(wx, q)
        inverse = _inverse(n * qq - sum_q * sum_q)
        new_scale = (n * xq - sum_x * sum_q) * inverse
        new_shift = (qq * sum_x - sum_q * xq) * inverse
        proportional = new_shift >= 0  # the format only shifts down
        new_scale = np.where(proportional, xq * _inverse(qq), new_scale)
        new_shift = np.where(proportional, 0, new_shift)
        gain = new_scale * xq + new_shift * sum_x
        better = gain > best
        scale, shift = np.where(better, new_scale, scale), np.where(better, new_shift, shift)
        best = np.where(better, gain, best)

    low = np.minimum(x.min(axis=1), 0)
    above_low, inverse_width = x - low[:, None], _inverse(x.max(axis=1) - low)
    for levels in np.linspace(top - 3, top + 1, 21, dtype=np.float32):
        consider(np.rint(above_low * (levels * inverse_width)[:, None]))
    for _ in range(2):
        consider(np.rint((x - shift[:, None]) * _inverse(scale)[:, None]))
    return scale, -shift


def _unit(d: Floats) -> NDArray[np.float16]:
    """d in float16; among its smallest numbers, k * 2^-24, the next that is no smaller: counts of
    units have a largest, and a block of weights of 1e-5 would be zeros."""
    steps = np.abs(d) * np.float32(2**24)
    up = np.copysign(np.ceil(steps), d) / np.float32(2**24)
    return np.where((steps < 16) & (np.abs(d) > TINY), up, d).astype(np.float16)


def _six_bits(values_N8: Floats) -> tuple[NDArray[np.float16], Bytes]:
    """A float16 unit for each row, and the row's values in that unit, 0..63."""
    unit = _unit(values_N8.max(axis=1) / np.float32(63))
    q = np.rint(values_N8 * _inverse(unit.astype(np.float32))[:, None])
    return unit, np.minimum(q, 63).astype(np.uint8)


def _q4_k(x_N256: Floats, weights: Floats | None) -> Records:
    x = x_N256.reshape(-1, 32)
    scale, shift = _fit_line(x, 15, None if weights is None else weights.reshape(-1, 32))
    d, scales = _six_bits(scale.reshape(-1, 8))
    dmin, mins = _six_bits(shift.reshape(-1, 8))
    unit = d.astype(np.float32)[:, None] * scales
    shift = dmin.astype(np.float32)[:, None] * mins
    shifted = x_N256.reshape(-1, 8, 32) + shift[:, :, None]
    q = np.rint(shifted * _inverse(unit)[:, :, None]).clip(0, 15).astype(np.uint8)
    packed = _two_nibbles(q.reshape(-1, 4, 64)).reshape(-1, 128)
    return _records("Q4_K", d=d, dmin=dmin, scales=pack_scales(scales, mins), q=packed)


def _fit_scale(x: Floats, half: int, weights: Floats | None) -> Floats:
    """The scale of each row such that x ~ scale * q with q in -half..half-1.

    Given q the least-squares scale is sum(x q) / sum(q q), and it takes off sum(x q)^2 / sum(q q)
    of the squared error: the largest of 19 step sizes wins. All sums are weighted.
    """
    wx = x if weights is None else weights * x
    inverse_peak = _inverse(_largest(x))
    scale, best = np.zeros_like(inverse_peak), np.zeros_like(inverse_peak)
    for levels in np.linspace(half - 0.9, half + 0.9, 19, dtype=np.float32):
        q = np.rint(x * (-levels * inverse_peak)[:, None])
        q.clip(-half, half - 1, out=q)
        xq = _dot(wx, q)
        new_scale = xq * _inverse(_dot(q if weights is None else weights * q, q))
        better = new_scale * xq > best
        scale = np.where(better, new_scale, scale)
        best = np.where(better, new_scale * xq, best)
    return scale


def _q6_k(x_N256: Floats, weights: Floats | None) -> Records:
    parts = None if weights is None else weights.reshape(-1, 16)
    scale = _fit_scale(x_N256.reshape(-1, 16), 32, parts).reshape(-1, 16)
    d = _unit(_largest(scale) / np.float32(-128))
    d32 = d.astype(np.float32)
    scales = np.rint(scale * _inverse(d32)[:, None]).clip(-128, 127)
    unit = d32[:, None] * scales
    q = np.rint(x_N256.reshape(-1, 16, 16) * _inverse(unit)[:, :, None]).clip(-32, 31) + 32
    return _q6_k_records(d, scales, q)


def _q6_k_records(d: NDArray[Any], scales: NDArray[Any], q: NDArray[Any]) -> Records:
    """scales: [N, 16]; q: 256 values 0..63 a record."""
    q = q.astype(np.uint8).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = np.bitwise_or.reduce((q >> 4) << shifts, axis=2).reshape(-1, 64)
    low = _two_nibbles(q.reshape(-1, 2, 128)).reshape(-1, 128)
    return _records("Q6_K", d=d, scales=scales, low=low, high=high)


# Of blocks [N, block] and what an error in each value weighs, of the same shape, or None.
ENCODERS: dict[str, Callable[[Floats, Floats | None], Records]] = {
    "F32": lambda x, weights: x[:, 0],
    "F16": lambda x, weights: x[:, 0].astype(np.float16),
    "BF16": _bf16,
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}


def quantize(values: Floats, name: str, importance: Floats | None = None) -> Bytes:
    """The bytes of finite float32 `values` in format `name`; their number fills whole blocks.
    At most 65504 in magnitude but for F32 and BF16: scales are float16.

    importance: what an error in each column of `values` weighs, [columns]; formats of 8 bits and
    more are the same with it.
    """
    form = FORMATS[name]
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, form.block)
    out = np.empty(len(blocks), form.dtype)
    step = CHUNK // form.block
    weights = None if importance is None else _weights(importance).reshape(-1, form.block)
    for start in range(0, len(blocks), step):
        some = blocks[start : start + step]
        # Blocks run along rows: the weights of a row's blocks come again with each row.
        at = np.arange(start, start + len(some))
        theirs = None if weights is None else weights[at % len(weights)]
        out[start : start + step] = ENCODERS[name](some, theirs)
    return out.view(np.uint8)


def _weights(importance: Floats) -> Floats:
    """Columns that the text never reached still count a little: their error is not free."""
    mean = float(importance.mean())
    if mean <= 0:
        return np.ones_like(importance)
    return np.asarray(np.maximum(importance / np.float32(mean), np.float32(1e-4)))


# The same values in another format


def _q3_k_as_q6_k(r: Records) -> Records:
    scales, q = q3_k_parts(r)
    return _q6_k_records(r["d"], scales, q + np.int8(32))


def _iq4_nl_as_q8_0(r: Records) -> Records:
    return _records("Q8_0", d=r["d"], q=iq4_nl_values(r))


def _ternary_as_q4_0(values: Callable[[Records], NDArray[np.int8]]) -> Callable[[Records], Records]:
    def recode(r: Records) -> Records:
        q = (values(r) + np.int8(8)).view(np.uint8).reshape(-1, 32)
        return _records("Q4_0", d=np.repeat(r["d"], 8), q=_two_nibbles(q))

    return recode


def _mxfp4_as_q8_0(r: Records) -> Records:
    """Scales below 2^-24 are lost to float16: weights of 4e-7."""
    half, q = mxfp4_parts(r)
    with np.errstate(over="ignore"):
        return _records("Q8_0", d=half.astype(np.float16), q=q)


# Format -> one that holds the same values in more bits, and how.
RECODED: dict[str, tuple[str, Callable[[Records], Records]]] = {
    "Q3_K": ("Q6_K", _q3_k_as_q6_k),
    "IQ4_NL": ("Q8_0", _iq4_nl_as_q8_0),
    "TQ1_0": ("Q4_0", _ternary_as_q4_0(tq1_0_values)),
    "TQ2_0": ("Q4_0", _ternary_as_q4_0(tq2_0_values)),
    "MXFP4": ("Q8_0", _mxfp4_as_q8_0),
}


def recode(raw: Bytes, name: str) -> Bytes:
    """The bytes of whole blocks of `name`, a key of RECODED, in the other format."""
    records, (_, convert) = raw.view(FORMATS[name].dtype), RECODED[name]
    step = CHUNK // FORMATS[name].block
    parts = [convert(records[at : at + step]) for at in range(0, len(records), step)]
    return np.concatenate(parts).view(np.uint8)
