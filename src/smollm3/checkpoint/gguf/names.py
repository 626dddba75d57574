"""Tensor names and row orders: ours and GGUF's."""

from __future__ import annotations

from torch import Tensor

# Ours -> GGUF's; a block's parts are prefixed `blocks.N.` -> `blk.N.`.
TOP_NAMES = {"embed": "token_embd", "norm": "output_norm", "unembed": "output"}
BLOCK_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}
# llama.cpp has no key for the pattern: every 4th layer of `smollm3` is NoPE, none of `llama`.
NOPE_EVERY = {"smollm3": 4, "llama": 0}
# In GGUF RoPE turns rows 2i and 2i+1 of a head, in Hugging Face files rows i and i + D/2. The rows
# of these are reordered on every layer, NoPE ones too.
ROTATED = ("attention.q.weight", "attention.k.weight")


def gguf_name(ours: str) -> str:
    """`blocks.3.attention.q.weight` -> `blk.3.attn_q.weight`."""
    module = ours.removesuffix(".weight")
    if module in TOP_NAMES:
        return f"{TOP_NAMES[module]}.weight"
    _, layer, part = module.split(".", 2)
    return f"blk.{layer}.{BLOCK_NAMES[part]}.weight"


def to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k from GGUF's order to ours: [H, D/2, 2] -> [H, 2, D/2]."""
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def to_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `to_halves`."""
    halves = weight.reshape(-1, 2, head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)
