from dataclasses import replace

import pytest
import torch

from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint import weights as files
from smollm3.errors import UserError
from smollm3.merge import merge
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tensors import write_tensors
from smollm3.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=300,
    layers=2,
    hidden=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=24,
    uses_rope=nope_pattern(2, 2),
    rope_theta=10_000.0,
    context=32,
)


@pytest.fixture
def parents(tmp_path, tokenizer):
    folders = []
    for seed in range(3):
        model = Transformer(CONFIG)
        model.init_weights(seed)
        save_model(model, tokenizer, tmp_path / f"p{seed}")
        folders.append(tmp_path / f"p{seed}")
    return folders


def expected(folders, weights):
    """Computed apart, in float64, from the models themselves."""
    models = [dict(load_model(folder).named_parameters()) for folder in folders]
    total = sum(weights)
    return {
        name: sum(w / total * m[name].double() for w, m in zip(weights, models, strict=True))
        for name in models[0]
    }


@pytest.mark.parametrize("weights", [(0.9, 0.1), (1.0, 1.0, 1.0), (2.0, 5.0, 1.0)])
def test_is_the_weighted_mean(tmp_path, parents, weights):
    folders = parents[: len(weights)]
    merge(dict(zip(folders, weights, strict=True)), tmp_path / "out")
    merged = dict(load_model(tmp_path / "out").named_parameters())
    for name, tensor in expected(folders, weights).items():
        torch.testing.assert_close(merged[name].double(), tensor, atol=1e-8, rtol=1e-6)


def test_order_of_the_parents_is_only_rounding(tmp_path, parents):
    a, b, c = parents
    merge({a: 1, b: 2, c: 3}, tmp_path / "x")
    merge({c: 3, a: 1, b: 2}, tmp_path / "y")
    x, y = (dict(load_model(tmp_path / n).named_parameters()) for n in "xy")
    for name in x:
        torch.testing.assert_close(x[name], y[name], atol=1e-8, rtol=1e-6)


def test_a_model_merged_with_itself_or_alone_is_itself(tmp_path, parents):
    save = parents[0]
    merge({save: 0.3}, tmp_path / "alone")
    for file in save.iterdir():
        assert (tmp_path / "alone" / file.name).read_bytes() == file.read_bytes()


def test_config_and_dtype_are_the_first_parents(tmp_path, parents, tokenizer):
    model = Transformer(replace(CONFIG, context=64))
    model.init_weights(7)
    save_model(model, tokenizer, tmp_path / "half", dtype="bfloat16")
    merge({tmp_path / "half": 0.5, parents[1]: 0.5}, tmp_path / "out")
    assert set(files.Weights(tmp_path / "out").dtypes.values()) == {"bfloat16"}
    merged = load_model(tmp_path / "out")
    assert merged.config.context == 64
    # float32 arithmetic, one rounding at the end
    mean = (model.bfloat16().float().embed.weight + load_model(parents[1]).embed.weight) / 2
    assert torch.equal(merged.embed.weight, mean.bfloat16().float())


def test_sharded_parents_and_output(tmp_path, parents, monkeypatch):
    merge({parents[0]: 1, parents[1]: 1}, tmp_path / "whole")
    monkeypatch.setattr(files, "SHARD_BYTES", 6000)
    merge({parents[0]: 1, parents[1]: 1}, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    merge({tmp_path / "shards": 1}, tmp_path / "again")
    whole, again = (dict(load_model(tmp_path / n).named_parameters()) for n in ("whole", "again"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_are_above_zero(tmp_path, parents, weight):
    with pytest.raises(UserError, match=r"weight of .*p1"):
        merge({parents[0]: 1.0, parents[1]: weight}, tmp_path / "out")


def test_parents_must_agree(tmp_path, parents, tokenizer):
    for name, config, problem in (
        ("wide", replace(CONFIG, ffn=32), "ffn is 24 in .*p0 but 32 in .*wide"),
        ("untied", replace(CONFIG, tied=False), "tied is True in .*p0 but False in .*untied"),
        ("turned", replace(CONFIG, rope_theta=5e6), "rope_theta is 10000.0 in .* but 5000000.0 in"),
    ):
        model = Transformer(config)
        model.init_weights(0)
        save_model(model, tokenizer, tmp_path / name)
        with pytest.raises(UserError, match=problem):
            merge({parents[0]: 1, tmp_path / name: 1}, tmp_path / "out")
    with pytest.raises(UserError, match="no parents"):
        merge({}, tmp_path / "out")


def test_parents_must_mean_the_same_tokens(tmp_path, parents, tokenizer):
    other = Tokenizer.train(["quite other words in another order"] * 9, 290, tokenizer.template)
    model = Transformer(CONFIG)
    model.init_weights(0)
    save_model(model, other, tmp_path / "other")
    with pytest.raises(UserError, match="number other tokens"):
        merge({parents[0]: 1, tmp_path / "other": 1}, tmp_path / "out")


def test_a_tied_head_that_is_written_twice_is_merged(tmp_path, parents):
    weights = files.Weights(parents[1])
    tensors = {name: weights[name].clone() for name in weights}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    merge({parents[0]: 1, parents[1]: 1}, tmp_path / "plain")
    write_tensors(parents[1] / "model.safetensors", tensors, {"format": "pt"})
    merge({parents[0]: 1, parents[1]: 1}, tmp_path / "twice")
    merge({parents[1]: 1, parents[0]: 1}, tmp_path / "first")
    expected = (tmp_path / "plain" / "model.safetensors").read_bytes()
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == expected
    assert "lm_head.weight" not in files.Weights(tmp_path / "first")
