"""GGUF files of the architectures `smollm3` and `llama` as our model and tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from smollm3.checkpoint.config import MAX_LAYERS
from smollm3.checkpoint.gguf.names import NOPE_EVERY, ROTATED, gguf_name, to_halves
from smollm3.checkpoint.gguf.reader import Gguf, open_gguf
from smollm3.checkpoint.gguf.vocab import read_tokenizer
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Yarn, nope_pattern
from smollm3.tokenizer import Tokenizer

YARN_KEYS = (
    "type",
    "factor",
    "original_context_length",
    "finetuned",
    "yarn_beta_fast",
    "yarn_beta_slow",
)


def load_config(path: Path) -> ModelConfig:
    """The network that the metadata of a GGUF file describes."""
    return _config(open_gguf(path))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer and chat template inside a GGUF file."""
    return read_tokenizer(open_gguf(path))


def open_weights(
    path: Path, shapes: dict[str, tuple[int, ...]], config: ModelConfig
) -> Callable[[str], Tensor]:
    """Reads the tensors of `shapes`, by our names, as float32 in our row order; a UserError where
    the file holds others."""
    file = open_gguf(path)
    _check_tensors(file, {gguf_name(name): shape for name, shape in shapes.items()})

    def read(name: str) -> Tensor:
        weight = torch.from_numpy(file.read(gguf_name(name)))
        return to_halves(weight, config.head_dim) if name.endswith(ROTATED) else weight

    return read


def _check_tensors(file: Gguf, expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in file.tensors:
            raise file.fail(name, "missing")
        if file.tensors[name].shape != shape:
            found = list(file.tensors[name].shape)
            raise file.fail(name, f"has shape {found}, the metadata say {list(shape)}")
    for name in file.tensors:
        if name == "rope_freqs.weight":
            raise file.fail(name, "RoPE scaling as in Llama 3.1 is not supported")
        if name not in expected:
            raise file.fail(name, "unknown tensor; the network has none of this name")


def _config(file: Gguf) -> ModelConfig:
    """Sizes are held against the tensors first: the model is never larger than the file."""
    arch: str = file.get("general.architecture", str)
    if arch not in NOPE_EVERY:
        raise file.fail(
            "general.architecture", f"{arch!r} is not supported, only smollm3 and llama"
        )

    def positive(key: str, default: int | None = None) -> int:
        return file.positive(f"{arch}.{key}", default)

    layers, hidden, ffn = (
        positive(key) for key in ("block_count", "embedding_length", "feed_forward_length")
    )
    heads = positive("attention.head_count")
    kv_heads = positive("attention.head_count_kv", heads)
    head_dim = positive("attention.key_length", hidden // heads or None)
    if file.metadata.get(f"{arch}.expert_count", 0) != 0:
        raise file.fail(f"{arch}.expert_count", "mixtures of experts are not supported")
    if "token_embd.weight" not in file.tensors:
        raise file.fail("token_embd.weight", "missing")
    vocab_size = file.tensors["token_embd.weight"].shape[0]
    sizes = {
        "token_embd.weight": (vocab_size, hidden),
        "blk.0.ffn_gate.weight": (ffn, hidden),
        "blk.0.attn_q.weight": (heads * head_dim, hidden),
        "blk.0.attn_k.weight": (kv_heads * head_dim, hidden),
    }
    for name, shape in sizes.items():
        if name not in file.tensors or file.tensors[name].shape != shape:
            raise file.fail(name, f"missing, or not of shape {list(shape)} as the metadata say")
    for key in ("attention.value_length", "rope.dimension_count"):
        if positive(key, head_dim) != head_dim:
            raise file.fail(f"{arch}.{key}", f"only the head size, {head_dim}, is supported")
    if layers > min(len(file.tensors), MAX_LAYERS):
        raise file.fail(f"{arch}.block_count", f"{layers} layers, {len(file.tensors)} tensors")
    context, yarn = _context(file, arch)
    try:
        return ModelConfig(
            vocab_size=vocab_size,
            layers=layers,
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            ffn=ffn,
            uses_rope=nope_pattern(layers, NOPE_EVERY[arch]),
            rope_theta=file.number(f"{arch}.rope.freq_base", 10_000.0),
            context=context,
            norm_eps=file.number(f"{arch}.attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in file.tensors,
            yarn=yarn,
        )
    except ValueError as e:
        raise UserError(f"{file.path}: {e}") from None


def _context(file: Gguf, arch: str) -> tuple[int, Yarn | None]:
    """Tokens of context, and YaRN; `context_length` is the length after scaling."""
    context = file.positive(f"{arch}.context_length")
    prefix = f"{arch}.rope.scaling"
    kind: str = file.get(f"{prefix}.type", str, "none")
    if kind == "none":
        return context, None
    known = {f"{prefix}.{key}" for key in YARN_KEYS}
    for key in file.metadata:
        if key.startswith(prefix) and key not in known:
            raise file.fail(key, "is not supported")
    if kind != "yarn":
        raise file.fail(f"{prefix}.type", f"{kind!r} is not supported, only none and yarn")
    return context, Yarn(
        factor=file.number(f"{prefix}.factor"),
        original_context=file.positive(f"{prefix}.original_context_length"),
        beta_fast=file.number(f"{prefix}.yarn_beta_fast", 32.0),
        beta_slow=file.number(f"{prefix}.yarn_beta_slow", 1.0),
    )
