"""The dense key-value cache: one block of memory, a row for each sequence.

L layers, R rows, S places, G key/value heads, D head dim; B rows in use, T tokens of a prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smollm3.model import Attend, ModelConfig, causal
from smollm3.model.attention import sdpa


class DenseCache:
    """Keys and values of `rows` sequences of at most `places` tokens; place p holds token p.

    Zeros, not empty memory: a masked place still enters the product, and 0 x NaN is NaN. The
    system hands out zero pages when they are first written, so unused places cost nothing.
    """

    def __init__(self, config: ModelConfig, rows: int, places: int, like: Tensor) -> None:
        """`like`: any weight of the model, for its dtype and device."""
        shape = (config.layers, rows, places, config.kv_heads, config.head_dim)
        self.k_LRSGD = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.v_LRSGD = torch.zeros(shape, dtype=like.dtype, device=like.device)

    @staticmethod
    def bytes_per_place(config: ModelConfig, dtype: torch.dtype) -> int:
        """Of one row; 73,728 for SmolLM3-3B in bfloat16 (2 x 36 x 4 x 128 x 2)."""
        return 2 * config.layers * config.kv_heads * config.head_dim * dtype.itemsize

    def prefill(self, start: int, end: int) -> Attend:
        """Rows start..end-1 take whole prompts from place 0; those of shorter prompts also take
        padding, which later tokens overwrite before anything sees it."""

        def attend(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
            self.k_LRSGD[layer, start:end, : k_BTGD.shape[1]] = k_BTGD
            self.v_LRSGD[layer, start:end, : v_BTGD.shape[1]] = v_BTGD
            return causal(layer, q_BTHD, k_BTGD, v_BTGD)

        return attend

    def decode(self, positions: list[int]) -> Attend:
        """Row b takes one token, at place positions[b], which sees all places up to its own."""
        S = max(positions) + 1
        device = self.k_LRSGD.device
        positions_B = torch.tensor(positions, device=device)
        rows_B = torch.arange(len(positions), device=device)
        mask_B11S = (torch.arange(S, device=device) <= positions_B[:, None])[:, None, None]

        def attend(layer: int, q_B1HD: Tensor, k_B1GD: Tensor, v_B1GD: Tensor) -> Tensor:
            k_RSGD, v_RSGD = self.k_LRSGD[layer], self.v_LRSGD[layer]
            k_RSGD[rows_B, positions_B] = k_B1GD[:, 0]
            v_RSGD[rows_B, positions_B] = v_B1GD[:, 0]
            B = len(positions)
            return sdpa(q_B1HD, k_RSGD[:B, :S], v_RSGD[:B, :S], mask_B11S)

        return attend

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of row `source` over those of `target`."""
        self.k_LRSGD[:, target, :length] = self.k_LRSGD[:, source, :length]
        self.v_LRSGD[:, target, :length] = self.v_LRSGD[:, source, :length]
