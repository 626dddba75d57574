"""MLX folders as mlx_lm sees them (on Linux through mlx-cpu)."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.chat import default_template
from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint.hf import published_name
from smollm3.checkpoint.mlx import export_mlx, quantize
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend, load_engine
from smollm3.infer.constrain.masks import Json
from smollm3.model import ModelConfig, Transformer, extend_context, nope_pattern
from smollm3.tokenizer import Tokenizer

mx = pytest.importorskip("mlx.core", reason="needs mlx (on Linux: mlx-cpu)")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs mlx-lm")
tree_flatten = pytest.importorskip("mlx.utils").tree_flatten

CONFIG = ModelConfig(
    vocab_size=300,
    layers=4,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=192,
    uses_rope=nope_pattern(4, 4),
    rope_theta=50_000.0,
    context=64,
    init_std=0.1,
)
PROMPTS = ["to be or not", "42", "é"]
IDS_BT = torch.arange(60).mul(37).remainder(300)[None]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["to be or not to be"], 300, default_template())


def make(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.init_weights(3)
    return model


def mlx_logits(model: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    logits = model(mx.array(ids_BT.numpy())).astype(mx.float32)
    return torch.from_numpy(np.array(logits))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, tied=False),
        dataclasses.replace(CONFIG, uses_rope=(False, True, True, False)),
        dataclasses.replace(CONFIG, uses_rope=(True,) * 4, head_dim=16),
        extend_context(CONFIG, 128),
    ],
    ids=["tied", "untied", "other layers NoPE", "Llama", "YaRN"],
)
def test_float32_gives_the_same_greedy_tokens(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make(config)
    export_mlx(model, tokenizer, tmp_path)
    theirs, their_tokenizer = mlx_lm.load(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(mlx_logits(theirs, IDS_BT), model(IDS_BT), atol=1e-4, rtol=0)
    engine = Engine(TorchBackend(model), tokenizer)
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    for prompt, ours in zip(PROMPTS, engine.generate(PROMPTS, greedy), strict=True):
        steps = mlx_lm.stream_generate(theirs, their_tokenizer, prompt, max_tokens=24)
        tokens = [step.token for step in steps]
        assert tokens == ours.ids[: len(tokens)]
        # mlx_lm stops at the end of an answer, the engine at the end of a document too.
        assert len(tokens) == 24 or tokens[-1] in tokenizer.stop_ids


def test_the_stop_token_ends_an_answer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_mlx(make(CONFIG), tokenizer, tmp_path)
    _, theirs = mlx_lm.load(str(tmp_path))
    assert theirs.eos_token_ids == set(tokenizer.stop_ids)
    ids = theirs.apply_chat_template(
        [{"role": "user", "content": "to be"}], add_generation_prompt=True
    )
    ours = tokenizer.render([{"role": "user", "content": "to be"}]).ids
    assert list(ids) == ours


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4_bit_is_what_mlx_itself_would_write(
    tied: bool, dtype: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Every tensor bit for bit as mlx_lm's own quantiser makes it."""
    # 96 is no multiple of 64, so the down projections stay as they are.
    model = make(dataclasses.replace(CONFIG, tied=tied, ffn=96)).to(getattr(torch, dtype))
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    export_mlx(model, tokenizer, plain)
    export_mlx(model, tokenizer, packed, bits=4)
    ours, config = mlx_lm.utils.load_model(packed)
    theirs, their_config = mlx_lm.utils.quantize_model(*mlx_lm.utils.load_model(plain), 64, 4)
    assert config["quantization"] == their_config["quantization"]

    expected = dict(tree_flatten(theirs.parameters()))
    found = dict(tree_flatten(ours.parameters()))
    assert found.keys() == expected.keys()
    assert "model.layers.0.mlp.down_proj.scales" not in found
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert mx.array_equal(tensor, expected[name]), name


def test_4_bit_gives_the_logits_of_the_dequantised_weights(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make(CONFIG)
    export_mlx(model, tokenizer, tmp_path, bits=4)
    theirs, _ = mlx_lm.utils.load_model(tmp_path)
    restored = dequantized(model, dict(tree_flatten(theirs.parameters())))
    with torch.no_grad():
        logits = restored(IDS_BT)
        torch.testing.assert_close(mlx_logits(theirs, IDS_BT), logits, atol=1e-3, rtol=0)
        assert (logits - model(IDS_BT)).abs().max() > 0.1  # 4 bits cost something


def dequantized(model: Transformer, tensors: dict[str, Any]) -> Transformer:
    restored = Transformer(model.config)
    state = {}
    for name, parameter in model.named_parameters():
        published = published_name(name)
        module = published.removesuffix(".weight")
        value = tensors[published]
        if f"{module}.scales" in tensors:
            scales, biases = tensors[f"{module}.scales"], tensors[f"{module}.biases"]
            value = mx.dequantize(value, scales, biases, 64, 4)
        state[name] = torch.from_numpy(np.array(value.astype(mx.float32)))
        assert state[name].shape == parameter.shape
    restored.load_state_dict(state, strict=False)
    return restored


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(-30, 20),
    shift=st.floats(-3, 3),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
)
def test_packing_equals_mx_quantize(seed: int, spread: float, shift: float, dtype: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 192, generator=generator) + shift
    weight = (weight * 2.0**spread).clamp(-6e4, 6e4).to(getattr(torch, dtype))
    weight[0, :64] = weight[0, 0]  # a group of one value
    theirs = mx.quantize(mx.array(weight.float().numpy()).astype(getattr(mx, dtype)), 64, 4)
    for name, our, their in zip(
        ["weight", "scales", "biases"], quantize(weight), theirs, strict=True
    ):
        if name == "weight":
            np.testing.assert_array_equal(our.numpy(), np.array(their))
        else:
            assert our.dtype == weight.dtype
            np.testing.assert_array_equal(our.float().numpy(), np.array(their.astype(mx.float32)))


def test_rows_are_quantised_in_pieces_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(10, 128, generator=torch.Generator().manual_seed(0))
    whole = quantize(weight)
    monkeypatch.setattr("smollm3.checkpoint.mlx.ROWS", 3)
    for part, expected in zip(quantize(weight), whole, strict=True):
        assert torch.equal(part, expected)


def test_damaged_weights_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make(CONFIG)
    with torch.no_grad():
        model.blocks[1].ffn.up.weight[7, 70] = float("nan")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight: .* not finite"):
        export_mlx(model, tokenizer, tmp_path, bits=4)


def test_a_4_bit_folder_does_not_pass_for_a_plain_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_mlx(make(CONFIG), tokenizer, tmp_path, bits=4)
    assert json.loads((tmp_path / "config.json").read_bytes())["quantization"]["bits"] == 4
    with pytest.raises(UserError, match="quantised weights are not supported"):
        load_model(tmp_path)


# mlx-lm as our engine's backend


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """With a context that holds some blocks."""
    save_model(make(dataclasses.replace(CONFIG, context=256)), tokenizer, tmp_path)
    return tmp_path


def test_the_engine_answers_through_mlx(folder: Path) -> None:
    """Guesses, found prefixes, chunks and scores are those of PyTorch."""
    texts = [[(7 * i + j) % 270 for i in range(100)] for j in (0, 0, 5)]
    texts += [[*texts[0], 9, 8, 7], [3, 3, 3] * 20]
    with (
        load_engine(folder, engine="torch", device="cpu") as ours,
        load_engine(folder, engine="mlx") as theirs,
    ):
        assert (theirs.backend.name, theirs.backend.kv_cache_dtype) == ("mlx", "float32")
        assert theirs.backend.block_bytes == ours.backend.block_bytes
        for params in (SamplingParams(temperature=0), SamplingParams(temperature=1.0, top_p=0.9)):
            asked = dataclasses.replace(params, max_tokens=40, ignore_eos=True)
            answers = [engine.generate(texts, asked) for engine in (ours, theirs)]
            assert [a.ids for a in answers[0]] == [a.ids for a in answers[1]]
        assert theirs.stats().cached_tokens > 300
        for text in texts:
            assert theirs.score(text) == pytest.approx(ours.score(text), abs=1e-4)
        form = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
        schema, accepted = (
            Json({**form, "additionalProperties": False}),
            theirs.stats().accepted_tokens,
        )
        answer = theirs.submit("x", SamplingParams(max_tokens=60), constraint=schema).result()
        assert json.loads(answer.text) in ({"a": 1}, {"a": 2})
        assert theirs.stats().accepted_tokens > accepted  # what the form leaves no choice about


def test_prefixes_are_saved_from_mlx(folder: Path, tmp_path: Path) -> None:
    text = [(7 * i) % 270 for i in range(100)]
    greedy = SamplingParams(temperature=0, max_tokens=20)
    with load_engine(folder, engine="mlx") as engine:
        expected = engine.generate([text], greedy)
        assert engine.save_prefix(text, tmp_path / "p") == 96
    with load_engine(folder, engine="mlx") as engine:
        engine.generate([[5] * 50], greedy)
        engine.load_prefix(tmp_path / "p")
        generation = engine.submit(text, greedy)
        assert generation.result().ids == expected[0].ids
        assert generation.cached_tokens == 96
    with (
        load_engine(folder, engine="torch", device="cpu") as other,
        pytest.raises(UserError, match="saved with another"),
    ):
        other.load_prefix(tmp_path / "p")


def test_narrow_and_quantised_folders_run_on_mlx(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_mlx(make(CONFIG), tokenizer, tmp_path / "q4", bits=4)
    save_model(make(CONFIG), tokenizer, tmp_path / "bf16", dtype="bfloat16")
    for name in ("q4", "bf16"):
        with load_engine(tmp_path / name, engine="mlx") as engine:
            assert engine.generate(["to be"], SamplingParams(max_tokens=5))[0].ids
            size = 1 if engine.backend.kv_cache_dtype == "float32" else 2
            assert engine.backend.block_bytes == 2 * 4 * 2 * 32 * 32 * (4 // size)


def test_what_mlx_does_not_take(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    for option in (
        {"dtype": "float32"},
        {"device": "cpu"},
        {"threads": 1},
        {"kv_cache_dtype": "f32"},
    ):
        [name] = option
        with pytest.raises(UserError, match=f"{name}: mlx-lm takes this from the folder"):
            load_engine(folder, engine="mlx", **option)
    with pytest.raises(UserError, match="mlx-lm goes by config.json, 256 tokens"):
        load_engine(folder, engine="mlx", context=300)
    with pytest.raises(UserError, match="mlx-lm reads folders"):
        load_engine("smollm2-135m", engine="mlx")
    monkeypatch.setitem(sys.modules, "mlx_lm.utils", None)
    with pytest.raises(UserError, match="pip install mlx-lm"):
        load_engine(folder, engine="mlx")
