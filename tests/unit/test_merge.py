from dataclasses import replace

import pytest
import torch

from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint import weights as files
from smollm3.errors import UserError
from smollm3.merge import merge
from smollm3.model import ModelConfig, Transformer, nope_pattern

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
    model = Transformer(replace(CONFIG, rope_theta=5e6))
    model.init_weights(7)
    save_model(model, tokenizer, tmp_path / "half", dtype="bfloat16")
    merge({tmp_path / "half": 0.5, parents[1]: 0.5}, tmp_path / "out")
    assert set(files.Weights(tmp_path / "out").dtypes.values()) == {"bfloat16"}
    merged = load_model(tmp_path / "out")
    assert merged.config.rope_theta == 5e6
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
        ("wide", replace(CONFIG, ffn=32), r"layers\.0\.mlp\.down_proj.*\[16, 24\].*\[16, 32\]"),
        ("untied", replace(CONFIG, tied=False), r"lm_head\.weight is in .*untied but not in .*p0"),
    ):
        model = Transformer(config)
        model.init_weights(0)
        save_model(model, tokenizer, tmp_path / name)
        with pytest.raises(UserError, match=problem):
            merge({parents[0]: 1, tmp_path / name: 1}, tmp_path / "out")
    with pytest.raises(UserError, match="no parents"):
        merge({}, tmp_path / "out")
