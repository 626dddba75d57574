"""Rotary position tables: the one place where theta and YaRN become cosines and sines."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smollm3.model.config import ModelConfig, Yarn


class Rope(NamedTuple):
    """cos and sin, float32, each [..., T, D] with the two halves of D alike."""

    cos: Tensor
    sin: Tensor


def inverse_frequencies(head_dim: int, theta: float, yarn: Yarn | None) -> tuple[Tensor, float]:
    """Radians per position of each of the head_dim/2 pairs, and the factor on cos and sin.

    Plain RoPE: theta^(-2i/D). YaRN (arXiv:2309.00071 eq. 17-22): pairs that turn more than
    beta_fast times within the original context stay, pairs that turn less than beta_slow times
    are slowed by `factor`, a linear ramp lies between; the attention factor is 0.1 ln(s) + 1.
    """
    pair = torch.arange(0, head_dim, 2, dtype=torch.float32)
    plain = 1.0 / (theta ** (pair / head_dim))
    if yarn is None or yarn.factor <= 1:
        return plain, 1.0

    def pair_turning(turns: float) -> float:
        # theta^(-2i/D) * original / 2pi = turns, solved for i
        return (
            head_dim
            * math.log(yarn.original_context / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low = max(math.floor(pair_turning(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_turning(yarn.beta_slow)), head_dim - 1)
    ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
    slowed = ramp.clamp(0, 1)
    return plain * (1 - slowed) + plain / yarn.factor * slowed, 0.1 * math.log(yarn.factor) + 1.0


def rope_tables(config: ModelConfig, positions: Tensor) -> Rope:
    """Tables for integer `positions` [..., T], on their device."""
    frequencies, factor = inverse_frequencies(config.head_dim, config.rope_theta, config.yarn)
    angles = positions.to(torch.float32)[..., None] * frequencies.to(positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    return Rope(angles.cos() * factor, angles.sin() * factor)
