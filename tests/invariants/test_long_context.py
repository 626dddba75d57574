"""Contexts as long as the published model's: 131,072 tokens with YaRN, and 64k of the 3B's shape."""

import os
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from smollm3.bench.shapes import make_shape
from smollm3.checkpoint import load_model, save_model
from smollm3.files import cache_folder
from smollm3.infer import SamplingParams, load_engine
from smollm3.infer.backends import BLOCK
from smollm3.infer.blocks import block_keys, root
from smollm3.model import ModelConfig, Transformer, nope_pattern

pytest.importorskip("smollm3_kernels", reason="the CPU kernels are not installed")

TOKENS = 131_072
NANO = ModelConfig(
    vocab_size=320, layers=4, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=176,
    uses_rope=nope_pattern(4, 4), rope_theta=10_000.0, context=TOKENS // 2,
)  # fmt: skip


@contextmanager
def all_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow  # some ten minutes: its pairs of tokens are 8.6e9, in 16 heads
def test_131072_tokens_are_one_pass_of_pytorch(tokenizer, tmp_path):
    """Of a model trained at half of that: the last answer that fits, token after token."""
    model = Transformer(NANO)
    model.init_weights(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                p.mul_(9 if name.endswith("attention.q.weight") else 5)
    save_model(model, tokenizer, tmp_path)
    draw = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 274, (TOKENS - 40,), generator=draw).tolist()
    sampled = SamplingParams(temperature=1.0, top_p=1.0, max_tokens=100, ignore_eos=True)
    with load_engine(tmp_path, engine="native", context=TOKENS, weight_cache=False) as engine:
        answer = engine.submit(prompt, sampled).result()
        again = engine.submit(prompt, sampled)
        assert again.result() == answer
        assert again.cached_tokens == TOKENS - 44  # the beginning of a block, too
    assert (answer.finish_reason, len(answer.ids)) == ("length", 40)
    longer = load_model(tmp_path, "float32", "cpu", TOKENS)
    with all_cores(), torch.inference_mode():
        h_1TE = longer.hidden(torch.tensor([prompt + answer.ids[:-1]]))
        rows = longer.logits(h_1TE[0, -40:]).log_softmax(-1)
    expected = rows.gather(1, torch.tensor(answer.ids)[:, None])[:, 0]
    assert expected.std() > 0.5  # the tokens differ in how likely they are
    torch.testing.assert_close(torch.tensor(answer.logprobs), expected, atol=2e-3, rtol=0)


@pytest.mark.slow  # makes a file of 1.8 GB where there is none; takes 7 GB of memory
@pytest.mark.parametrize("kv_cache_dtype", ["bf16", "int8"])
def test_the_3b_decodes_behind_64k_from_a_saved_state(tmp_path, kv_cache_dtype):
    """Its keys and values are those of a short text, over and over: as many, and as large."""
    path = make_shape("smollm3-3b:q4_0", cache_folder() / "shapes")
    greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)
    load = partial(
        load_engine, path, engine="native", kv_cache_dtype=kv_cache_dtype, speculation=False
    )
    ids = [(7919 * i) % 100_000 for i in range(65_536 - 2 * BLOCK)]
    prompt = [*ids, 1, 2, 3]
    saved = tmp_path / "state.safetensors"
    with load() as engine:
        assert engine.config.context == 65_536
        repeat(engine, ids, ids[: 4 * BLOCK])
        answer = engine.submit(prompt, greedy).result()
        assert engine.save_prefix(ids, saved) == len(ids)
    size = engine.backend.block_bytes * len(ids) // BLOCK
    assert saved.stat().st_size > size > (2e9 if kv_cache_dtype == "int8" else 4e9)
    with load() as engine:
        assert engine.load_prefix(saved) == ids
        generation = engine.submit(prompt, greedy)
        assert generation.result() == answer
        assert generation.cached_tokens == len(ids)


def repeat(engine, ids: list[int], text: list[int]) -> None:
    """Make the keys and values of a text pass for those of `ids`, but for the last block, which is
    always computed."""
    worker, backend = engine._worker, engine.backend
    engine.submit(text, SamplingParams(max_tokens=1)).result()
    keys = block_keys(ids, root(""))[:-1]
    count = len(text) // BLOCK

    def fill() -> None:
        pool = worker.blocks
        source = list(pool.find(block_keys(text, root(""))))
        assert len(source) == count
        data = backend.export_blocks(source)
        taken = source + [pool.take() for _ in keys[count:]]
        for start in range(count, len(taken), count):
            part = taken[start : start + count]
            backend.import_blocks(part, data[: len(part)])
        for block, key in zip(taken, keys, strict=True):
            pool.publish(block, [key])
        pool.release(taken[count:])

    worker.ask(fill).result()
