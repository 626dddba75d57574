"""Losses as sums: a step's loss is the sum over all ranks and slices, divided by their weight.

Dividing last is what makes accumulation and data parallelism exact: a mean of means would give
a slice with few trained tokens as much say as one with many.

Tensor names: B rows, T time, E hidden, N trained positions, P pairs (B = 2P).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smollm3.data.batch import Batch
from smollm3.model import Transformer
from smollm3.train.parts import local

# Logits in memory at once: 2^27 float32 are 512 MiB, 1,046 positions of a vocabulary of 128,256.
LOGITS = 2**27

# Metrics a preference loss adds to a step, in the order of `LossSums.metrics`.
PREFERENCE_METRICS = ("margin", "accuracy")


class LossSums(NamedTuple):
    """total: scalar with gradient. weight: what it is divided by in the end (trained tokens, or
    pairs). metrics: further sums with the same weight."""

    total: Tensor
    weight: float
    metrics: tuple[Tensor, ...] = ()


def language_modelling(model: Transformer, h_BTE: Tensor, batch: Batch) -> LossSums:
    """Sum of weight · -log p(target). `all` and `assistant` differ only in the batch's weights."""
    return LossSums(-log_probs(model, h_BTE, batch).sum(), float(batch.weights_BT.sum()))


# Each from β·(log π - log π_ref) of the chosen and of the rejected answer, [P] each.
# APO: D'Oosterlinck et al. 2024 (arXiv:2408.06266) eq. 7 and 8, where 1 - σ(x) is σ(-x);
# DPO: Rafailov et al. 2023 (arXiv:2305.18290) eq. 7.
PREFERENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "apo_zero": lambda chosen, rejected: torch.sigmoid(-chosen) + torch.sigmoid(rejected),
    "apo_down": lambda chosen, rejected: torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen),
    "dpo": lambda chosen, rejected: -F.logsigmoid(chosen - rejected),
}


def preference(
    model: Transformer,
    h_BTE: Tensor,
    batch: Batch,
    reference_B: Tensor,
    *,
    loss: str,
    beta: float,
    add_columns: Callable[[Tensor], Tensor] = lambda sums_B: sums_B,
) -> LossSums:
    """A loss of PREFERENCES, summed over pairs.

    add_columns: adds up the ranks that have the rows' other columns.

    reference_B: summed log-probs of the reference model, rows as in the batch. Metrics: the
    margin between the two rewards β·(log π - log π_ref), and how often it is above 0.
    """
    sums_B = add_columns(log_probs(model, h_BTE, batch).sum(-1))
    rewards_B = beta * (sums_B - reference_B)
    chosen_P, rejected_P = (side[: len(side) - batch.blank] for side in rewards_B.chunk(2))
    margin_P = (chosen_P - rejected_P).detach()
    return LossSums(
        PREFERENCES[loss](chosen_P, rejected_P).sum(),
        float(len(chosen_P)),
        (margin_P.sum(), (margin_P > 0).sum()),
    )


def log_probs(model: Transformer, h_BTE: Tensor, batch: Batch) -> Tensor:
    """weight · log p(target), [B, T] float32; logits exist only where the weight is not 0."""
    index_N = batch.weights_BT.flatten().nonzero().squeeze(1)  # on the CPU: no device sync
    weights_N = batch.weights_BT.flatten()[index_N].to(h_BTE.device)
    targets_N = batch.targets_BT.flatten()[index_N].to(h_BTE.device)
    index_N = index_N.to(h_BTE.device)
    h_NE = h_BTE.flatten(0, 1)[index_N]
    weighted_N = -weights_N * negative_log_likelihood(model, h_NE, targets_N)
    dense = torch.zeros(batch.weights_BT.numel(), device=h_BTE.device)
    return dense.index_copy(0, index_N, weighted_N).view_as(batch.weights_BT)


def negative_log_likelihood(model: Transformer, h_NE: Tensor, targets_N: Tensor) -> Tensor:
    """-log p(target), [N]; beyond LOGITS in chunks, whose logits the backward makes again."""
    chunk = max(1, LOGITS // model.config.vocab_size)
    if len(h_NE) <= chunk:
        return _cross_entropy(model, h_NE, targets_N)
    parts = [
        checkpoint(_cross_entropy, model, h, targets, use_reentrant=False, preserve_rng_state=False)
        for h, targets in zip(torch.split(h_NE, chunk), torch.split(targets_N, chunk), strict=True)
    ]
    return torch.cat(parts)


def _cross_entropy(model: Transformer, h_NE: Tensor, targets_N: Tensor) -> Tensor:
    if (compiled := getattr(model, "cross_entropy", None)) is not None:
        loss_N: Tensor = compiled(model.logits(h_NE), targets_N)
        return loss_N
    # In float32 at once: whoever calls with the 16-bit logits holds them meanwhile.
    return local(cross_entropy(model.logits(h_NE).float(), targets_N))


def cross_entropy(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log softmax(logits)[target] in float32, [N]."""
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="none")
