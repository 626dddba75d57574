"""Linear merges and soups of checkpoints, and adapters merged into their base, streamed tensor by
tensor."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from smollm3.checkpoint import (
    load_config,
    load_tokenizer,
    locate,
    open_weights,
    published_name,
    save_settings,
    stored_dtypes,
)
from smollm3.checkpoint.adapter import read_adapter
from smollm3.checkpoint.weights import torch_dtype, write_weights
from smollm3.errors import UserError
from smollm3.files import disk_errors
from smollm3.model import ModelConfig, Transformer

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def merge(parents: Mapping[Path, float], out: Path) -> None:
    """Write to `out` the mean of the parents' tensors, weighted by `parents`.

    Each tensor is sum(w * t) / sum(w), computed in float32 and written in the dtype of the first
    parent, which also gives the config and the tokenizer (Wortsman et al. 2022, arXiv:2203.05482;
    SmolLM3 is 0.9 x a soup of preference checkpoints + 0.1 x a long-context one). Raises UserError
    for a weight that is not above 0, or parents whose networks or vocabularies differ: the mean of
    such models is no model.
    """
    if not parents:
        raise UserError("merge: no parents given")
    for folder, weight in parents.items():
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"merge: the weight of {folder} is {weight}; it must be above 0")
    total = math.fsum(parents.values())
    first, *others = parents
    for other in others:
        _check_alike(first, other)
    sources = [(open_weights(folder), weight / total) for folder, weight in parents.items()]
    config = load_config(first)
    shapes = _shapes(config)

    def merged(name: str) -> Tensor:
        mean = torch.zeros(shapes[name])
        for read, share in sources:
            mean.add_(read(name), alpha=share)
        return mean

    if first.is_file():  # a GGUF: its settings are not files
        save_settings(config, load_tokenizer(first), out, torch.float32)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for file in COPIED:
            if (first / file).exists():
                shutil.copyfile(first / file, out / file)
    _write(config, merged, stored_dtypes(first), out)


def merge_adapter(base: str | Path, adapter: Path, out: Path, dtype: str | None = None) -> None:
    """Write to `out` the model `base` with an adapter (a folder in PEFT's format) merged into it.

    dtype: of the written weights; None: those of the base's files, float32 where they are blocks.
    """
    folder = locate(base)
    config, found = load_config(folder), read_adapter(adapter)
    whole = found.whole
    if (
        config.tied
        and whole
        and not (len(whole) == 2 and torch.equal(whole["embed.weight"], whole["unembed.weight"]))
    ):
        raise UserError(
            f"{adapter}: embedding and head were trained apart, but the base ties them; merge "
            "it where they are apart (tie_word_embeddings: false)"
        )
    found.check(config)
    dtypes = stored_dtypes(folder)
    if dtype is not None:
        dtypes = dict.fromkeys(dtypes, torch_dtype(dtype))
    save_settings(config, load_tokenizer(folder), out, dtypes["embed.weight"], folder)
    _write(config, found.over(open_weights(folder)), dtypes, out)


def _write(
    config: ModelConfig,
    read: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
    out: Path,
) -> None:
    """Weights `read(our name)`, in `dtypes` by our names."""
    ours = {published_name(name): (name, shape) for name, shape in _shapes(config).items()}
    sizes = {file: shape.numel() * dtypes[name].itemsize for file, (name, shape) in ours.items()}

    def load(file: str) -> Tensor:
        name, _ = ours[file]
        return read(name).to(dtypes[name])

    write_weights(out, sizes, load)


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """By our names."""
    with torch.device("meta"):
        return {name: p.shape for name, p in Transformer(config).named_parameters()}


def _check_alike(first: Path, other: Path) -> None:
    ours, theirs = load_config(first), load_config(other)
    theirs = replace(theirs, context=ours.context, init_std=ours.init_std)
    for key in ModelConfig.__dataclass_fields__:
        if getattr(ours, key) != getattr(theirs, key):
            raise UserError(
                f"merge: {key} is {_short(getattr(ours, key))} in {first} but "
                f"{_short(getattr(theirs, key))} in {other}; merge models of one family"
            )
    if not load_tokenizer(first).numbers_like(load_tokenizer(other)):
        raise UserError(
            f"merge: the tokenizers of {first} and {other} number other tokens; the mean of their "
            "embeddings means nothing"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
