"""Adapters against PEFT: files both ways, logits, gradients, and steps of training."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from tests.support.noise import save_noise

from smollm3 import checkpoint
from smollm3.checkpoint.adapter import read_adapter, write_adapter
from smollm3.merge import merge_adapter
from smollm3.train.adapters import adapted, initial, trained, weights_of
from smollm3.train.spec import Adapter

CPU = torch.device("cpu")
ALL = ["q", "k", "v", "o", "gate", "up", "down"]
SPECS = {
    "lora": {"rank": 4, "alpha": 8},
    "rslora": {"kind": "rslora", "rank": 4, "alpha": 8},
    "dora": {"kind": "dora", "rank": 3, "alpha": 6},
    "some layers": {"rank": 2, "alpha": 5, "layers": ["q", "down"]},
    "embeddings": {"rank": 2, "alpha": 4, "embeddings": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("base")
    save_noise(folder, tokenizer)
    return folder


def ours(base, spec, noise=0.1):
    """Our adapted model; with noise an adapter that has learnt something."""
    weights = checkpoint.open_weights(base)
    read = initial(lambda name, shape, part: weights(name)[part], seed=7)
    model = adapted(checkpoint.load_config(base), spec, read, half=False, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=noise)
    return model


def theirs(base, folder, trainable=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        return PeftModel.from_pretrained(model, folder, is_trainable=trainable)


@pytest.fixture(params=SPECS)
def spec(request):
    return Adapter.model_validate(SPECS[request.param])


def test_peft_gives_our_logits(base, spec, tmp_path):
    model = ours(base, spec)
    write_adapter(tmp_path, replace(weights_of(model, spec), base=str(base)))
    ids = torch.randint(290, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(base, tmp_path)(ids).logits
        assert (model(ids) - expected).abs().max() < 1e-5
        assert (checkpoint.load_model(base)(ids) - expected).abs().max() > 1e-2


def test_what_peft_writes_is_read_and_merged(base, spec, tmp_path):
    (tmp_path / "ours").mkdir()
    write_adapter(tmp_path / "ours", replace(weights_of(ours(base, spec), spec), base=str(base)))
    model = theirs(base, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    read, back = read_adapter(tmp_path / "ours"), read_adapter(tmp_path / "theirs")
    assert (back.kind, back.rank, back.alpha) == (read.kind, read.rank, read.alpha)
    assert back.layers.keys() == read.layers.keys()
    merge_adapter(base, tmp_path / "theirs", tmp_path / "merged")
    ids = torch.randint(290, (2, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged = checkpoint.load_model(tmp_path / "merged")(ids)
        assert (merged - model(ids).logits).abs().max() < 1e-4


def test_gradients_and_a_curve_of_training_are_theirs(base, spec, tmp_path):
    model = ours(base, spec, noise=0.02)
    write_adapter(tmp_path, replace(weights_of(model, spec), base=str(base)))
    peer = theirs(base, tmp_path, trainable=True).train()
    ids = torch.randint(290, (3, 16), generator=torch.Generator().manual_seed(0))
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=2e-3, weight_decay=0)
        for m in (model, peer)
    ]
    # PEFT trains head and embedding apart, though the base ties them.
    steps = 1 if spec.embeddings else 50 if len(spec.layers) == 7 else 10
    for step in range(steps):
        losses, norms = [], []
        for each, optimizer in zip((model, peer), optimizers, strict=True):
            output = each(ids)
            logits = getattr(output, "logits", output)[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
            losses.append(loss.item())
            optimizer.step()
        assert losses[0] == pytest.approx(losses[1], rel=0.01 if step else 1e-5)
        if not step and not spec.embeddings:
            assert norms[0] == pytest.approx(norms[1], rel=1e-4)
            first = losses[0]
    if steps == 50:
        assert losses[0] < first - 0.1


def test_the_configuration_names_what_peft_needs(base, spec, tmp_path):
    write_adapter(tmp_path, weights_of(ours(base, spec), spec))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == len(spec.layers)
    assert config["use_dora"] == (spec.kind == "dora")
