from dataclasses import replace

import pytest
import torch

from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.layout import Layout
from smollm3.train.memory import training_memory
from smollm3.train.optimizer import adamw, empty_tensors, set_tensors, tensors_of
from smollm3.train.optimizer import update as step
from smollm3.train.spec import LearningRate, Optimizer, TrainStage

CONFIG = ModelConfig(
    vocab_size=20, layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=8,
    uses_rope=(True, False), rope_theta=1e4, context=16,
)  # fmt: skip


def make(config=CONFIG, seed=0):
    model = Transformer(config)
    model.init_weights(seed)
    return model


def update(model, optimizer, k):
    generator = torch.Generator().manual_seed(k)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()


def test_everything_decays_but_the_embedding():
    for tied in (True, False):
        model = make(replace(CONFIG, tied=tied))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = adamw(model, Optimizer(weight_decay=0.5))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()  # no gradient: only the decay moves weights
        for name, parameter in model.named_parameters():
            factor = 1.0 if name == "embed.weight" else 1 - 0.1 * 0.5
            torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)
        assert ("unembed.weight" in before) is not tied


def test_the_published_numbers_are_the_default():
    groups = adamw(make(), Optimizer()).param_groups
    assert {(*g["betas"], g["eps"]) for g in groups} == {(0.9, 0.95, 1e-8)}
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]


def test_going_on_from_a_file_is_going_on(tmp_path):
    path = tmp_path / "optimizer.safetensors"
    whole = make()
    optimizer = adamw(whole, Optimizer())
    assert tensors_of(optimizer, whole) == {}
    for k in range(3):
        update(whole, optimizer, k)
    write_tensors(path, tensors_of(optimizer, whole))

    second = make(seed=1)
    second.load_state_dict(whole.state_dict())
    second_optimizer = adamw(second, Optimizer())
    set_tensors(second_optimizer, second, read_tensors(path), path)
    for model, opt in ((whole, optimizer), (second, second_optimizer)):
        update(model, opt, 3)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert float(tensors_of(second_optimizer, second)["step"]) == 4


def test_another_models_moments_are_refused(tmp_path):
    path = tmp_path / "optimizer.safetensors"
    model = make()
    optimizer = adamw(model, Optimizer())
    update(model, optimizer, 0)
    tensors = tensors_of(optimizer, model)
    for other in (replace(CONFIG, vocab_size=21), replace(CONFIG, layers=1, uses_rope=(True,))):
        wrong = make(other)
        with pytest.raises(UserError, match=r"optimizer\.safetensors: .*not the optimizer state"):
            set_tensors(adamw(wrong, Optimizer()), wrong, tensors, path)
    del tensors["exp_avg/norm.weight"]
    with pytest.raises(UserError, match=r"exp_avg/norm\.weight"):
        set_tensors(adamw(model, Optimizer()), model, tensors, path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.safetensors: no such file"):
        read_tensors(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"y\.safetensors: damaged"):
        read_tensors(tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"no/z\.safetensors"):
        write_tensors(tmp_path / "no" / "z.safetensors", {"a": torch.zeros(1)})


# 8 bits

LARGE = replace(CONFIG, hidden=64, kv_heads=2, head_dim=32, ffn=128)
EIGHT = Optimizer(moments="8bit", weight_decay=0)


def descend(model, optimizer, steps, first=0):
    """Steps towards weights of 0.1, along noisy gradients."""
    for k in range(first, first + steps):
        generator = torch.Generator().manual_seed(k)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (parameter.detach() - 0.1) + 0.01 * noise
        step(optimizer, 0.01)


def test_eight_bits_learn_as_thirty_two_do_and_take_a_quarter():
    distances, sizes = [], []
    for spec in (Optimizer(weight_decay=0), EIGHT):
        model = make(LARGE)
        optimizer = adamw(model, spec)
        descend(model, optimizer, 30)
        weights = torch.cat([p.detach().flatten() for p in model.blocks[0].ffn.parameters()])
        distances.append(float((weights - 0.1).abs().mean()))
        tensors = tensors_of(optimizer, model)
        large = {n: t for n, t in tensors.items() if "ffn.gate" in n}
        sizes.append(sum(t.numel() * t.itemsize for t in large.values()))
        room = empty_tensors(optimizer, model)
        assert {n: (t.shape, t.dtype) for n, t in room.items()} == {
            n: (t.shape, t.dtype) for n, t in tensors.items()
        }
    start = float((make(LARGE).blocks[0].ffn.gate.weight.detach() - 0.1).abs().mean())
    assert distances[1] == pytest.approx(distances[0], abs=0.02 * start)
    assert distances[1] < 0.5 * start
    assert sizes == [2 * (128 * 64 * 8), 2 * (2 * 128 * 64 + 2 * 4 * 128 * 64 // 256)]


def test_eight_bits_go_on_from_a_file_with_the_same_bits(tmp_path):
    path = tmp_path / "optimizer.safetensors"
    whole, half = make(LARGE), make(LARGE)
    first, second = adamw(whole, EIGHT), adamw(half, EIGHT)
    descend(whole, first, 4)
    descend(half, second, 2)
    write_tensors(path, tensors_of(second, half))
    third = adamw(half, EIGHT)
    set_tensors(third, half, read_tensors(path), path)
    descend(half, third, 2, first=2)
    for name, tensor in tensors_of(first, whole).items():
        assert torch.equal(tensor, tensors_of(third, half)[name]), name
    for ours, theirs in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="not the optimizer state of this model"):
        set_tensors(adamw(half, Optimizer()), half, read_tensors(path), path)


def test_the_planner_counts_eight_bits():
    config = replace(LARGE, vocab_size=512)
    model = make(config)
    held = empty_tensors(adamw(model, EIGHT), model)
    stage = TrainStage(
        kind="train", mixture={"x": 1}, context=16, batch=1, steps=1,
        lr=LearningRate(peak=1e-3), optimizer=EIGHT,
    )  # fmt: skip
    counted = training_memory(config, stage, Layout(), on_gpus=True, chunk=1 << 20)
    taken = sum(t.numel() * t.itemsize for t in held.values())
    assert counted.moments == pytest.approx(taken, rel=0.03)
    assert counted.accumulated  # the whole model on every process
