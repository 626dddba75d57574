"""Compiled blocks: one graph each, whatever the documents are; recomputed blocks: the same numbers."""

import sys
from functools import partial

import pytest
import torch

from smollm3.data.batch import Batch
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.train.forward import Forward, compile_parts, use_float8
from smollm3.train.losses import language_modelling
from smollm3.train.recompute import apply_recompute
from smollm3.train.spec import TrainStage

# The compiler itself looks at every input's .grad.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")

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
        compile_parts(model)
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
    assert graphs <= 3  # the blocks with and without RoPE, and the cross-entropy


@pytest.mark.slow
def test_the_models_of_many_stages_compile_in_one_process(monkeypatch):
    """PyTorch's own limit is 8 graphs for one piece of code, and a block takes two a model."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    for _ in range(6):
        compiled = make(compile=True)
        gradients(*compiled, 3)
        with torch.no_grad():
            compiled[1](batch(3))


def test_float8_is_near_and_not_equal():
    """Emulated here: the same rounding, without a GPU's products."""
    exact, narrow = make(), make()
    use_float8(narrow[0], DEVICE)
    for a, b in zip(gradients(*exact, 3), gradients(*narrow, 3), strict=True):
        assert 0 < (a - b).norm() < 0.2 * a.norm()
    names = {n for n, m in narrow[0].named_modules() if type(m).__name__ == "Float8Linear"}
    assert len(names) == 5 * CONFIG.layers  # all but keys, values and the head


def test_float8_is_for_whole_models():
    with pytest.raises(ValueError, match="float8 trains whole models"):
        stage(precision="float8", adapter={"rank": 2})


def test_float8_without_torchao_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"precision: float8 needs torchao.*smollm3\[gpu\]"):
        use_float8(make()[0], DEVICE)
