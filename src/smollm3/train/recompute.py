"""Activation checkpointing: what the backward pass computes again instead of keeping it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from smollm3.model import Transformer
from smollm3.train.spec import Recompute

# Kept under `selective`: what costs FLOPs to make again. In elements for each token and layer:
# 2·H·D + 2·G·D + E + 2·F + E instead of 6·E + 2·H·D + 2·G·D + 4·F.
EXPENSIVE = (
    "aten.mm.default",
    "aten.addmm.default",
    "aten.bmm.default",
    "aten._scaled_mm.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
    "torch_attn._varlen_attn.default",
    "smollm3.one_by_one.default",
)


def apply_recompute(model: Transformer, policy: Recompute) -> None:
    """Make every block keep only what `policy` says."""
    if policy == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if policy == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in model.blocks:
        block.forward = _checkpointed(block.forward, options)
        if policy == "offload":
            block.forward = _waiting_on_the_host(block.forward)


def _checkpointed(forward: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    def checkpointed(*inputs: Any) -> Any:
        return checkpoint(forward, *inputs, **options)

    return checkpointed


def _waiting_on_the_host(forward: Callable[..., Any]) -> Callable[..., Any]:
    """What a checkpointed block keeps is its input alone, which goes to pinned memory and back."""

    def waiting(*inputs: Any) -> Any:
        with save_on_cpu(pin_memory=True):
            return forward(*inputs)

    return waiting


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if str(operation) in EXPENSIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
