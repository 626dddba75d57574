"""GGUF files of random weights in chosen formats, also those that nothing here encodes."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path

import numpy as np

from smollm3.checkpoint.gguf import write
from smollm3.checkpoint.gguf.quantize import quantize
from smollm3.checkpoint.gguf.quants import FORMATS, dequantize
from smollm3.model import ModelConfig, Transformer


def random_records(name: str, count: int, rng: np.random.Generator, std: float) -> np.ndarray:
    """Bytes of `count` random records of format `name` whose values spread by about `std`."""
    form = FORMATS[name]
    raw = rng.integers(0, 256, (count, form.dtype.itemsize), dtype=np.uint8)
    records = raw.view(form.dtype)[:, 0]
    scales = {"d", "dmin", "m"} & set(form.dtype.names)
    if name == "MXFP4":
        records["e"] = round(127 + math.log2(std / 3))
    elif name == "IQ1_M":  # a float16, four bits of it in each of four numbers
        bits = int(np.float16(std / 8).view(np.uint16))
        for i in range(4):
            records["scales"][:, i] = records["scales"][:, i] & 0xFFF | (bits >> 4 * i & 15) << 12
    else:
        for field in scales:
            records[field] = rng.uniform(0.5, 1, count) * (0.25 if field == "dmin" else 1)
        if "m" in scales:  # around zero: values are 0..15 or 0..31
            records["m"] = -(15.5 if name == "Q5_1" else 7.5) * records["d"]
        factor = std / dequantize(raw.reshape(-1), name).std()
        for field in scales:
            records[field] *= np.float16(factor)
    return np.ascontiguousarray(raw).reshape(-1)


def write_mixed(
    config: ModelConfig, tokenizer, out: Path, formats: list[str], monkeypatch, seed: int = 0
) -> None:
    """A file whose matrices take the formats in turn."""
    rng, turns, chosen = np.random.default_rng(seed), cycle(formats), {}

    def tensor_format(name: str, shape: tuple[int, ...], *_: object) -> str:
        return chosen.setdefault(name, "F32" if len(shape) == 1 else next(turns))

    with_shapes = {n: tuple(p.shape) for n, p in Transformer(config).named_parameters()}

    def encode(name: str, form: str) -> np.ndarray:
        count = math.prod(with_shapes[name])
        if form == "F32":
            return quantize(rng.uniform(0.5, 1.5, count).astype(np.float32), form)
        return random_records(form, count // FORMATS[form].block, rng, config.init_std)

    monkeypatch.setattr(write, "tensor_format", tensor_format)
    write.write_gguf(config, tokenizer, out, "q4_0", with_shapes, encode)
