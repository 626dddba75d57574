"""Adapters on disk, in the format of the library PEFT: adapter_config.json and a safetensors file.

An adapter is what a fine-tune adds to a model that stays as it is (LoRA: Hu et al. 2021,
arXiv:2106.09685). Everybody who applies one gets it from here: training, merging, and other
programs through the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.checkpoint.hf import BLOCK_NAMES, EMBEDDING, HEAD, published_name
from smollm3.checkpoint.locate import ADAPTER, check_files
from smollm3.checkpoint.weights import Weights
from smollm3.errors import UserError
from smollm3.files import read_object, write_json
from smollm3.model import ModelConfig
from smollm3.tensors import write_tensors

STEM = "adapter_model"
_PREFIX = "base_model.model."
_PARTS = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "magnitude"}
_ENDINGS = {part: ending for ending, part in _PARTS.items()}
# What PEFT's configuration may say beyond LoRA as it is here, with the only value understood.
_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "lora_bias": False,
    "use_qalora": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}


@dataclass(frozen=True)
class AdapterLayer:
    """What is added to one linear layer of [out, in]: a [rank, in], b [out, rank], and DoRA's
    magnitude [out]."""

    a: Tensor
    b: Tensor
    magnitude: Tensor | None = None

    def merged(self, weight: Tensor, scale: float) -> Tensor:
        """The one weight [out, in], float32, that does what layer and adapter do.

        LoRA: W + s·B·A. DoRA (Liu et al. 2024, arXiv:2402.09353 eq. 5): its rows scaled to the
        lengths that magnitude says.
        """
        whole = self._sum(weight, scale)
        if self.magnitude is None:
            return whole
        return whole * self.lengths(weight, scale)[:, None]

    def lengths(self, weight: Tensor, scale: float) -> Tensor:
        """[out]: what DoRA multiplies each output of the plain sum by."""
        assert self.magnitude is not None
        found: Tensor = self.magnitude.float() / self._sum(weight, scale).norm(dim=1)
        return found

    def _sum(self, weight: Tensor, scale: float) -> Tensor:
        found: Tensor = weight.float() + scale * (self.b.float() @ self.a.float())
        return found


@dataclass(frozen=True)
class AdapterWeights:
    """kind: lora, rslora or dora. layers: by our name of the linear layer, such as
    `blocks.3.attention.q`. whole: weights in place of the base's, by our names (embeddings).
    base: the model it was made for, as its maker called it."""

    kind: str
    rank: int
    alpha: float
    layers: dict[str, AdapterLayer]
    whole: dict[str, Tensor] = field(default_factory=dict)
    base: str | None = None

    @property
    def scale(self) -> float:
        return scale(self.kind, self.rank, self.alpha)

    def check(self, config: ModelConfig) -> None:
        """Raises UserError unless its layers are those of such a model."""
        shapes = config.linear_shapes
        for name in self.layers.keys() - shapes.keys():
            raise UserError(f"adapter: {name}: the base has no such layer; take its own")
        for name in shapes.keys() & self.layers.keys():
            own = self.layers[name].b.shape[0], self.layers[name].a.shape[1]
            if own != shapes[name]:
                raise UserError(
                    f"adapter: {name}: is for a weight of {list(own)}, the model's is "
                    f"{list(shapes[name])}; take its own base"
                )

    def after(self, earlier: AdapterWeights) -> AdapterWeights | None:
        """The one adapter, of `earlier`'s base, that does what `earlier` and then this one do:
        their ranks beside each other. None for DoRA and embeddings, which no sum says."""
        pair = (earlier, self)
        if any(one.kind == "dora" or one.whole for one in pair):
            return None
        layers = {}
        for name in earlier.layers.keys() | self.layers.keys():
            known = next(one.layers[name] for one in pair if name in one.layers)
            columns, rows = known.a.shape[1], known.b.shape[0]
            a, b = [], []
            for one in pair:
                layer = one.layers.get(name)
                a.append(layer.a.float() if layer else torch.zeros(one.rank, columns))
                b.append(layer.b.float() * one.scale if layer else torch.zeros(rows, one.rank))
            layers[name] = AdapterLayer(torch.cat(a), torch.cat(b, 1))
        rank = earlier.rank + self.rank
        return AdapterWeights("lora", rank, float(rank), layers, base=earlier.base)

    def over(self, read: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        """`read` by our names, as of the model with this adapter merged into it; see `check`."""

        def merged(name: str) -> Tensor:
            if name in self.whole:
                return self.whole[name]
            layer = self.layers.get(name.removesuffix(".weight"))
            weight = read(name)
            return weight if layer is None else layer.merged(weight, self.scale)

        return merged


def scale(kind: str, rank: int, alpha: float) -> float:
    """alpha/r; of rsLoRA alpha/sqrt(r) (Kalajdzievski 2023, arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if kind == "rslora" else rank)


def write_adapter(folder: Path, adapter: AdapterWeights) -> None:
    """Write the files that PEFT reads; the same adapter gives the same bytes."""
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter.layers.items():
        module = _PREFIX + published_name(f"{name}.weight").removesuffix("weight")
        for part, ending in _ENDINGS.items():
            tensor = getattr(layer, part)
            if tensor is not None:
                tensors[module + ending] = tensor
    modules = sorted({n.split(".")[-3] for n in tensors if n.endswith(_ENDINGS["a"])})
    for name, tensor in adapter.whole.items():
        tensors[_PREFIX + published_name(name)] = tensor
    write_tensors(folder / f"{STEM}.safetensors", tensors, {"format": "pt"})
    write_json(
        folder / ADAPTER,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": adapter.base,
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": 0.0,
            "use_rslora": adapter.kind == "rslora",
            "use_dora": adapter.kind == "dora",
            "target_modules": modules,
            "modules_to_save": sorted(published_name(n).split(".")[-2] for n in adapter.whole)
            or None,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
        },
    )


def read_adapter(folder: Path) -> AdapterWeights:
    """The adapter in a folder that PEFT, or `write_adapter`, has written.

    Raises UserError, naming the file and the key, for what is damaged and what this network could
    not apply (other methods than LoRA, biases, ranks that differ by layer).
    """
    check_files(folder)
    file = folder / ADAPTER
    config = read_object(file)
    for key, only in _PLAIN.items():
        if config.get(key, only) not in (only, None):
            raise UserError(f"{file}: {key}: {config[key]!r:.60} is not supported, only {only!r}")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UserError(f"{file}: r: must be a whole number of at least 1, not {rank!r:.60}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise UserError(f"{file}: lora_alpha: must be a number, not {alpha!r:.60}")
    kind = "rslora" if config.get("use_rslora") else "dora" if config.get("use_dora") else "lora"
    if config.get("use_rslora") and config.get("use_dora"):
        raise UserError(f"{file}: use_rslora and use_dora together are not supported")
    layers, whole = _read_tensors(Weights(folder, STEM), rank, kind == "dora")
    base = config.get("base_model_name_or_path")
    return AdapterWeights(
        kind, rank, float(alpha), layers, whole, base if isinstance(base, str) else None
    )


def _read_tensors(
    weights: Weights, rank: int, dora: bool
) -> tuple[dict[str, AdapterLayer], dict[str, Tensor]]:
    ours = {published: part for part, published in BLOCK_NAMES.items()}
    parts: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for name, file in weights.files.items():
        published = name.removeprefix(_PREFIX)
        if published in (EMBEDDING, HEAD):
            whole["embed.weight" if published == EMBEDDING else "unembed.weight"] = weights[name]
            continue
        ending = next((e for e in _PARTS if published.endswith(f".{e}")), None)
        module = published.removesuffix(f".{ending}").removeprefix("model.layers.")
        layer, _, part = module.partition(".")
        if ending is None or not layer.isdecimal() or part not in ours or "norm" in part:
            raise UserError(f"{file}: {name}: is no part of an adapter of a linear layer")
        parts.setdefault(f"blocks.{layer}.{ours[part]}", {})[_PARTS[ending]] = weights[name]
    layers = {}
    for name, tensors in parts.items():
        expected = {"a", "b"} | ({"magnitude"} if dora else set())
        if tensors.keys() != expected:
            raise UserError(f"adapter: {name}: has {sorted(tensors)}, not {sorted(expected)}")
        layer_ = AdapterLayer(tensors["a"], tensors["b"], tensors.get("magnitude"))
        shapes = layer_.a.shape, layer_.b.shape
        good = len(shapes[0]) == len(shapes[1]) == 2 and shapes[0][0] == shapes[1][1] == rank
        if not good or (dora and tuple(tensors["magnitude"].shape) != (shapes[1][0],)):
            raise UserError(f"adapter: {name}: its tensors do not fit a rank of {rank}")
        layers[name] = layer_
    if not layers and not whole:
        raise UserError("adapter: holds no layers")
    return layers, whole
