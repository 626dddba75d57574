"""A small model that says noise."""

from dataclasses import replace

import torch

from smollm3.checkpoint import save_model
from smollm3.model import ModelConfig, Transformer, nope_pattern

CONFIG = ModelConfig(
    vocab_size=300,
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    uses_rope=nope_pattern(2, 2),
    rope_theta=10_000.0,
    context=2048,
)


def save_noise(folder, tokenizer, spread=6, **changes):
    """Write it, with `changes` of CONFIG. The more its weights spread, the more it varies."""
    network = Transformer(replace(CONFIG, **changes))
    network.init_weights(0)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 2:
                weight.mul_(spread)
    save_model(network, tokenizer, folder)
