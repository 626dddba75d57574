"""Folders for Apple's MLX: the Hugging Face layout, with 4-bit weights in MLX's own packing."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smollm3.checkpoint.hf import published_name, save_model, save_settings
from smollm3.checkpoint.weights import write_weights
from smollm3.errors import UserError
from smollm3.files import read_json, write_json
from smollm3.model import Transformer
from smollm3.tokenizer import Tokenizer

BITS, GROUP = 4, 64  # what mlx_lm.convert takes by default
LEVELS = 2**BITS - 1
ROWS = 4096  # quantised at once, so that a large embedding is not held four times in float32
PARTS = ("weight", "scales", "biases")


class Quantized(NamedTuple):
    """`weight[i, j] = scales[i, g] * code + biases[i, g]`, g = j // 64.

    weight: uint32 [rows, columns/8], eight 4-bit codes each, the first in the lowest bits.
    scales, biases: [rows, columns/64] in the dtype of the original.
    """

    weight: Tensor
    scales: Tensor
    biases: Tensor


def export_mlx(
    model: Transformer, tokenizer: Tokenizer, folder: str | Path, bits: Literal[4] | None = None
) -> None:
    """Write a folder that `mlx_lm` loads, in the model's dtype or with 4-bit matrices.

    Quantised are the embedding and every other matrix whose rows are multiples of 64, as
    `mlx_lm.convert -q` does; MLX itself is not needed.
    """
    folder = Path(folder)
    if bits is None:
        save_model(model, tokenizer, folder)
        return
    parameters = {published_name(name): p.detach() for name, p in model.named_parameters()}
    sizes: dict[str, int] = {}
    for name, p in parameters.items():
        if _divides(p):
            group_bytes = p.numel() // GROUP * p.itemsize
            sizes |= zip(_parts(name), (p.numel() // 2, group_bytes, group_bytes), strict=True)
        else:
            sizes[name] = p.numel() * p.itemsize

    @lru_cache(maxsize=1)  # the three parts of a matrix are asked for in a row
    def quantized(module: str) -> Quantized:
        try:
            return quantize(parameters[f"{module}.weight"].cpu())
        except ValueError as e:
            raise UserError(f"{module}.weight: {e}") from None

    def load(name: str) -> Tensor:
        module, part = name.rsplit(".", 1)
        if f"{module}.scales" not in sizes:
            return parameters[name].cpu()
        tensor: Tensor = getattr(quantized(module), part)
        return tensor

    save_settings(model.config, tokenizer, folder, next(iter(parameters.values())).dtype)
    write_weights(folder, sizes, load)
    settings = {"group_size": GROUP, "bits": BITS, "mode": "affine"}
    write_json(
        folder / "config.json", read_json(folder / "config.json") | {"quantization": settings}
    )


def quantize(weight: Tensor) -> Quantized:
    """MLX's affine quantisation of a [rows, columns] matrix, columns a multiple of 64.

    In each group of 64 the end of the range that is further from 0 is met exactly, and 0 is one of
    the 16 levels. Raises ValueError for NaN and infinities.
    """
    pieces = [_quantize_rows(rows) for rows in torch.split(weight, ROWS)]
    return Quantized(*(torch.cat(part) for part in zip(*pieces, strict=True)))


def _quantize_rows(weight: Tensor) -> Quantized:
    groups = weight.float().reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    if not bool((high - low).isfinite().all()):
        raise ValueError("has values that are not finite; a damaged model is not exported")
    downward = low.abs() > high.abs()
    scale = ((high - low) / LEVELS).clamp_min(1e-7)
    scale = torch.where(downward, scale, -scale)
    edge = torch.where(downward, low, high)
    # Codes count from the edge; the scale is changed a little so that a whole number reaches 0.
    steps = (edge / scale).round()
    reaches = steps != 0
    scale = torch.where(reaches, edge / steps, scale)
    bias = torch.where(reaches, edge, 0.0)
    codes = ((groups - bias) / scale).round().clamp(0, LEVELS).to(torch.uint8).flatten(-2)
    return Quantized(
        (codes[:, ::2] | codes[:, 1::2] << BITS).view(torch.uint32),
        scale.squeeze(-1).to(weight.dtype),
        bias.squeeze(-1).to(weight.dtype),
    )


def _divides(weight: Tensor) -> bool:
    return weight.ndim == 2 and weight.shape[1] % GROUP == 0


def _parts(name: str) -> list[str]:
    return [f"{name.removesuffix('.weight')}.{part}" for part in PARTS]
