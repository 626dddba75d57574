"""`attend` functions for whole rows: causal, and causal inside each document of a packed row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

# attend(layer, q_BTHD, k_BTGD, v_BTGD) -> o_BTHD: owns masks and caches; the model knows neither.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]

# Below this row length one masked call beats a call per document (measured on two CPU cores:
# free at 128, 20% slower at 1024; with 16 documents in 2048 tokens a call each is 14x faster).
MASK_MAX_TOKENS = 512


def sdpa(q_BTHD: Tensor, k_BSGD: Tensor, v_BSGD: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention with grouped heads; causal when there is no mask."""
    o_BHTD = F.scaled_dot_product_attention(
        q_BTHD.transpose(1, 2),
        k_BSGD.transpose(1, 2),
        v_BSGD.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=q_BTHD.shape[2] != k_BSGD.shape[2],
    )
    return o_BHTD.transpose(1, 2)


def causal(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
    """Every token sees itself and all before it in the row."""
    return sdpa(q_BTHD, k_BTGD, v_BTGD, None)


def packed(documents_BT: Tensor) -> Attend:
    """Intra-document masking: a token sees itself and the earlier tokens of its own document.

    `documents_BT` numbers the document of each token; documents are contiguous runs.
    """
    T = documents_BT.shape[1]
    if bool((documents_BT == documents_BT[:, :1]).all()):
        return causal
    if T <= MASK_MAX_TOKENS:
        same_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
        lower_TT = torch.ones(T, T, dtype=torch.bool, device=documents_BT.device).tril()
        mask_B1TT = (same_BTT & lower_TT)[:, None]

        def masked(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
            return sdpa(q_BTHD, k_BTGD, v_BTGD, mask_B1TT)

        return masked

    changes_BT = torch.diff(documents_BT, dim=1).ne(0).tolist()
    runs = [_runs(row, T) for row in changes_BT]

    def per_document(layer: int, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        def row(b: int) -> Tensor:
            q, k, v = q_BTHD[b : b + 1], k_BTGD[b : b + 1], v_BTGD[b : b + 1]
            pieces = [causal(layer, q[:, s:e], k[:, s:e], v[:, s:e]) for s, e in runs[b]]
            return torch.cat(pieces, dim=1)

        return torch.cat([row(b) for b in range(len(runs))])

    return per_document


def _runs(changes: list[bool], length: int) -> list[tuple[int, int]]:
    """[start, end) of each document, from the flags 'the next token is of another document'."""
    cuts = [0, *(i + 1 for i, change in enumerate(changes) if change), length]
    return list(pairwise(cuts))
