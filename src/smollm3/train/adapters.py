"""Adapters: a model that stays as it is, and the few weights beside it that are trained.

Applied to a model and not written into it. LoRA (arXiv:2106.09685): y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with W
frozen; DoRA (arXiv:2402.09353) scales each output by m / |W + s·B·A|, the length taken as a
constant. The frozen W may be held in 4 bits (QLoRA, arXiv:2305.14314).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smollm3.checkpoint.adapter import AdapterLayer, AdapterWeights, scale
from smollm3.model import ModelConfig, Transformer
from smollm3.train.parts import Read
from smollm3.train.spec import Adapter

MODULES = {
    **dict.fromkeys(("q", "k", "v", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "down"), "ffn"),
}
BLOCK = 64  # weights that share a scale, as published


class Adapted(nn.Module):
    """A frozen linear layer with its adapter. Parameters: weight [out, in], unless it is held in
    4 bits; a [rank, in]; b [out, rank]; DoRA's magnitude [out]."""

    def __init__(self, linear: nn.Linear, spec: Adapter) -> None:
        """linear: without memory (on the meta device), as this then is; see `adapted`."""
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.weight: nn.Parameter | None = nn.Parameter(linear.weight, requires_grad=False)
        self.four_bits: FourBits | None = None
        self.a = nn.Parameter(torch.empty(spec.rank, inputs, device="meta"))
        self.b = nn.Parameter(torch.empty(outputs, spec.rank, device="meta"))
        self.magnitude = (
            nn.Parameter(torch.empty(outputs, device="meta")) if spec.kind == "dora" else None
        )
        self.scale = scale(spec.kind, spec.rank, spec.alpha)

    def forward(self, x_BTE: Tensor) -> Tensor:
        h_BTR = F.linear(x_BTE, self.a)
        if self.four_bits is None:
            assert self.weight is not None
            base = F.linear(x_BTE, self.weight)
        else:
            base = self.four_bits(x_BTE)
        # One operation, without a product and a sum of this size in memory beside it.
        out = torch.addmm(
            base.flatten(0, -2), h_BTR.flatten(0, -2), self.b.T, alpha=self.scale
        ).view_as(base)
        if self.magnitude is not None:
            with torch.no_grad(), torch.autocast(x_BTE.device.type, enabled=False):
                length = torch.addmm(self.frozen(), self.b, self.a, alpha=self.scale).norm(dim=1)
            out = out * (self.magnitude / length).to(out.dtype)
        return out

    def frozen(self) -> Tensor:
        """The base's weight, [out, in] float32."""
        if self.four_bits is not None:
            return self.four_bits.weight(torch.float32)
        assert self.weight is not None
        return self.weight.detach().float()

    def layer(self) -> AdapterLayer:
        magnitude = None if self.magnitude is None else self.magnitude.detach()
        return AdapterLayer(self.a.detach(), self.b.detach(), magnitude)


def adapted(
    config: ModelConfig, spec: Adapter, read: Read, *, half: bool, device: torch.device
) -> Transformer:
    """A model of which only the adapter is trained.

    read: the base's weights, and each `a` at its start (`initial`); `b` starts at 0, so that the
    first step sees the base. half: hold the frozen matrices of the blocks in bfloat16. One
    matrix at a time is in memory in float32.
    """
    with torch.device("meta"):
        model = Transformer(config)
    model.requires_grad_(False)
    if spec.embeddings:
        model.embed.requires_grad_(True)
        model.unembed.requires_grad_(True)
    for block in model.blocks:
        for layer in spec.layers:
            parent = getattr(block, MODULES[layer])
            setattr(parent, layer, Adapted(getattr(parent, layer), spec))
    for name, parameter in list(model.named_parameters()):
        module, leaf = _owner(model, name)
        shape = tuple(parameter.shape)
        if leaf == "magnitude":
            continue  # after the weight whose lengths it starts with, which comes before it
        whole = tuple(slice(0, size) for size in shape)
        value = torch.zeros(shape) if leaf == "b" else read(name, shape, whole)
        if leaf == "weight" and isinstance(module, Adapted) and spec.base == "nf4":
            module.weight = None
            module.four_bits = FourBits(value.to(device))
        else:
            dtype = torch.bfloat16 if half and _is_frozen_matrix(name, parameter) else torch.float32
            value = value.to(device=device, dtype=dtype, copy=True)
            setattr(module, leaf, nn.Parameter(value, requires_grad=parameter.requires_grad))
        if leaf == "b" and isinstance(module, Adapted) and module.magnitude is not None:
            module.magnitude = nn.Parameter(module.frozen().norm(dim=1))
    if config.tied:
        model.unembed.weight = model.embed.weight
    return model


def initial(read: Read, seed: int) -> Read:
    """`read` for the base, and what each `a` starts with: uniform within ±1/sqrt(in), as PEFT's, a
    function of (seed, name)."""

    def reading(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
        if not name.endswith(".a"):
            return read(name, shape, part)
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)[part]

    return reading


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name: all of them, or an adapter's."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def interpolated(model: nn.Module, began: Read, ended: Mapping[str, Tensor], share: float) -> Read:
    """Each trained tensor on the way from the parent's (0) to where it ended (1).

    began: the weights before the first step. An adapter's `a` stays where it ended, as its product
    with `b`, which began at 0, is what moves the weight: at share x it is W + x·s·B·A.
    """

    def reading(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
        end: Tensor = ended[name][part].float()
        module, leaf = _owner(model, name)
        if not isinstance(module, Adapted):
            return began(name, shape, part).float().lerp(end, share)
        match leaf:
            case "a":
                return end
            case "b":
                return end * share
            case _:
                lengths: Tensor = module.frozen().norm(dim=1)
                return lengths.cpu()[part].lerp(end, share)

    return reading


def weights_of(model: Transformer, spec: Adapter) -> AdapterWeights:
    """The adapter of an adapted model, to be written or merged."""
    layers = {
        name: module.layer()
        for name, module in model.named_modules()
        if isinstance(module, Adapted)
    }
    whole: dict[str, Tensor] = {}
    if spec.embeddings:
        whole = {"embed.weight": model.embed.weight.detach()}
        whole["unembed.weight"] = model.unembed.weight.detach().clone()  # it may be the same one
    return AdapterWeights(spec.kind, spec.rank, spec.alpha, layers, whole)


@torch.no_grad()
def merge_(model: Transformer) -> None:
    """Make a plain model of an adapted one, in place, one matrix at a time; the matrices keep the
    dtype in which they were held (float32, where that was 4 bits)."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, Adapted):
            continue
        dtype = torch.float32 if module.weight is None else module.weight.dtype
        weight = module.layer().merged(module.frozen(), module.scale).to(dtype)
        if module.four_bits is not None:  # a card that holds it in 4 bits may not in 32
            weight = weight.cpu()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight)
        parent, leaf = _owner(model, name)
        setattr(parent, leaf, linear)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has a parameter or module, and its name there."""
    module, _, leaf = name.rpartition(".")
    return model.get_submodule(module), leaf


def _is_frozen_matrix(name: str, parameter: nn.Parameter) -> bool:
    return name.startswith("blocks.") and parameter.ndim == 2 and not parameter.requires_grad


class FourBits(nn.Module):
    """A matrix in NormalFloat4: 16 levels that a normal distribution fills alike, and one bfloat16
    scale for BLOCK weights (QLoRA, section 3 and appendix E); 4.25 bits a weight.

    forward: x·Wᵀ. The matrix is made again for each product, forward and backward.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        levels = torch.tensor(normal_float_levels(), device=weight.device)
        flat = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        largest = flat.abs().amax(1, keepdim=True).to(torch.bfloat16)
        scaled = flat / largest.float().clamp(min=torch.finfo(torch.float32).tiny)
        middles = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(scaled.flatten(), middles).to(torch.uint8)
        self.codes: Tensor
        self.scales: Tensor
        self.levels: Tensor
        self.register_buffer("codes", codes[::2] | codes[1::2] << 4)
        self.register_buffer("scales", largest)
        # What each byte of two codes stands for, the lower four bits first.
        self.register_buffer("levels", torch.cartesian_prod(levels, levels).flip(1).contiguous())

    def weight(self, dtype: torch.dtype) -> Tensor:
        # Two weights move as one number of 8 bytes. Not `[codes]`, whose places have 8 bytes each.
        pairs = self.levels.view(torch.int64).flatten().index_select(0, self.codes.int())
        values = pairs.view(torch.float32).view(-1, BLOCK).mul_(self.scales.float())
        return values.flatten()[: math.prod(self.shape)].view(self.shape).to(dtype)

    def forward(self, x_BTE: Tensor) -> Tensor:
        kind = x_BTE.device.type
        if torch.is_autocast_enabled(kind):
            x_BTE = x_BTE.to(torch.get_autocast_dtype(kind))
        product: Tensor = _Product.apply(x_BTE, self)  # type: ignore[no-untyped-call]
        return product


class _Product(torch.autograd.Function):
    """x·Wᵀ that keeps neither x, which has no weight to learn, nor W in more than 4 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: FourBits) -> Tensor:
        ctx.matrix = matrix
        return x @ matrix.weight(x.dtype).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.matrix.weight(grad.dtype), None


def normal_float_levels() -> list[float]:
    """The 16 levels: quantiles of the standard normal distribution, eight above 0 and seven below
    it, divided by the largest; 0 is one of them. Where the outermost quantiles lie
    is the mean of 1 - 1/32 and 1 - 1/30."""
    outer = (1 - 1 / 32 + 1 - 1 / 30) / 2
    quantile = NormalDist().inv_cdf

    def side(n: int) -> list[float]:
        return [quantile(outer + (0.5 - outer) * i / n) for i in range(n)]

    levels = sorted([*side(8), 0.0, *(-x for x in side(7))])
    return [x / levels[-1] for x in levels]
