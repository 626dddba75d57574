"""Our model and tokenizer as a GGUF file for llama.cpp, through the `gguf` package."""

from __future__ import annotations

import errno
import glob
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from smollm3.checkpoint.gguf.imatrix import Importance
from smollm3.checkpoint.gguf.names import NOPE_EVERY, ROTATED, gguf_name, to_pairs
from smollm3.checkpoint.gguf.quantize import quantize
from smollm3.checkpoint.gguf.quants import FORMATS, Bytes, Floats
from smollm3.checkpoint.gguf.vocab import add_tokenizer
from smollm3.errors import UserError
from smollm3.files import new_file, sweep
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

# Kind of file -> the type of most matrices, and llama.cpp's number for the kind.
KINDS = {
    "f32": ("F32", 0),
    "f16": ("F16", 1),
    "bf16": ("BF16", 32),
    "q8_0": ("Q8_0", 7),
    "q4_0": ("Q4_0", 2),
    "q4_k_m": ("Q4_K", 15),
}
# Where rows are not multiples of 256 llama.cpp takes types with blocks of 32 of one bit more.
FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
FLOAT16_MAX = 65504.0


def export_gguf(
    model: Transformer,
    tokenizer: Tokenizer,
    out: str | Path,
    kind: str,
    importance: Importance | None = None,
) -> None:
    """Write `out` as one of KINDS; the file appears whole or not at all. importance: of the input
    columns, for kinds below 8 bits.

    The same model gives the same bytes. Raises UserError for what llama.cpp could not run: another
    NoPE pattern than every 4th layer or none, rows that are not whole blocks, a tokenizer that it
    does not know.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    head_dim, weights = model.config.head_dim, importance or {}
    for name, p in parameters.items():
        given = weights.get(gguf_name(name))
        if given is not None and len(given) != p.shape[-1]:
            raise UserError(
                f"the importance matrix has {len(given)} columns for {gguf_name(name)}, the model "
                f"{p.shape[-1]}; make it with this model"
            )
    write_gguf(
        model.config,
        tokenizer,
        Path(out),
        kind,
        {name: tuple(p.shape) for name, p in parameters.items()},
        lambda name, form: _encoded(
            name, parameters[name], form, head_dim, weights.get(gguf_name(name))
        ),
    )


def write_gguf(
    config: ModelConfig,
    tokenizer: Tokenizer,
    out: Path,
    kind: str,
    shapes: dict[str, tuple[int, ...]],
    encode: Callable[[str, str], Bytes],
) -> None:
    """As `export_gguf`, for tensors by our names whose bytes `encode(name, format)` makes when
    their turn comes."""
    gguf = _package()
    if kind not in KINDS:
        raise UserError(f"{kind!r} is not one of the GGUF kinds {', '.join(KINDS)}")
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {config.vocab_size}"
        )
    arch = architecture(config)
    formats = {name: tensor_format(name, shape, kind, config) for name, shape in shapes.items()}
    sweep(out.parent, glob.escape(out.name))
    with new_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, arch)
        with closing(writer):
            _add_config(writer, config)
            writer.add_file_type(KINDS[kind][1])
            writer.add_quantization_version(2)
            add_tokenizer(writer, tokenizer, config.vocab_size)
            for name, shape in shapes.items():
                form = FORMATS[formats[name]]
                size = math.prod(shape) // form.block * form.dtype.itemsize
                raw = gguf.GGMLQuantizationType(form.ggml)
                writer.add_tensor_info(gguf_name(name), shape, np.dtype("f4"), size, raw)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, encoded_as in formats.items():
                _write(writer, encode(name, encoded_as))


def _package() -> ModuleType:
    try:
        import gguf
    except ImportError:
        raise UserError("writing GGUF needs the package gguf; pip install gguf") from None
    return gguf


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name for the network; UserError where it has none."""
    for arch, nope_every in NOPE_EVERY.items():
        if config.uses_rope == nope_pattern(config.layers, nope_every):
            return arch
    nope = [i for i, uses_rope in enumerate(config.uses_rope) if not uses_rope]
    raise UserError(
        f"GGUF cannot hold NoPE on layers {nope}: llama.cpp fixes it at every 4th layer (3, 7, ...)"
    )


def tensor_format(name: str, shape: tuple[int, ...], kind: str, config: ModelConfig) -> str:
    """The type of a tensor, by llama.cpp's rules for `kind`.

    Norms stay F32. Of a file below 8 bits the matrix that makes the logits (the embedding, when
    tied) is Q6_K, and of Q4_K_M the v and down projections of some layers too: the first and last
    eighth and every third between.
    """
    form, _ = KINDS[kind]
    if len(shape) == 1:
        return "F32"
    row = shape[-1]
    makes_logits = name == ("embed.weight" if config.tied else "unembed.weight")
    if makes_logits and kind in ("q4_0", "q4_k_m"):
        form = "Q6_K"
    elif kind == "q4_k_m" and name.endswith(("attention.v.weight", "ffn.down.weight")):
        layer, eighth = int(name.split(".")[1]), config.layers // 8
        last = layer >= 7 * config.layers // 8
        if layer < eighth or last or (layer - eighth) % 3 == 2:
            form = "Q6_K"
    if row % FORMATS[form].block and form in FALLBACK:
        form = FALLBACK[form]
        if row % FORMATS[form].block:
            return "F16"
    if row % FORMATS[form].block:
        raise UserError(
            f"{gguf_name(name)}: rows of {row} values are not whole {form} blocks of "
            f"{FORMATS[form].block}; export as f16 or bf16"
        )
    return form


def _add_config(writer: GGUFWriter, config: ModelConfig) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.layers)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    if config.heads * config.head_dim != config.hidden:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    if config.yarn is not None:
        prefix = f"{writer.arch}.rope.scaling"
        writer.add_string(f"{prefix}.type", "yarn")
        writer.add_float32(f"{prefix}.factor", config.yarn.factor)
        writer.add_uint32(f"{prefix}.original_context_length", config.yarn.original_context)
        writer.add_float32(f"{prefix}.yarn_beta_fast", config.yarn.beta_fast)
        writer.add_float32(f"{prefix}.yarn_beta_slow", config.yarn.beta_slow)


def _write(writer: GGUFWriter, data: Bytes) -> None:
    try:
        writer.write_tensor_data(data)
    except OSError as e:  # numpy reports a short write, as on a full disk, without a reason
        raise OSError(e.errno or errno.ENOSPC, str(e)) from e


def _encoded(
    name: str, weight: Tensor, form: str, head_dim: int, importance: Floats | None
) -> Bytes:
    if name.endswith(ROTATED):
        weight = to_pairs(weight, head_dim)
    values = weight.float().cpu().numpy()
    largest = float(np.abs(values).max())
    if not np.isfinite(largest):
        raise UserError(f"{name}: holds NaN or infinity; the model is damaged")
    if largest > FLOAT16_MAX and form not in ("F32", "BF16"):
        raise UserError(f"{name}: {largest:g} is too large for {form}; export as bf16")
    return quantize(values, form, importance)
