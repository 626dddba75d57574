"""Block formats: decoded and encoded as the `gguf` package and plain arithmetic say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from smollm3.checkpoint.gguf.quantize import ENCODERS, RECODED, quantize, recode
from smollm3.checkpoint.gguf.quants import (
    CHUNK,
    FORMATS,
    dequantize,
    pack_scales,
    unpack_scales,
)

gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle of the block formats")

SEARCHED = ("Q4_K", "Q6_K")  # formats where the encoder looks for the best scales
EXACT = ("Q8_0", "Q4_0", "Q5_0")


def rows(seed: int, n: int = 64, columns: int = 512) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, size=(n, columns)) * 0.02).astype(np.float32)


def kind(name: str):
    return gguf.GGMLQuantizationType[name]


@pytest.mark.parametrize("name", FORMATS)
def test_sizes_are_those_of_ggml(name):
    form = FORMATS[name]
    assert form.ggml == kind(name).value
    assert (form.block, form.dtype.itemsize) == gguf.GGML_QUANT_SIZES[kind(name)]


@pytest.mark.parametrize("name", FORMATS)
def test_decoding_is_bit_equal_to_the_gguf_package(name):
    form = FORMATS[name]
    count = 3 * CHUNK // form.block // 2  # more than a chunk, and not a whole number of them
    raw = np.random.default_rng(1).integers(0, 256, count * form.dtype.itemsize, dtype=np.uint8)
    records = raw.view(form.dtype)
    if form.dtype.names is None:
        records[:] = np.linspace(-2, 2, count).astype(form.dtype) if name != "BF16" else 0x3F81
    fields = form.dtype.fields or {}
    for scale in {"d", "dmin", "m"} & set(fields):  # any bits, but no NaN
        records[scale] = np.random.default_rng(2).normal(size=count).astype(np.float16)
    if name == "MXFP4":
        records["e"] %= 250  # beyond, values overflow float32
    elif name == "IQ1_M":  # the float16 scale lies in the upper four bits of four numbers
        records["scales"][:, 3] &= 0x3FFF
    expected = gguf.quants.dequantize(raw.reshape(1, -1), kind(name)).reshape(-1)
    if name in ("F32", "F16"):  # there the package wants the array itself
        expected = records.astype(np.float32)
    ours = dequantize(raw, name)
    assert ours.dtype == np.float32
    assert np.array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["BF16", *EXACT])
def test_encoding_is_bit_equal_to_the_gguf_package(name):
    values = rows(3)
    values[0] = 0
    values[1] *= 1e-12
    values[2, :32] = -0.5
    with np.errstate(over="ignore", invalid="ignore"):
        expected = gguf.quants.quantize(values, kind(name))
    assert np.array_equal(quantize(values, name), np.asarray(expected).reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_formats_round_to_nearest(name):
    values = rows(4).reshape(-1)
    back = dequantize(quantize(values, name), name)
    bits = {"F32": 24, "F16": 11, "BF16": 8}[name]
    assert (np.abs(back - values) <= np.abs(values) * 2.0**-bits + 2.0**-25).all()
    assert np.array_equal(dequantize(quantize(back, name), name), back)


@given(hnp.arrays(np.uint8, (3, 16), elements=st.integers(0, 63)))
def test_packed_scales_come_back(both):
    scales, mins = both[:, :8], both[:, 8:]
    packed = pack_scales(scales, mins)
    assert packed.shape == (3, 12)
    assert all(
        np.array_equal(a, b) for a, b in zip(unpack_scales(packed), (scales, mins), strict=True)
    )


# Relative root mean square errors on Student-t values, from llama.cpp's own quantiser: 0.08294 and
# 0.02146 on the same draw.
@pytest.mark.parametrize(("name", "limit"), [("Q4_K", 0.0829), ("Q6_K", 0.0214)])
def test_the_search_finds_what_llama_cpp_finds(name, limit):
    values = (np.random.default_rng(0).standard_t(5, size=(512, 1024)) * 0.02).astype(np.float32)
    error = dequantize(quantize(values, name), name).reshape(values.shape) - values
    assert np.sqrt(np.square(error).mean()) / values.std() < limit


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 65504.0, -65504.0, 1e-3, -1e-12, 1e-38])
def test_constant_blocks(name, value):
    values = np.full(512, value, np.float32)
    back = dequantize(quantize(values, name), name)
    assert np.abs(back - values).max() <= abs(value) / 40 + 1e-6


@pytest.mark.parametrize("name", ENCODERS)
@settings(max_examples=15)
@given(
    values=hnp.arrays(
        np.float32,
        256,
        elements=st.floats(-65504, 65504, width=32, allow_nan=False, allow_subnormal=True),
    )
)
def test_any_finite_values_stay_near(name, values):
    """No worse than rounding to the width of the format between its block's extremes."""
    back = dequantize(quantize(values, name), name)
    assert np.isfinite(back).all()
    steps = {"F32": 2**20, "F16": 2**10, "BF16": 2**7, "Q8_0": 120, "Q6_K": 25}.get(name, 7)
    size = max(FORMATS[name].block, 1)
    for block, of in zip(back.reshape(-1, size), values.reshape(-1, size), strict=True):
        assert np.abs(block - of).max() <= 2 * np.abs(of).max() / steps + 1e-5


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
@pytest.mark.parametrize("size", [3e-6, 1e-5, 6.1e-5, 2e-4])
def test_tiny_weights_are_not_zeros(name, size):
    """Their scale of scales lies among the smallest numbers of float16."""
    values = rows(7, n=8).reshape(-1) * np.float32(size / 0.02)
    back = dequantize(quantize(values, name), name)
    assert np.abs(back - values).mean() < np.abs(values).mean() / 4
    assert np.abs(back - values).max() <= 2 * np.abs(values).max() / 7


@pytest.mark.parametrize("name", ENCODERS)
def test_encoding_does_not_depend_on_the_chunks(name):
    values = rows(5, n=300)
    both = quantize(values, name)
    half = len(both) // 2
    assert np.array_equal(both[:half], quantize(values[:150], name))
    assert np.array_equal(both[half:], quantize(values[150:], name))


@pytest.mark.parametrize("name", RECODED)
def test_recoded_values_are_the_same(name):
    form = FORMATS[name]
    count = 5 * CHUNK // form.block // 4
    raw = np.random.default_rng(1).integers(0, 256, count * form.dtype.itemsize, dtype=np.uint8)
    records = raw.view(form.dtype)
    if name == "MXFP4":
        records["e"] = 104 + records["e"] % 40  # what float16 scales hold
    else:
        records["d"] = np.random.default_rng(2).normal(size=count).astype(np.float16)
    other, _ = RECODED[name]
    found = dequantize(recode(raw, name), other)
    np.testing.assert_array_equal(found, dequantize(raw, name))
