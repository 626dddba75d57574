"""Adapters of random weights."""

import torch

from smollm3.checkpoint.adapter import AdapterLayer, AdapterWeights, write_adapter


def random_adapter(config, seed: int, rank: int, kind: str = "lora") -> AdapterWeights:
    """Of some of the matrices, as strong as they are."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    layers = {}
    for place, (name, (rows, columns)) in enumerate(config.linear_shapes.items()):
        if (place + seed) % 5:
            a, b = random(rank, columns) / columns**0.5, random(rows, rank) * 0.05
            magnitude = random(rows).abs() if kind == "dora" else None
            layers[name] = AdapterLayer(a, b, magnitude)
    return AdapterWeights(kind, rank, 2.0 * rank, layers, base="noise")


def save_adapter(folder, adapter):
    folder.mkdir(exist_ok=True)
    write_adapter(folder, adapter)
