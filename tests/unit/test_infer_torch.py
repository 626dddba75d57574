"""The PyTorch backend against a plain pass over each whole text; the size of its pool."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from smollm3.infer.backends import BLOCK, StepBatch, memory
from smollm3.infer.backends import torch as backend_module
from smollm3.infer.backends.torch import TorchBackend
from smollm3.model import ModelConfig, Transformer, nope_pattern

CONFIG = ModelConfig(
    vocab_size=120,
    layers=4,
    hidden=32,
    heads=8,
    kv_heads=2,
    head_dim=4,
    ffn=48,
    uses_rope=nope_pattern(4, 4),
    rope_theta=10_000.0,
    context=512,
)


def model(dtype=torch.float32, **changes) -> Transformer:
    made = Transformer(replace(CONFIG, **changes))
    made.init_weights(0)
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight.mul_(5)
    return made.to(dtype)


def step(backend, parts, tables, wanted=None) -> torch.Tensor:
    """parts: (first place, ids) of each sequence; wanted: indices of tokens, None for all."""
    sizes = [len(ids) for _, ids in parts]
    width = max(map(len, tables))
    N = sum(sizes)
    return backend.step(
        StepBatch(
            ids_N=np.array([i for _, ids in parts for i in ids], np.int32),
            positions_N=np.array([p + i for p, ids in parts for i in range(len(ids))], np.int32),
            starts=np.cumsum([0, *sizes]).astype(np.int32),
            tables_SB=np.array([[*t, *[0] * (width - len(t))] for t in tables], np.int32),
            wanted_R=np.arange(N, dtype=np.int32) if wanted is None else np.array(wanted, np.int32),
        )
    )


@pytest.mark.parametrize("kv_heads", [2, 8])
@pytest.mark.parametrize("mask_elements", [1 << 24, 700])
@pytest.mark.parametrize("scattered", [True, False])
def test_mixed_steps_are_whole_passes(monkeypatch, mask_elements, scattered, kv_heads):
    """Whole prompts, chunks, drafts and single tokens of long and short texts in one step."""
    monkeypatch.setattr(backend_module, "MASK_ELEMENTS", mask_elements)
    reference = model(kv_heads=kv_heads)
    backend = TorchBackend(reference, blocks=40)
    for pool in (backend.k_LPGD, backend.v_LPGD):
        pool.normal_()  # what others left there
    draw = random.Random(1)
    texts = [[draw.randrange(120) for _ in range(n)] for n in (150, 40, 33, 7, 90, 64)]
    with torch.no_grad():
        expected = [reference(torch.tensor([ids]))[0] for ids in texts]
    free = iter(draw.sample(range(40), 40) if scattered else range(40))
    tables = [[next(free) for _ in range(-(-len(ids) // BLOCK))] for ids in texts]
    places = [0] * len(texts)
    plans = [
        (70, 40, 1, 1, 0, 64), (60, 0, 30, 1, 50, 0), (1, 0, 1, 1, 20, 0), (1, 0, 1, 1, 5, 0),
        (3, 0, 0, 1, 1, 0), (1, 0, 0, 1, 14, 0), (14, 0, 0, 1, 0, 0),
    ]  # fmt: skip
    for plan in plans:
        rows = [s for s, count in enumerate(plan) if count]
        parts = [(places[s], texts[s][places[s] : places[s] + plan[s]]) for s in rows]
        found = step(backend, parts, [tables[s] for s in rows])
        wanted = torch.cat([expected[s][places[s] : places[s] + plan[s]] for s in rows])
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
        places = [place + count for place, count in zip(places, plan, strict=True)]
    assert places == [len(ids) for ids in texts]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    reference = model(dtype)
    backend = TorchBackend(reference, blocks=8)
    ids = [(5 * i) % 120 for i in range(50)]
    with torch.no_grad():
        expected = reference(torch.tensor([ids]))[0].float()
    found = [step(backend, [(0, ids[:40])], [[1, 0]]), step(backend, [(40, ids[40:49])], [[1, 0]])]
    found += [step(backend, [(49, ids[49:])], [[1, 0]])]
    assert torch.cat(found).dtype == torch.float32
    error = (torch.cat(found) - expected).abs().mean() / expected.abs().mean()
    assert error < 0.03


def test_only_wanted_logits():
    backend = TorchBackend(model(), blocks=8)
    parts, tables = [(0, [1, 2, 3]), (0, [4, 5])], [[0], [1]]
    every = step(backend, parts, tables)
    torch.testing.assert_close(step(backend, parts, tables, [1, 4]), every[[1, 4]])
    assert step(backend, parts, tables, []).shape == (0, 120)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks_move(dtype):
    reference = model(dtype)
    backend, other = TorchBackend(reference, blocks=8), TorchBackend(reference, blocks=6)
    ids = [(5 * i) % 120 for i in range(70)]
    expected = step(backend, [(0, ids)], [[7, 2, 5]])
    data = backend.export_blocks([7, 2])
    assert data.shape == (2, backend.block_bytes)
    assert data.dtype == np.uint8
    other.import_blocks([0, 4], data)
    assert np.array_equal(other.export_blocks([0, 4]), data)
    found = step(other, [(64, ids[64:])], [[0, 4, 1]])
    torch.testing.assert_close(
        found, expected[64:], atol=1e-5 if dtype == torch.float32 else 0.2, rtol=0
    )


def test_what_a_block_takes():
    assert TorchBackend(model(torch.bfloat16), blocks=3).block_bytes == 2 * 4 * BLOCK * 2 * 4 * 2
    assert TorchBackend(model(), blocks=3).kv_cache_dtype == "float32"


# the pool

CPU = torch.device("cpu")
BIG = ModelConfig(
    128256, 36, 2048, 16, 4, 128, 11008, nope_pattern(36, 4), rope_theta=5e6, context=65536
)
BIG_BLOCK = 2 * 36 * BLOCK * 4 * 128 * 2


def test_a_block_of_the_3b():
    assert BIG_BLOCK == 2_359_296


@pytest.mark.parametrize(
    ("free", "config", "block_bytes", "blocks"),
    [
        (64 << 30, BIG, BIG_BLOCK, 2048),  # one context, 4.8 GB, is more than a CPU's share
        (2 << 30, BIG, BIG_BLOCK, (2 << 30) * 8 // 10 // BIG_BLOCK),  # it does not fit
        (64 << 30, CONFIG, 10_000, 128 * 16),  # no more than so many contexts
        (64 << 30, CONFIG, 10 << 20, 409),  # 4 GiB
        (4 << 30, CONFIG, 10 << 20, 102),  # a quarter
        (1, CONFIG, 10_000, 1),
    ],
)
def test_the_pool_fits_memory(monkeypatch, free, config, block_bytes, blocks):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    assert memory.pool_blocks(config, block_bytes, CPU) == blocks


def test_free_memory(monkeypatch, tmp_path):
    machine = memory.free_bytes(CPU)
    assert 1 << 20 < machine < 1 << 50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert memory._group_bytes(tmp_path) > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._group_bytes(tmp_path) == 995
    assert memory._group_bytes(tmp_path / "none") > 1 << 60


def test_untouched_blocks_take_no_memory():
    """A pool of 8 GiB is made at once, and only what is written counts."""
    before = resident()
    wide = TorchBackend(model(layers=4, kv_heads=8, head_dim=64), blocks=(8 << 30) >> 19)
    step(wide, [(0, [1, 2, 3])], [[5]])
    assert wide.block_bytes * wide.blocks == 8 << 30
    assert resident() - before < 64 << 20


def resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096
