"""Compiled blocks: one graph each, whatever the documents are; recomputed blocks: the same numbers."""

from functools import partial

import pytest
import torch

from smollm3.data.batch import Batch
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.train.forward import Forward, compile_blocks
from smollm3.train.losses import language_modelling
from smollm3.train.recompute import apply_recompute
from smollm3.train.spec import TrainStage

CONFIG = ModelConfig(64, 4, 32, 4, 2, 8, 48, nope_pattern(4, 2), 1e4, 48)
DEVICE = torch.device("cpu")


def stage(**changes) -> TrainStage:
    wanted = {"kind": "train", "mixture": {"a": 1}, "context": 48, "batch": 2, "steps": 1}
    return TrainStage.model_validate(wanted | {"lr": {"peak": 1e-3}} | changes)


def batch(k: int) -> Batch:
    """Each with another number of documents."""
    generator = torch.Generator().manual_seed(k)
    tokens = torch.randint(64, (2, 49), generator=generator)
    documents = (torch.rand(2, 48, generator=generator) < (k % 20) / 48).long().cumsum(1)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(2, 48), documents, {})


def gradients(model: Transformer, forward: Forward, k: int) -> list[torch.Tensor]:
    model.zero_grad()
    part = forward.mine(batch(k))
    torch.autograd.backward(language_modelling(model, forward(part), part).total)
    return [p.grad for p in model.parameters()]


def make(**changes) -> tuple[Transformer, Forward]:
    spec = stage(**changes)
    model = Transformer(CONFIG)
    model.init_weights(0)
    apply_recompute(model, spec.recompute)
    if spec.compile:
        compile_blocks(model)
    return model, Forward(model, spec, DEVICE)


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_blocks_have_the_same_gradients(recompute):
    plain, again = make(), make(recompute=recompute)
    for a, b in zip(gradients(*plain, 3), gradients(*again, 3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_fifty_batches_of_changing_documents_compile_nothing_again(monkeypatch, recompute):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled, plain = make(compile=True, recompute=recompute), make()
    for k in range(50):
        found = gradients(*compiled, k)
        if k == 2:
            graphs = counters["stats"]["unique_graphs"]
        if k % 10 == 0:
            for a, b in zip(found, gradients(*plain, k), strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert counters["stats"]["unique_graphs"] == graphs
    assert graphs <= 4  # with and without RoPE, each perhaps once more for the first new length
