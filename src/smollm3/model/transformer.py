"""SmolLM3: a decoder-only transformer with grouped-query attention and NoPE on every 4th layer.

Pre-norm blocks, RMSNorm, SwiGLU, no biases, tied embeddings. What surrounds the network is
handed in: rotary tables (`rope.py`) and `attend` (`attention.py`), which owns masks and caches.

Tensor names end in their shape: B batch, T time, E embedding (hidden), H query heads,
G key/value heads, D head dim, F feed-forward, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smollm3.model.attention import Attend, causal
from smollm3.model.config import ModelConfig
from smollm3.model.init import initial_weight
from smollm3.model.rope import Rope, rope_tables


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean of squares in float32 whatever x is."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_BTE: Tensor) -> Tensor:
        x32_BTE = x_BTE.float()
        scale_BT1 = torch.rsqrt(x32_BTE.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x32_BTE * scale_BT1).to(x_BTE.dtype)


def rotate(x_BTHD: Tensor, rope: Rope) -> Tensor:
    """Turn the pair (x[i], x[i + D/2]) by its angle, as Hugging Face weights expect."""
    cos_T1D = rope.cos.unsqueeze(-2).to(x_BTHD.dtype)
    sin_T1D = rope.sin.unsqueeze(-2).to(x_BTHD.dtype)
    first, second = x_BTHD.chunk(2, dim=-1)
    return x_BTHD * cos_T1D + torch.cat([-second, first], dim=-1) * sin_T1D


class Attention(nn.Module):
    """Grouped-query attention; rotates queries and keys unless the layer is NoPE."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        E, D = config.hidden, config.head_dim
        self.layer = layer
        self.head_dim = D
        self.uses_rope = config.uses_rope[layer]
        self.q = nn.Linear(E, config.heads * D, bias=False)
        self.k = nn.Linear(E, config.kv_heads * D, bias=False)
        self.v = nn.Linear(E, config.kv_heads * D, bias=False)
        self.o = nn.Linear(config.heads * D, E, bias=False)

    def forward(self, x_BTE: Tensor, rope: Rope, attend: Attend) -> Tensor:
        q_BTHD = self.q(x_BTE).unflatten(-1, (-1, self.head_dim))
        k_BTGD = self.k(x_BTE).unflatten(-1, (-1, self.head_dim))
        v_BTGD = self.v(x_BTE).unflatten(-1, (-1, self.head_dim))
        if self.uses_rope:
            q_BTHD, k_BTGD = rotate(q_BTHD, rope), rotate(k_BTGD, rope)
        o_BTHD = attend(self.layer, q_BTHD, k_BTGD, v_BTGD)
        o_BTE: Tensor = self.o(o_BTHD.flatten(-2))
        return o_BTE


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden, config.ffn, bias=False)
        self.up = nn.Linear(config.hidden, config.ffn, bias=False)
        self.down = nn.Linear(config.ffn, config.hidden, bias=False)

    def forward(self, x_BTE: Tensor) -> Tensor:
        o_BTE: Tensor = self.down(F.silu(self.gate(x_BTE)) * self.up(x_BTE))
        return o_BTE


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = RMSNorm(config.hidden, config.norm_eps)
        self.ffn = FeedForward(config)

    def forward(self, x_BTE: Tensor, rope: Rope, attend: Attend) -> Tensor:
        x_BTE = x_BTE + self.attention(self.attention_norm(x_BTE), rope, attend)
        out_BTE: Tensor = x_BTE + self.ffn(self.ffn_norm(x_BTE))
        return out_BTE


class Transformer(nn.Module):
    """`model(ids_BT) -> logits_BTV`. Weights are uninitialised until `init_weights` or loading."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Handed its memory: nn.Embedding's own start on the meta device loads the compiler, 3 s.
        embed_VE = torch.empty(config.vocab_size, config.hidden)
        self.embed = nn.Embedding(config.vocab_size, config.hidden, _weight=embed_VE)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        self.unembed = nn.Linear(config.hidden, config.vocab_size, bias=False)
        if config.tied:
            self.unembed.weight = self.embed.weight

    def hidden(self, ids_BT: Tensor, rope: Rope | None = None, attend: Attend = causal) -> Tensor:
        """Final normed states h_BTE. Without `rope`, positions are 0..T-1."""
        if rope is None:
            rope = rope_tables(self.config, torch.arange(ids_BT.shape[1], device=ids_BT.device))
        x_BTE = self.embed(ids_BT)
        for block in self.blocks:
            x_BTE = block(x_BTE, rope, attend)
        h_BTE: Tensor = self.norm(x_BTE)
        return h_BTE

    def logits(self, h_BTE: Tensor) -> Tensor:
        """logits_BTV of the given states (any leading shape)."""
        logits_BTV: Tensor = self.unembed(h_BTE)
        return logits_BTV

    def forward(self, ids_BT: Tensor, rope: Rope | None = None, attend: Attend = causal) -> Tensor:
        return self.logits(self.hidden(ids_BT, rope, attend))

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Published initialisation, see `initial_weight`."""
        for name, weight in self.named_parameters():
            weight.copy_(initial_weight(self.config, seed, name, tuple(weight.shape)))
