"""Long context: `extend_context` against transformers' YaRN, and what it must leave alone."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SmolLM3Config, SmolLM3ForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint.config import from_json
from smollm3.errors import UserError
from smollm3.infer import load_engine
from smollm3.model import ModelConfig, Transformer, Yarn, extend_context, nope_pattern, rope_tables
from smollm3.model.rope import inverse_frequencies
from smollm3.tokenizer import Tokenizer

SMOLLM3 = ModelConfig(
    vocab_size=128256,
    layers=36,
    hidden=2048,
    heads=16,
    kv_heads=4,
    head_dim=128,
    ffn=11008,
    uses_rope=nope_pattern(36, 4),
    rope_theta=5e6,
    context=65536,
)
TINY = dataclasses.replace(
    SMOLLM3,
    vocab_size=300,
    layers=4,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    uses_rope=nope_pattern(4, 4),
    rope_theta=10_000.0,
    context=64,
    init_std=0.15,
)
IDS_BT = torch.arange(120).mul(37).remainder(300)[None]


def tiny(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.init_weights(0)
    return model


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["to be or not to be"], 300, "")


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    save_model(tiny(TINY), tokenizer, path)
    return path


def test_the_published_setting_for_128k() -> None:
    config = extend_context(SMOLLM3, 131072)
    assert config.context == 131072
    assert config.yarn == Yarn(factor=2.0, original_context=65536)

    plain, _ = inverse_frequencies(128, 5e6, None)
    slowed, attention = inverse_frequencies(128, 5e6, config.yarn)
    ratio = slowed / plain
    assert torch.equal(ratio[:25], torch.ones(25))  # low 24: the ramp starts above it
    assert torch.equal(ratio[39:], torch.full((25,), 0.5))  # high 39
    torch.testing.assert_close(ratio[25:39], 1 - torch.arange(1, 15) / 15 / 2)
    assert attention == pytest.approx(0.1 * math.log(2) + 1)
    assert attention == pytest.approx(1.06931, abs=5e-6)


@settings(max_examples=60)
@given(
    head_dim=st.integers(4, 128).map(lambda n: 2 * n),
    theta=st.floats(1e3, 1e7),
    original=st.integers(64, 131072),
    factor=st.floats(1.001, 2.0),
)
def test_frequencies_and_attention_factor_equal_transformers(
    head_dim: int, theta: float, original: int, factor: float
) -> None:
    shape = dataclasses.replace(TINY, head_dim=head_dim, rope_theta=theta, context=original)
    config = extend_context(shape, math.ceil(original * factor))
    assert config.yarn is not None
    theirs = SmolLM3Config(
        head_dim=head_dim,
        hidden_size=head_dim,
        num_attention_heads=1,
        max_position_embeddings=config.context,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": config.yarn.factor,
            "original_max_position_embeddings": original,
        },
    )
    expected, expected_attention = ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    frequencies, attention = inverse_frequencies(head_dim, theta, config.yarn)
    torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0)
    assert attention == pytest.approx(expected_attention, rel=1e-9)


@pytest.mark.parametrize("context", [100, 128])
def test_logits_beyond_the_trained_length_equal_transformers(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, context: int
) -> None:
    model = load_model(folder, context=context)
    assert model.config.yarn == Yarn(context / 64, 64)
    save_model(model, tokenizer, tmp_path)
    theirs = SmolLM3ForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.rope_parameters["rope_type"] == "yarn"
    ids_BT = IDS_BT[:, :context]
    with torch.no_grad():
        ours, expected = model(ids_BT), theirs(ids_BT).logits
        unscaled = load_model(folder)(ids_BT)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
    assert (ours - unscaled).abs().max() > 1e-2
    # What was written holds the extension without being asked.
    assert load_model(tmp_path).config == model.config


def test_the_setting_of_the_model_card_is_the_same_extension(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_bytes())
    del values["rope_parameters"]
    values["max_position_embeddings"] = 128
    values["rope_scaling"] = {
        "type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 64,
    }
    assert from_json(values, folder / "config.json") == extend_context(TINY, 128)


def test_nope_layers_are_untouched() -> None:
    """Without a RoPE layer, YaRN changes nothing at all, the attention factor included."""
    config = dataclasses.replace(TINY, uses_rope=(False,) * 4)
    extended = extend_context(config, 128)
    with torch.no_grad():
        assert torch.equal(tiny(config)(IDS_BT), tiny(extended)(IDS_BT))


@pytest.mark.parametrize("context", [None, 1, 63, 64])
def test_without_need_nothing_is_scaled(folder: Path, context: int | None) -> None:
    engine = load_engine(folder, context=context)
    assert engine.config == TINY
    positions = torch.arange(64)
    tables = rope_tables(engine.config, positions)
    assert torch.equal(tables.cos[0], torch.ones(16))  # no attention factor


def test_an_engine_serves_the_longer_context(folder: Path) -> None:
    engine = load_engine(folder, context=128)
    ids = IDS_BT[0].tolist()
    with torch.no_grad():
        logprobs = load_model(folder, context=128)(IDS_BT).log_softmax(-1)
    expected = logprobs[0, :-1].gather(-1, IDS_BT[0, 1:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(engine.score(ids)), expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="64"):
        load_engine(folder).score(ids)


def test_what_yarn_is_not_known_to_hold_is_refused(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"context: 129 tokens are 2\.02 times the 64 .* at most 128"
    ):
        load_model(folder, context=129)
    with pytest.raises(UserError, match="at least 1 token"):
        load_engine(folder, context=0)


def test_a_factor_in_config_json_stands() -> None:
    quadrupled = dataclasses.replace(TINY, context=256, yarn=Yarn(4.0, 64))
    assert extend_context(quadrupled, 256) == quadrupled
    with pytest.raises(ValueError, match=r"257 tokens are 4\.02 times the 64"):
        extend_context(quadrupled, 257)
    # The original length, not the extended one, is what factors count from.
    halfway = dataclasses.replace(TINY, context=96, yarn=Yarn(1.5, 64, beta_fast=16.0))
    assert extend_context(halfway, 128).yarn == Yarn(2.0, 64, beta_fast=16.0)
