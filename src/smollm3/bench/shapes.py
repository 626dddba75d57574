"""Models of a published shape with random weights, as GGUF files: speed without the Hub.

Time and memory depend on sizes and formats, not on what the weights say.
"""

from __future__ import annotations

import math
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smollm3.chat import default_template
from smollm3.checkpoint.gguf import KINDS
from smollm3.checkpoint.gguf.quantize import quantize
from smollm3.checkpoint.gguf.quants import FORMATS, Bytes
from smollm3.checkpoint.gguf.write import write_gguf
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer
from smollm3.tokenizer import build as tokenizer_build

SHAPES = {
    "smollm3-3b": ModelConfig(
        vocab_size=128_256, layers=36, hidden=2048, heads=16, kv_heads=4, head_dim=128, ffn=11_008,
        uses_rope=nope_pattern(36, 4), rope_theta=5e6, context=65_536,
    ),
    # For engines that know Llama only: the same sizes, every layer with RoPE.
    "llama-3b": ModelConfig(
        vocab_size=128_256, layers=36, hidden=2048, heads=16, kv_heads=4, head_dim=128, ffn=11_008,
        uses_rope=nope_pattern(36, 0), rope_theta=5e6, context=65_536,
    ),
    "smollm2-135m": ModelConfig(
        vocab_size=49_152, layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536,
        uses_rope=nope_pattern(30, 0), rope_theta=1e5, context=8192, norm_eps=1e-5,
    ),
}  # fmt: skip
DEFAULT_KIND = "q4_0"
CHUNK_VALUES = 1 << 22  # drawn and quantised for each format


def make_shape(spec: str, folder: str | Path) -> Path:
    """The file of `NAME` or `NAME:KIND` (SHAPES, KINDS; q4_0 unless named) in `folder`, made there
    unless it exists: a minute and 0.7 GB of memory for 3B. Raises UserError for other names."""
    name, _, kind = spec.partition(":")
    kind = kind or DEFAULT_KIND
    if name not in SHAPES or kind not in KINDS:
        raise UserError(
            f"{spec}: not NAME:KIND with a name of {', '.join(SHAPES)} and a kind of "
            f"{', '.join(KINDS)}"
        )
    path = Path(folder) / f"{name}-{kind}.gguf"
    if not path.is_file():
        write_random(SHAPES[name], path, kind)
    return path


def write_random(config: ModelConfig, out: Path, kind: str, seed: int = 0) -> None:
    """A GGUF file of `config` with random weights; the same arguments give the same bytes."""
    with torch.device("meta"):
        parameters = Transformer(config).named_parameters()
    shapes = {name: tuple(p.shape) for name, p in parameters}
    blocks = RandomBlocks(config.init_std, seed)
    write_gguf(
        config,
        tokenizer_of_size(config.vocab_size),
        out,
        kind,
        shapes,
        lambda name, form: (
            quantize(np.ones(shapes[name], np.float32), form)  # norms
            if len(shapes[name]) == 1
            else blocks.take(form, math.prod(shapes[name]))
        ),
    )


class RandomBlocks:
    """Normal values of standard deviation `std`, in any format, faster than they can be drawn:
    every tensor is a stretch of the same blocks, from a random one on, repeated where it is longer.
    """

    def __init__(self, std: float, seed: int, values: int = CHUNK_VALUES) -> None:
        self.random = np.random.default_rng(seed)
        self.std, self.values = std, values
        self.chunks: dict[str, NDArray[np.uint8]] = {}

    def take(self, form: str, count: int) -> Bytes:
        """The bytes of `count` values."""
        size, block = FORMATS[form].dtype.itemsize, FORMATS[form].block
        if form not in self.chunks:
            # Not a multiple of a row's blocks: where the stretch repeats, rows do not.
            blocks = max(1, self.values // block - 3)
            drawn = self.random.standard_normal(blocks * block, np.float32) * np.float32(self.std)
            self.chunks[form] = quantize(drawn, form).reshape(blocks, size)
        chunk = self.chunks[form]
        begin = int(self.random.integers(len(chunk)))
        return np.resize(np.roll(chunk, -begin, axis=0), count // block * size)


def tokenizer_of_size(entries: int) -> Tokenizer:
    """SmolLM3's own where it fits and its byte strings are installed; else one of that many
    entries: all bytes, all pairs, and triples as far as they are needed."""
    if entries == tokenizer_build.PIECES + tokenizer_build.CONTROL_TOKENS and find_spec(
        tokenizer_build.PACKAGE
    ):
        with tempfile.TemporaryDirectory() as folder:
            return tokenizer_build.build(folder)
    count = entries - tokenizer_build.CONTROL_TOKENS
    pieces = [
        number.to_bytes(length, "big")
        for length in (1, 2, 3)
        for number in range(min(256**length, max(0, count)))
    ][:count]
    named = {"eos_token": "<|im_end|>", "pad_token": "<|finetune_right_pad_id|>"}
    return Tokenizer(tokenizer_build.tokenizer_json(pieces), named, default_template())
