"""`export`: every format's name, and what it refuses before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smollm3.chat import default_template
from smollm3.checkpoint import load_model, load_tokenizer, save_model
from smollm3.checkpoint.export import FORMATS, check_format, export
from smollm3.errors import UserError
from smollm3.files import read_json
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer

CONFIG = ModelConfig(
    vocab_size=512,
    layers=2,
    hidden=256,
    heads=2,
    kv_heads=1,
    head_dim=32,
    ffn=256,
    uses_rope=nope_pattern(2, 4),
    rope_theta=10_000.0,
    context=64,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    model = Transformer(CONFIG)
    model.init_weights(0)
    tokenizer = Tokenizer.train(["to be or not to be"], 300, default_template())
    save_model(model, tokenizer, folder, dtype="bfloat16")
    return folder


@pytest.mark.parametrize("to", FORMATS)
def test_every_format(source: Path, tmp_path: Path, to: str) -> None:
    if to.startswith("gguf:"):
        pytest.importorskip("gguf", reason="writes GGUF")
        out = tmp_path / "model.gguf"
    else:
        out = tmp_path / "new" / "folder"
    assert export(source, to, out, card="# a card\n") == str(out)
    if to == "mlx:4bit":
        assert read_json(out / "config.json")["quantization"]["bits"] == 4
        return
    original, written = load_model(source), load_model(out)
    assert written.config == original.config
    exact = to in ("hf", "hf:float32", "hf:bfloat16", "gguf:f32", "gguf:bf16", "mlx")
    tolerance = 0 if exact else 0.01
    for name, expected in original.named_parameters():
        found = written.get_parameter(name)
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=name)
    text = "to be, not 2b"
    assert load_tokenizer(out).encode(text) == load_tokenizer(source).encode(text)
    if out.is_dir():
        assert (out / "README.md").read_text() == "# a card\n"
        stored = to.removeprefix("hf:") if ":" in to else "bfloat16"
        assert read_json(out / "config.json")["dtype"] == stored


def test_names() -> None:
    assert check_format("gguf:Q4_K_M") == "gguf:q4_k_m"
    assert check_format("hub:Some/Body") == "hub:Some/Body"
    with pytest.raises(UserError, match=r"'gguf:q4_k' is not .*did you mean 'gguf:q4_k_m'\?"):
        check_format("gguf:q4_k")
    with pytest.raises(UserError, match=r"did you mean 'mlx:4bit'\?"):
        check_format("mlx-4bit")
    with pytest.raises(UserError, match=r"'onnx' is not .*take hf, .* or hub:USER/NAME"):
        check_format("onnx")


def test_nothing_of_the_user_is_overwritten(source: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already; choose another folder"):
        export(source, "hf", tmp_path)
    with pytest.raises(UserError, match="exists already"):
        export(source, "mlx", tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"a GGUF is one file; .* ends in \.gguf"):
        export(source, "gguf:f32", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_only_a_folder_goes_to_the_hub(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="writes GGUF")
    file = tmp_path / "model.gguf"
    export(source, "gguf:f32", file)
    with pytest.raises(UserError, match=r"model\.gguf: needs config\.json .*--to hf"):
        export(file, "hub:somebody/tiny", tmp_path / "unused")
