"""Files of random weights: whole models that any engine loads."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.support.llamacpp import LlamaCpp

from smollm3.bench import shapes
from smollm3.bench.shapes import SHAPES, RandomBlocks, make_shape, tokenizer_of_size, write_random
from smollm3.checkpoint import load_model, load_tokenizer
from smollm3.checkpoint.gguf.reader import Gguf
from smollm3.errors import UserError
from smollm3.model import nope_pattern
from smollm3.tokenizer import build as tokenizer_build

pytest.importorskip("gguf", reason="the gguf package writes")

TINY = replace(
    SHAPES["smollm3-3b"], vocab_size=700, layers=4, hidden=256, heads=4, kv_heads=2, head_dim=64,
    ffn=512, uses_rope=nope_pattern(4, 4), context=128,
)  # fmt: skip


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "q4_k_m", "bf16"])
def test_random_weights_load_and_give_sane_logits(kind, tmp_path):
    path = make_shape(f"tiny:{kind}", tmp_path)
    assert path.name == f"tiny-{kind}.gguf"
    model = load_model(path)
    assert model.config == TINY
    assert float(model.blocks[1].ffn.up.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert torch.equal(model.norm.weight, torch.ones(256))
    logits_TV = model(torch.arange(20)[None])[0]
    assert logits_TV.isfinite().all()
    assert len(set(logits_TV.argmax(-1).tolist())) > 1
    ours, ids = load_tokenizer(path), [66, 260, 699]
    assert ours.vocab_size == 700
    if importlib.util.find_spec("xllamacpp"):
        with LlamaCpp(path) as theirs:
            expected = torch.from_numpy(theirs.log_probs(ids))
        actual = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        assert (actual - expected).abs().max() < 0.05


def test_every_tensor_and_row_has_its_own_values(tmp_path):
    write_random(TINY, tmp_path / "m.gguf", "q8_0")
    file = Gguf(tmp_path / "m.gguf")
    matrices = [file.read(name) for name, t in file.tensors.items() if len(t.shape) == 2]
    rows = np.concatenate([m[:, :256] for m in matrices])
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_blocks_repeat_shifted_against_the_rows():
    blocks = RandomBlocks(0.02, 0, values=1024)  # 29 blocks, where 32 would make rows repeat
    rows = blocks.take("Q8_0", 40 * 256).reshape(40, -1)
    assert len(np.unique(rows, axis=0)) == 29  # as many as there are places to begin


def test_the_same_bytes_again_and_made_once(tmp_path, monkeypatch):
    path = make_shape("tiny", tmp_path)
    write_random(TINY, tmp_path / "again.gguf", "q4_0")
    assert path.read_bytes() == (tmp_path / "again.gguf").read_bytes()
    monkeypatch.setattr(shapes, "write_random", None)  # a second write would fail
    assert make_shape("tiny:q4_0", tmp_path) == path


@pytest.mark.parametrize("spec", ["tiny:q3_k", "smollm4", ":q4_0", ""])
def test_unknown_names_are_refused(spec, tmp_path):
    with pytest.raises(UserError, match="smollm3-3b, .* kind of f32"):
        make_shape(spec, tmp_path)
    assert not list(tmp_path.iterdir())


def test_published_sizes():
    assert SHAPES["smollm3-3b"].parameters == SHAPES["llama-3b"].parameters == 3_075_098_624
    assert SHAPES["smollm2-135m"].parameters == 134_515_008
    assert [i for i, rope in enumerate(SHAPES["smollm3-3b"].uses_rope) if not rope][:2] == [3, 7]


def test_smollm3s_own_tokenizer_where_it_is_installed():
    if importlib.util.find_spec("llama_models") is None:
        pytest.skip("its vocabulary comes from the package llama-models")
    tokenizer = tokenizer_of_size(128_256)
    assert tokenizer.encode("Hello") == [9906]


def test_synthetic_tokenizer_without_it(monkeypatch):
    monkeypatch.setattr(tokenizer_build, "PACKAGE", "not_installed")
    tokenizer = tokenizer_of_size(600)
    assert tokenizer.vocab_size == 600
    assert tokenizer.decode(tokenizer.encode("Größe 日本")) == "Größe 日本"
    larger = tokenizer_of_size(tokenizer_build.CONTROL_TOKENS + 256 + 65536 + 5)
    assert len(larger.encode("Hello")) == 3  # pairs
