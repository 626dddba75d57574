"""Adapters beside one model: each answer equals its own alone, whatever else is in the batch."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support.adapters import random_adapter, save_adapter
from tests.support.fake_backend import CONFIG, FakeBackend
from tests.support.noise import save_noise

from smollm3 import load_engine
from smollm3.checkpoint import load_config, load_model, open_weights
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.infer.adapters import read_additions
from smollm3.infer.backends import StepBatch
from smollm3.infer.backends.torch import _each
from smollm3.merge import merge_adapter

PARAMS = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
KINDS = ("lora", "rslora", "dora", "lora")
COUNT = 8
needs_kernels = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("smollm3_kernels"), reason="no CPU kernels"
)


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A folder with a model, and in it one adapter after another."""
    folder = tmp_path_factory.mktemp("adapters") / "base"
    save_noise(folder, tokenizer)
    config = load_config(folder)
    for i in range(COUNT):
        made = random_adapter(config, i, (1, 3, 16, 33)[i % 4], KINDS[i % len(KINDS)])
        save_adapter(folder.parent / f"a{i}", made)
    return folder


def engine(base, backend, **options):
    made = load_engine(base, engine=backend, threads=1, **options)
    for i in range(COUNT):
        made.adapters.load(f"a{i}", base.parent / f"a{i}")
    return made


def requests(n=32, seed=0):
    """(prompt, adapter or None): all of them and the model itself, in no order."""
    draw = np.random.default_rng(seed)
    names = [None, *(f"a{i}" for i in range(COUNT))]
    shared = draw.integers(0, 270, 40).tolist()
    order = draw.permutation(n)
    return [
        (shared + draw.integers(0, 270, draw.integers(1, 30)).tolist(), names[i % len(names)])
        for i in order
    ]


def answers(engine, asked):
    with engine.together():
        running = [engine.submit(prompt, PARAMS, adapter=name) for prompt, name in asked]
    return [generation.result() for generation in running]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("native", "float32", marks=needs_kernels),
        pytest.param("native", "bfloat16", marks=needs_kernels),
        pytest.param("native", "q8_0", marks=needs_kernels),
        ("torch", "float32"),
    ],
)
def test_eight_adapters_in_a_batch_of_32_answer_as_alone(base, backend, dtype):
    asked = requests()
    with engine(base, backend, dtype=dtype) as made:
        together = answers(made, asked)
        assert max(step.decode_tokens for step in made.stats().recent) == 32
    with engine(base, backend, dtype=dtype) as fresh:
        for (prompt, name), found in zip(asked, together, strict=True):
            alone = fresh.submit(prompt, PARAMS, adapter=name).result()
            assert found.ids == alone.ids
            if backend == "native":  # PyTorch's own products depend on how many rows they have
                assert found.logprobs == alone.logprobs
    by_adapter = {name: found.logprobs for (_, name), found in zip(asked, together, strict=True)}
    assert len({tuple(logprobs) for logprobs in by_adapter.values()}) == COUNT + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 16, 33])
def test_what_is_added_to_a_token_has_the_same_bits_whatever_is_beside_it(dtype, rank):
    torch.manual_seed(0)
    x_RI, w_OI = torch.randn(37, 48, dtype=dtype), torch.randn(rank, 48, dtype=dtype)
    whole = _each(x_RI, w_OI)
    torch.testing.assert_close(whole, x_RI @ w_OI.T)
    for rows in (slice(0, 1), slice(5, 9), slice(20, 37)):
        assert torch.equal(_each(x_RI[rows], w_OI), whole[rows])


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_kernels), "torch"])
@pytest.mark.parametrize("index", range(4))
def test_unmerged_is_merged(base, tmp_path, backend, index):
    merge_adapter(base, base.parent / f"a{index}", tmp_path / "merged")
    ids = requests(1)[0][0]
    with load_engine(tmp_path / "merged", engine=backend, dtype="float32") as merged:
        expected = merged.logprobs(ids)
    with load_engine(
        base, engine=backend, dtype="float32", adapter=base.parent / f"a{index}"
    ) as made:
        found = made.logprobs(ids)
        made.adapters.default = None
        plain = made.logprobs(ids)
    assert (found - expected).abs().max() < 2e-4
    assert (plain - expected).abs().max() > 0.1


@needs_kernels
@pytest.mark.parametrize("isa", __import__("smollm3_kernels").instruction_sets())
@pytest.mark.parametrize("dtype", ["float32", "q8_0"])
def test_the_kernels_add_what_pytorch_adds(base, isa, dtype):
    """Chunks of prompts, single tokens, and blocks of columns that several adapters share."""
    from smollm3.infer.backends.native import NativeBackend

    config = load_config(base)
    native = NativeBackend(base, config, blocks=40, dtype=dtype, kv_cache_dtype="f32", isa=isa)
    plain = TorchBackend(load_model(base, "float32"), blocks=40)
    sizes = (5, 1, 1, 9, 1, 17, 1)
    for i in range(3):
        additions, _ = read_additions(base.parent / f"a{i}", config, lambda: open_weights(base))
        assert native.add_adapter(additions) == plain.add_adapter(additions) == i
    batch = StepBatch(
        ids_N=np.arange(sum(sizes), dtype=np.int32),
        positions_N=np.concatenate([np.arange(n) for n in sizes]).astype(np.int32),
        starts=np.cumsum([0, *sizes]).astype(np.int32),
        tables_SB=np.arange(len(sizes), dtype=np.int32)[:, None],
        wanted_R=np.arange(sum(sizes), dtype=np.int32),
        adapters_S=np.array([0, -1, 0, 1, 2, 1, 0], np.int32),
    )
    found, expected = native.step(batch), plain.step(batch)
    bound = 2e-5 if dtype == "float32" else 0.05
    assert (found - expected).abs().max() < bound * expected.abs().max()
    for s, (start, end) in enumerate(zip(batch.starts[:-1], batch.starts[1:], strict=True)):
        alone = replace(
            batch, ids_N=batch.ids_N[start:end], positions_N=batch.positions_N[start:end],
            starts=np.array([0, end - start], np.int32), tables_SB=batch.tables_SB[s : s + 1],
            wanted_R=np.arange(end - start, dtype=np.int32),
            adapters_S=batch.adapters_S[s : s + 1],
        )  # fmt: skip
        assert torch.equal(native.step(alone), found[start:end])
    native.remove_adapter(1)
    with pytest.raises(ValueError, match="adapters: not there"):
        native.step(batch)
    assert native.add_adapter(additions) == 1
    native.close()
    plain.close()


@pytest.fixture
def faked(tokenizer, tmp_path):
    """An engine whose backend tells who made what is in its cache, and two folders of adapters."""
    for i in range(2):
        save_adapter(tmp_path / f"a{i}", random_adapter(CONFIG, i, 2))
    with Engine(FakeBackend(blocks=64), tokenizer) as made:
        yield made, tmp_path


def test_prefixes_are_an_adapters_own(faked):
    made, place = faked
    for i in range(2):
        made.adapters.load(f"a{i}", place / f"a{i}")
    made.adapters.load("a0 again", place / "a0")
    prompt, cached, told = list(range(100)), [], []
    for name in (None, "a0", "a1", "a0", "a0 again", None):
        generation = made.submit(prompt, PARAMS, adapter=name)
        told.append(tuple(generation.result().ids))
        cached.append(generation.cached_tokens)
    assert cached == [0, 0, 0, 96, 96, 96]  # the same weights are the same adapter
    assert told[0] == told[5] != told[1] == told[3]
    assert len(set(told[:3])) == 3


def test_an_adapter_that_is_unloaded_ends_what_it_began(faked):
    made, place = faked
    made.adapters.load("mine", place / "a0")
    long = replace(PARAMS, max_tokens=200)
    reached, go_on = threading.Event(), threading.Event()

    def hold(batch):
        if len(batch.ids_N) == 1:
            reached.set()
            go_on.wait(60)

    made.backend.fail = hold
    running = made.submit([1, 2, 3], long, adapter="mine")
    assert reached.wait(60)
    unloading = threading.Thread(target=made.adapters.unload, args=["mine"])
    unloading.start()
    go_on.set()
    unloading.join()
    with pytest.raises(UserError, match="adapter: 'mine' is not loaded; there is none"):
        made.submit([1, 2, 3], long, adapter="mine")
    made.adapters.load("mine", place / "a1")
    assert len(running.result().ids) == 200
    other = made.submit([1, 2, 3], long, adapter="mine").result()
    assert other.ids != running.result().ids
    assert made.backend.adapters in ({1}, {0})
    with pytest.raises(UserError, match="is loaded already"):
        made.adapters.load("mine", place / "a0")


def test_what_cannot_be_applied_unmerged_is_refused(faked):
    made, place = faked
    plain = random_adapter(CONFIG, 0, 2)
    for change, problem in (
        ({"whole": {"embed.weight": torch.ones(300, 8)}}, "embeddings of its own.*smollm3 merge"),
        ({"kind": "dora", "layers": random_adapter(CONFIG, 0, 2, "dora").layers}, "DoRA needs"),
        ({"layers": {"blocks.7.ffn.up": next(iter(plain.layers.values()))}}, "no such layer"),
    ):
        save_adapter(place / "strange", replace(plain, **change))
        with pytest.raises(UserError, match=problem):
            made.adapters.load("strange", place / "strange")
    assert made.adapters.folders == {}
