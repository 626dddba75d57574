"""The sampler: from logits to one token a row.

B rows, V vocabulary, K the likeliest tokens looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from smollm3.infer.params import SamplingParams

# A trained model's nucleus is nearly always inside its likeliest 128 tokens, and finding those
# takes a tenth of the time of sorting 4096.
FIRST_LOOK = 128


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but the request's seed and the token's place."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


@torch.inference_mode()
def sample(
    logits_BV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]
) -> tuple[list[int], list[float]]:
    """(token, log-probability) of each row.

    params: settled, none of them None. positions: the place each new token takes in its sequence.
    Log-probabilities are the model's own, before temperature and filters.
    """
    logits_BV = logits_BV.float()
    ids_B = logits_BV.argmax(-1)
    rows = [row for row, p in enumerate(params) if p.temperature]
    if rows:
        drawn = _draw(logits_BV[rows], [params[r] for r in rows], [positions[r] for r in rows])
        ids_B[rows] = drawn
    logprobs_B = logits_BV.gather(1, ids_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    return ids_B.tolist(), logprobs_B.tolist()


def _draw(logits_BV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> Tensor:
    """Inverse of the cumulative distribution over the kept tokens, at each row's own number.

    Tokens stay in the vocabulary's order: rounding that swaps two near-equal ones in a sort
    cannot change the draw.
    """
    device = logits_BV.device
    temperature_B1 = torch.tensor([[p.temperature] for p in params], device=device)
    # From the largest, so that a tiny temperature gives 0 and -inf, not inf - inf.
    shifted_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B1
    probs_BV = shifted_BV.softmax(-1)
    kept_BV = torch.where(probs_BV >= least_kept(probs_BV, params), probs_BV, 0.0)
    cumulative_BV = kept_BV.double().cumsum(-1)
    numbers = [[uniform(p.seed, place)] for p, place in zip(params, positions, strict=True)]
    target_B1 = torch.tensor(numbers, dtype=torch.float64, device=device) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, target_B1, right=True)[:, 0]


def least_kept(
    probs_BV: Tensor, params: Sequence[SamplingParams], look: int = FIRST_LOOK
) -> Tensor:
    """[B, 1] smallest probability that top_k, top_p and min_p, applied in this order, all keep.

    top_p counts within what top_k leaves. Tokens equal to the last kept one are kept too. Rows
    whose answer is not among the `look` likeliest tokens are sorted whole.
    """
    V = probs_BV.shape[1]
    columns = [[p.top_k or V, p.top_p, p.min_p] for p in params]
    settings_B3 = torch.tensor(columns, dtype=torch.float32, device=probs_BV.device)
    top_k_B1, top_p_B1, min_p_B1 = torch.split(settings_B3, 1, dim=1)
    filtered_B1 = (top_k_B1 < V) | (top_p_B1 < 1) | (min_p_B1 > 0)
    if not filtered_B1.any():
        return torch.zeros_like(top_k_B1)
    K = min(max(look, *(p.top_k or 0 for p in params)), V)
    top_BK = probs_BV.topk(K).values if K < V else probs_BV.sort(descending=True).values
    in_k_BK = torch.arange(K, device=probs_BV.device) < top_k_B1
    mass_B1 = torch.where(top_k_B1 < V, (top_BK * in_k_BK).sum(-1, keepdim=True), 1.0)
    before_BK = top_BK.cumsum(-1) - top_BK
    keep_BK = in_k_BK & (before_BK < top_p_B1 * mass_B1) & (top_BK >= min_p_B1 * top_BK[:, :1])
    count_B1 = keep_BK.sum(-1, keepdim=True).clamp(min=1)
    least_B1 = torch.where(filtered_B1, top_BK.gather(1, count_B1 - 1), 0.0)
    beyond_B = ((count_B1 == K) & (top_k_B1 > K) & filtered_B1)[:, 0]
    if K < V and beyond_B.any():
        rows = beyond_B.nonzero()[:, 0].tolist()
        least_B1[rows] = least_kept(probs_BV[rows], [params[row] for row in rows], look=V)
    return least_B1
