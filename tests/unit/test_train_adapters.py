"""Training an adapter: what changes, what is kept, what comes out."""

import json
import math
import os
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smollm3 import checkpoint
from smollm3.checkpoint.adapter import read_adapter
from smollm3.errors import UserError
from smollm3.merge import merge_adapter
from smollm3.tensors import read_tensors, write_tensors
from smollm3.tokenizer import Tokenizer
from smollm3.train import ProcessGroup, Stopped, loop, train
from smollm3.train.adapters import BLOCK, Adapted, FourBits, normal_float_levels, trained

WORLD = ProcessGroup.single()
LOSSES = {
    "all": {},
    "assistant": {"mixture": {"chat": 1}, "loss": "assistant", "packing": "bfd", "context": 256},
    "apo_zero": {"mixture": {"pairs": 1}, "loss": "apo_zero", "context": 1024, "batch": 3},
    "dpo": {"mixture": {"pairs": 1}, "loss": "dpo", "context": 1024, "batch": 3},
}
LORA = {"rank": 2, "alpha": 8}


@pytest.fixture(scope="module")
def parent(make_job, tmp_path_factory):
    """A trained model's folder."""
    folder = tmp_path_factory.mktemp("parent")
    job = make_job(folder / "work", steps=20)
    train(job, WORLD).save(Tokenizer.load(job.tokenizer), folder / "model")
    return folder / "model"


def saved(job, folder, on_step=None):
    result = train(job, WORLD, on_step)
    result.save(Tokenizer.load(job.tokenizer), folder, base="the base")
    return result


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_the_adapter_learns(make_job, tmp_path, parent, loss, kind):
    stage = LOSSES[loss] | {"adapter": LORA | {"kind": kind}, "steps": 4, "lr": {"peak": 0.05}}
    job = make_job(tmp_path / "work", parent=str(parent), **stage)
    saved(job, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out" / "adapter")
    assert (adapter.kind, adapter.rank, adapter.alpha, adapter.base) == (kind, 2, 8, "the base")
    assert len(adapter.layers) == 14
    assert all(layer.b.abs().max() > 0 for layer in adapter.layers.values())
    kept = read_tensors(next((tmp_path / "work" / "checkpoints").iterdir()) / "tensors.safetensors")
    leaves = {name.rpartition(".")[2] for name in kept if name != "step"}
    assert leaves == ({"a", "b", "magnitude"} if kind == "dora" else {"a", "b"})
    base, merged = (checkpoint.load_model(folder) for folder in (parent, tmp_path / "out"))
    assert torch.equal(base.embed.weight, merged.embed.weight)
    assert torch.equal(base.norm.weight, merged.norm.weight)
    # The folder is the base with the adapter merged into it.
    merge_adapter(parent, tmp_path / "out" / "adapter", tmp_path / "again")
    again = dict(checkpoint.load_model(tmp_path / "again").named_parameters())
    for name, weight in merged.named_parameters():
        torch.testing.assert_close(weight, again[name])
        assert torch.equal(weight, base.get_parameter(name)) == (
            "blocks" not in name or "norm" in name
        )


def test_its_first_step_is_the_parents(make_job, tmp_path, parent):
    jobs = {
        kind: make_job(
            tmp_path / kind,
            parent=str(parent),
            **({"adapter": LORA | {"kind": kind}} if kind != "full" else {}),
        )
        for kind in ("full", "lora", "rslora", "dora")
    }
    losses = {kind: loop.Trainer(job, WORLD, print).step(0)[0].loss for kind, job in jobs.items()}
    assert list(losses.values()) == pytest.approx([losses["full"]] * 4, abs=1e-5)


@pytest.mark.parametrize("loss", ["all", "apo_zero"])
def test_stopped_and_resumed_gives_the_same_bytes(make_job, tmp_path, parent, loss):
    def stage(name):
        return make_job(tmp_path / name, parent=str(parent), **LOSSES[loss], steps=6, adapter=LORA)

    saved(stage("whole"), tmp_path / "a")

    def at_three(record, steps):
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train(stage("stopped"), WORLD, at_three)
    saved(stage("stopped"), tmp_path / "b")
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_embeddings_can_be_trained_whole(make_job, tmp_path, parent):
    job = make_job(
        tmp_path / "work", parent=str(parent), adapter=LORA | {"embeddings": True, "layers": ["q"]}, lr={"peak": 0.05}
    )  # fmt: skip
    saved(job, tmp_path / "out")
    adapter = read_adapter(tmp_path / "out" / "adapter")
    assert adapter.whole.keys() == {"embed.weight", "unembed.weight"}
    assert len(adapter.layers) == 2
    merge_adapter(parent, tmp_path / "out" / "adapter", tmp_path / "again")
    again = dict(checkpoint.load_model(tmp_path / "again").named_parameters())
    for name, weight in checkpoint.load_model(tmp_path / "out").named_parameters():
        torch.testing.assert_close(weight, again[name])


def test_the_frozen_base_is_held_as_the_stage_says(make_job, tmp_path, parent):
    def model(**stage):
        job = make_job(
            tmp_path / json.dumps(stage)[:40].replace("/", ""), parent=str(parent), **stage
        )
        return loop.Trainer(job, WORLD, print).model

    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        held = model(adapter=LORA, precision=precision)
        assert held.blocks[0].attention.q.weight.dtype == dtype
        assert held.embed.weight.dtype == torch.float32
        assert {p.dtype for p in trained(held).values()} == {torch.float32}
    four = model(adapter=LORA | {"base": "nf4"})
    layer = four.blocks[0].attention.q
    assert isinstance(layer, Adapted)
    assert layer.weight is None
    assert layer.four_bits.codes.numel() == 16 * 16 / 2


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_four_bits_train_and_merge(make_job, tmp_path, parent, kind):
    job = make_job(
        tmp_path / "work", parent=str(parent), adapter=LORA | {"kind": kind, "base": "nf4"}, steps=8, lr={"peak": 0.05}
    )  # fmt: skip
    trainer = loop.Trainer(job, WORLD, print)
    first = trainer.step(0)[0].loss
    assert all(math.isfinite(trainer.step(k)[0].loss) for k in range(1, 8))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        unmerged = trainer.model(ids)
        merged = trainer.result().model(ids)
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    full = (
        loop.Trainer(make_job(tmp_path / "full", parent=str(parent)), WORLD, print).step(0)[0].loss
    )
    assert abs(first - full) < 0.2  # four bits are not far from the base
    assert trainer.result is not None


def test_normal_float_is_the_published_code():
    published = [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ]  # fmt: skip
    assert normal_float_levels() == pytest.approx(published, abs=2e-4)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_four_bits_are_the_nearest_level(rows, columns, seed, size):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    back = FourBits(weight).weight(torch.float32)
    assert back.shape == weight.shape
    gap = max(b - a for a, b in zip(normal_float_levels(), normal_float_levels()[1:], strict=False))
    flat, away = weight.flatten(), (weight - back).abs().flatten()
    for start in range(0, len(flat), BLOCK):
        largest = flat[start : start + BLOCK].abs().max()
        assert away[start : start + BLOCK].max() <= (gap / 2 + 2**-7) * largest


def test_four_bits_have_the_gradient_of_their_weight():
    torch.manual_seed(0)
    matrix = FourBits(torch.randn(6, 10))
    x, y = (torch.randn(3, 10, requires_grad=True) for _ in range(2))
    y.data = x.data.clone()
    matrix(x).square().sum().backward()
    (y @ matrix.weight(torch.float32).T).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"adapter": {"rank": 0}}, "greater than 0"),
        ({"adapter": {"layers": ["q", "q"]}}, "names one twice"),
        ({"adapter": {"layers": ["nose"]}}, "Input should be"),
        ({"adapter": LORA, "carry": ["optimizer"]}, "begins anew"),
    ],
)
def test_a_stage_that_cannot_be(make_job, tmp_path, stage, problem):
    with pytest.raises(ValidationError, match=problem):
        make_job(tmp_path, **stage)


def test_a_model_in_parts_is_refused(make_job, tmp_path, parent):
    job = make_job(tmp_path, parent=str(parent), adapter=LORA, parallel={"shard": 2})
    with pytest.raises(UserError, match=r"adapter: every process holds the whole model"):
        loop.parallelism(job, ProcessGroup(0, 2, torch.device("cpu")))


# files


@pytest.fixture
def files(make_job, tmp_path, parent):
    saved(make_job(tmp_path / "work", parent=str(parent), adapter=LORA), tmp_path / "out")
    return tmp_path / "out" / "adapter"


CONFIGS = {
    "another method": ({"peft_type": "IA3"}, "peft_type: 'IA3' is not supported"),
    "biases": ({"bias": "all"}, "bias: 'all' is not supported"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    "no rank": ({"r": None}, "r: must be a whole number"),
    "a wrong rank": ({"r": 3}, "do not fit a rank of 3"),
    "no alpha": ({"lora_alpha": "much"}, "lora_alpha: must be a number"),
    "both": ({"use_rslora": True, "use_dora": True}, "together"),
    "dora without magnitudes": ({"use_dora": True}, "has .*not .*magnitude"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(files, case):
    changes, problem = CONFIGS[case]
    config = json.loads((files / "adapter_config.json").read_text())
    (files / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=problem):
        read_adapter(files)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.clear(), "holds no layers"),
        (lambda t: t.pop(next(iter(t))), "not \\['a', 'b'\\]"),
        (lambda t: t.update({"base_model.model.model.norm.lora_A.weight": torch.ones(2, 2)}), "no part"),
        (lambda t: t.update({"strange": torch.ones(2, 2)}), "no part"),
        (lambda t: t.update({next(iter(t)): torch.ones(2)}), "do not fit"),
    ],
)  # fmt: skip
def test_tensors_that_are_refused(files, change, problem):
    tensors = read_tensors(files / "adapter_model.safetensors")
    change(tensors)
    write_tensors(files / "adapter_model.safetensors", tensors)
    with pytest.raises(UserError, match=problem):
        read_adapter(files)


def test_a_base_that_does_not_fit(files, parent, tmp_path, tokenizer):
    from tests.support.noise import save_noise

    save_noise(tmp_path / "wide", tokenizer)
    with pytest.raises(UserError, match=r"is for a weight of \[.*\], the model's is \[.*\]"):
        merge_adapter(tmp_path / "wide", files, tmp_path / "merged")
    save_noise(tmp_path / "short", tokenizer, layers=1, uses_rope=(True,))
    with pytest.raises(UserError, match="has no such layer"):
        merge_adapter(tmp_path / "short", files, tmp_path / "merged")


def test_merged_in_bfloat16_is_unmerged_within_its_rounding(files, parent, tmp_path):
    merge_adapter(parent, files, tmp_path / "half", dtype="bfloat16")
    merge_adapter(parent, files, tmp_path / "whole")
    half = dict(checkpoint.load_model(tmp_path / "half").named_parameters())
    for name, weight in checkpoint.load_model(tmp_path / "whole").named_parameters():
        assert torch.equal(half[name], weight.bfloat16().float())


def test_a_head_apart_does_not_fit_a_tied_base(make_job, tmp_path, parent):
    job = make_job(tmp_path / "work", parent=str(parent), adapter=LORA | {"embeddings": True})
    saved(job, tmp_path / "out")
    file = tmp_path / "out/adapter/adapter_model.safetensors"
    tensors = read_tensors(file)
    write_tensors(
        file,
        tensors
        | {"base_model.model.lm_head.weight": tensors["base_model.model.lm_head.weight"] + 1},
    )
    with pytest.raises(UserError, match="embedding and head were trained apart"):
        merge_adapter(parent, tmp_path / "out/adapter", tmp_path / "merged")


@pytest.mark.parametrize("kinds", [("lora", "rslora"), ("lora", "lora")])
def test_one_adapter_holds_those_of_two_stages(make_job, parent, tmp_path, kinds):
    """Of different layers and ranks: on the first base, what the second stage left."""
    first = {"kind": kinds[0], "rank": 3, "alpha": 8, "layers": ["q", "v", "up"]}
    second = {"kind": kinds[1], "rank": 2, "alpha": 6, "layers": ["q", "down"]}
    tokenizer = Tokenizer.load(parent)
    train(make_job(tmp_path / "one", parent=str(parent), adapter=first), WORLD).save(
        tokenizer, tmp_path / "sft", parent=parent, base=str(parent)
    )
    result = train(make_job(tmp_path / "two", parent=str(tmp_path / "sft"), adapter=second), WORLD)
    result.save(tokenizer, tmp_path / "apo", parent=tmp_path / "sft", base=str(tmp_path / "sft"))
    found = read_adapter(tmp_path / "apo/adapter")
    assert (found.rank, found.base) == (5, str(parent))
    merge_adapter(parent, tmp_path / "apo/adapter", tmp_path / "merged")
    ours = dict(checkpoint.load_model(tmp_path / "apo").named_parameters())
    for name, weight in checkpoint.load_model(tmp_path / "merged").named_parameters():
        torch.testing.assert_close(weight, ours[name], atol=1e-6, rtol=1e-5)


def test_doras_are_not_added_up(make_job, parent, tmp_path):
    dora = {"kind": "dora", "rank": 2, "layers": ["q"]}
    tokenizer = Tokenizer.load(parent)
    train(make_job(tmp_path / "one", parent=str(parent), adapter=LORA), WORLD).save(
        tokenizer, tmp_path / "sft", parent=parent, base=str(parent)
    )
    train(make_job(tmp_path / "two", parent=str(tmp_path / "sft"), adapter=dora), WORLD).save(
        tokenizer, tmp_path / "apo", parent=tmp_path / "sft", base=str(tmp_path / "sft")
    )
    assert read_adapter(tmp_path / "apo/adapter").base == str(tmp_path / "sft")
