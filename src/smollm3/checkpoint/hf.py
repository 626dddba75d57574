"""Hugging Face model folders: config.json, safetensors, tokenizer, generation_config.json."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.checkpoint import gguf
from smollm3.checkpoint.config import from_json, to_json
from smollm3.checkpoint.locate import locate
from smollm3.checkpoint.weights import Weights, torch_dtype, write_weights
from smollm3.errors import UserError
from smollm3.files import disk_errors, read_json, read_object, sha256_file, write_json
from smollm3.model import ModelConfig, Transformer, extend_context
from smollm3.tokenizer import Tokenizer

# Our names -> published names; a block's parts are prefixed `blocks.N.` -> `model.layers.N.`.
TOP_NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "unembed": "lm_head",
}
BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def published_name(ours: str) -> str:
    """`blocks.3.attention.q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    module = ours.removesuffix(".weight")
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.weight"
    _, layer, part = module.split(".", 2)
    return f"model.layers.{layer}.{BLOCK_NAMES[part]}.weight"


def load_config(target: str | Path) -> ModelConfig:
    """The network that `target`'s config.json, or GGUF file, describes. Of a Hub id only its
    config.json is fetched."""
    path = locate(target, ["config.json"])
    if path.is_file():
        return gguf.load_config(path)
    file = path / "config.json"
    return from_json(read_json(file), file)


def load_tokenizer(target: str | Path) -> Tokenizer:
    path = locate(target)
    return gguf.load_tokenizer(path) if path.is_file() else Tokenizer.load(path)


def load_model(
    target: str | Path,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    context: int | None = None,
) -> Transformer:
    """The model of a folder, GGUF file, run folder, Hub id or short name, in `dtype` on `device`.

    context: tokens it must hold; more than config.json says turns on YaRN (`extend_context`).
    Missing, unknown or mis-shaped tensors are a UserError that names the file and the tensor.
    """
    path = locate(target)
    wanted = torch_dtype(dtype)
    config = load_config(path)
    if context is not None:
        try:
            config = extend_context(config, context)
        except ValueError as e:
            raise UserError(f"{target}: {e}") from None
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    read = _reader(path, shapes, config)
    # Copies, not views of the mapped file: aligned memory gives the same bits however the
    # weights came here, and a file replaced under a running model harms nothing.
    state = {name: read(name).to(device=device, dtype=wanted, copy=True) for name in shapes}
    if model.config.tied:
        state["unembed.weight"] = state["embed.weight"]
    model.load_state_dict(state, assign=True)
    if model.config.tied:
        model.unembed.weight = model.embed.weight
    return model


def open_weights(target: str | Path) -> Callable[[str], Tensor]:
    """Reads `target`'s tensors one at a time by our names; they may live in mapped files: copy
    what you keep. Errors as of `load_model`."""
    path = locate(target)
    config = load_config(path)
    with torch.device("meta"):
        model = Transformer(config)
    return _reader(path, {name: tuple(p.shape) for name, p in model.named_parameters()}, config)


def stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    """The dtype of each tensor in a model's files, by our names; a GGUF's blocks are exact in
    float32 only."""
    with torch.device("meta"):
        names = [name for name, _ in Transformer(load_config(path)).named_parameters()]
    stored = {} if path.is_file() else Weights(path).dtypes
    return {name: torch_dtype(_plain(stored.get(published_name(name)))) for name in names}


def _plain(dtype: str | None) -> str:
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def _reader(
    path: Path, shapes: dict[str, tuple[int, ...]], config: ModelConfig
) -> Callable[[str], Tensor]:
    return gguf.open_weights(path, shapes, config) if path.is_file() else _open(path, shapes)


def _open(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Callable[[str], Tensor]:
    """Reads the tensors of `shapes`, by our names, which must be those of the files."""
    weights = Weights(folder)
    _check_names(folder, weights, {published_name(n): shape for n, shape in shapes.items()})
    return lambda name: weights[published_name(name)]


def _check_names(folder: Path, weights: Weights, expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        if name not in weights:
            raise UserError(f"{folder}: {name}: missing from the safetensors files")
        if weights.shapes[name] != shape:
            raise UserError(
                f"{weights.files[name]}: {name}: has shape {list(weights.shapes[name])}, "
                f"config.json says {list(shape)}"
            )
    for name, file in weights.files.items():
        if name in expected or name.endswith("rotary_emb.inv_freq"):  # old Llama files keep tables
            continue
        if name != HEAD:
            raise UserError(f"{file}: {name}: unknown tensor; config.json does not describe it")
        if not torch.equal(weights[HEAD], weights[EMBEDDING]):
            raise UserError(
                f"{file}: {HEAD}: differs from the embedding, but config.json ties them; "
                "set tie_word_embeddings to false"
            )


def save_model(
    model: Transformer,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: str | None = None,
    *,
    parent: Path | None = None,
) -> None:
    """Write a Hugging Face folder that transformers, vLLM, mlx-lm and llama.cpp's converter read.

    dtype: of the written weights; None keeps the model's. parent: the model that it was made
    from, whose way to sample it keeps. The same model gives the same bytes.
    """
    folder = Path(folder)
    parameters = {published_name(name): p.detach() for name, p in model.named_parameters()}
    first = next(iter(parameters.values()))
    written = first.dtype if dtype is None else torch_dtype(dtype)
    sizes = {name: p.numel() * written.itemsize for name, p in parameters.items()}

    def load(name: str) -> Tensor:
        return parameters[name].to(device="cpu", dtype=written)

    save_settings(model.config, tokenizer, folder, written, parent)
    write_weights(folder, sizes, load)


def save_settings(
    config: ModelConfig,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: torch.dtype,
    parent: Path | None = None,
) -> None:
    """Write all of a model folder but its weights, which are in `dtype`; parent: as of
    `save_model`."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} entries, the model only {config.vocab_size}"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    ids = {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.stop_ids[0],
        "pad_token_id": tokenizer.pad_id,
    }
    write_json(folder / "config.json", to_json(config, str(dtype).removeprefix("torch.")) | ids)
    # How the parent samples, or else as published; and every token that ends an answer.
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    if parent is not None and (own := parent / "generation_config.json").is_file():
        sampling = {k: v for k, v in read_object(own).items() if k not in ids}
    write_json(
        folder / "generation_config.json",
        ids | sampling | {"eos_token_id": list(tokenizer.stop_ids)},
    )


def digest(folder: str | Path) -> str:
    """sha256 over what decides the model's answers: config, weights, tokenizer and template."""
    folder = Path(folder)
    if folder.is_file():  # GGUF: all in one
        return sha256_file(folder)
    names = {"config.json", "tokenizer.json", "chat_template.jinja"}
    names |= {path.name for path in folder.glob("*.safetensors")}
    total = hashlib.sha256()
    for name in sorted(names):
        if (folder / name).exists():
            total.update(f"{name} {sha256_file(folder / name)}\n".encode())
    return total.hexdigest()
