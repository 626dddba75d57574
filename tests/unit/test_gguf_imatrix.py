"""Importance matrices: measured, written, read, and what a quantised matrix makes of them."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tests.support import llamacpp

from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint.gguf import imatrix
from smollm3.checkpoint.gguf.quantize import quantize
from smollm3.checkpoint.gguf.quants import FORMATS, dequantize
from smollm3.cli import cli
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, rope_tables

gguf = pytest.importorskip("gguf", reason="the gguf package writes")

CONFIG = ModelConfig(
    vocab_size=300,
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    uses_rope=(True, True),
    rope_theta=50_000.0,
    context=128,
    init_std=0.1,
)
ROWS = [list(range(5, 37)), list(range(90, 122))]
WEIGHTED = ("Q4_0", "Q5_0", "Q4_K", "Q6_K")


def made(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    model.init_weights(1)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_sums_are_the_squares_of_what_each_matrix_reads(tied):
    model = made(replace(CONFIG, tied=tied))
    sums, tokens = imatrix.measure(model, ROWS)
    assert tokens == 64
    assert len(sums) == 2 * 7 + 1
    with torch.no_grad():
        ids = torch.tensor(ROWS)
        block, x = model.blocks[0], model.embed(ids)
        read = {"blk.0.attn_q": block.attention_norm(x)}
        rope = rope_tables(CONFIG, torch.arange(32))
        seen = []
        hook = block.ffn.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
        model(ids)
        hook.remove()
        read["blk.0.ffn_up"] = seen[0]
        read["blk.0.ffn_down"] = torch.nn.functional.silu(block.ffn.gate(seen[0])) * block.ffn.up(
            seen[0]
        )
        read["token_embd" if tied else "output"] = model.hidden(ids, rope)
    for name, x in read.items():
        expected = x.square().sum((0, 1)).numpy()
        np.testing.assert_allclose(sums[f"{name}.weight"], expected, rtol=1e-4)


def test_a_file_comes_back_and_is_one_of_llama_cpp(tmp_path):
    sums = {"blk.0.attn_q.weight": np.arange(64, dtype=np.float32)}
    imatrix.write(tmp_path / "m.gguf", sums, 32, ["a.txt"], 16)
    (values,) = imatrix.read(tmp_path / "m.gguf").values()
    np.testing.assert_array_equal(values, np.arange(64, dtype=np.float32) / 32)
    file = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {t.name: t for t in file.tensors}
    # As llama-imatrix writes it: [columns, 1] sums and [1, 1] counts.
    assert list(tensors["blk.0.attn_q.weight.in_sum2"].shape) == [64, 1]
    assert list(tensors["blk.0.attn_q.weight.counts"].shape) == [1, 1]
    assert file.fields["general.type"].contents() == "imatrix"
    assert file.fields["imatrix.chunk_count"].contents() == 2
    assert file.fields["imatrix.chunk_size"].contents() == 16
    assert file.fields["imatrix.datasets"].contents() == ["a.txt"]


def dat(*entries: tuple[bytes, int, list[float]]) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts += [struct.pack("<i", len(name)), name, struct.pack("<ii", calls, len(values))]
        parts.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(parts)


def test_the_older_form_is_read(tmp_path):
    trailer = struct.pack("<ii", 4, 5) + b"a.txt"
    whole = dat((b"blk.0.ffn_up.weight", 4, [4.0, 8.0]), (b"x", 1, [1.0])) + trailer
    (tmp_path / "m.dat").write_bytes(whole)
    found = imatrix.read(tmp_path / "m.dat")
    assert {name: list(x) for name, x in found.items()} == {
        "blk.0.ffn_up.weight": [1.0, 2.0],
        "x": [1.0],
    }


DAMAGED = {
    "empty": b"",
    "words": b"not an importance matrix",
    "no entries": struct.pack("<i", 0),
    "cut short": dat((b"x", 1, [1.0, 2.0]))[:-3],
    "a name without end": struct.pack("<ii", 1, 1 << 30),
    "columns without end": struct.pack("<ii", 1, 1) + b"x" + struct.pack("<ii", 1, 1 << 30),
    "never added to": dat((b"x", 0, [1.0])),
    "NaN": dat((b"x", 1, [float("nan")])),
    "below zero": dat((b"x", 1, [-1.0])),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_no_importance_matrix_is_one_line(what, tmp_path):
    (tmp_path / "m.dat").write_bytes(DAMAGED[what])
    with pytest.raises(UserError, match=r"m\.dat: "):
        imatrix.read(tmp_path / "m.dat")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "holds no importance matrix"),
        ({"x.in_sum2": np.ones((1, 4))}, r"x\.counts: missing"),
        ({"x.in_sum2": np.ones((2, 4)), "x.counts": np.ones((2, 1))}, "not one row"),
        ({"x.in_sum2": np.ones((1, 4)), "x.counts": np.zeros((1, 1))}, "above 0"),
    ],
    ids=["none", "no counts", "experts", "no tokens"],
)
def test_a_gguf_without_what_is_needed_is_one_line(tensors, message, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "imatrix")
    for name, values in tensors.items():
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=message):
        imatrix.read(tmp_path / "m.gguf")


def weights(seed: int, columns: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and an importance that spreads over four powers of ten, as measured ones do."""
    rng = np.random.default_rng(seed)
    rows = (rng.standard_t(5, size=(64, columns)) * 0.02).astype(np.float32)
    return rows, (10 ** rng.uniform(-2, 2, columns)).astype(np.float32)


def error(rows: np.ndarray, importance: np.ndarray, raw: np.ndarray, name: str) -> float:
    return float((importance * (dequantize(raw, name).reshape(rows.shape) - rows) ** 2).sum())


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("seed", range(3))
def test_important_columns_are_rounded_better(name, seed):
    rows, importance = weights(seed)
    found = error(rows, importance, quantize(rows, name, importance), name)
    assert found < 0.93 * error(rows, importance, quantize(rows, name), name)
    # Weights of other columns, or of another row's, would not do it.
    shifted = quantize(rows, name, np.roll(importance, 32))
    assert found < 0.93 * error(rows, importance, shifted, name)


@pytest.mark.parametrize("name", WEIGHTED)
def test_no_worse_than_llama_cpp_with_the_same_matrix(name):
    pytest.importorskip("xllamacpp", reason="llama.cpp is the oracle: pip install xllamacpp")
    rows, importance = weights(7)
    ours = quantize(rows, name, importance)
    theirs = llamacpp.quantize(rows, FORMATS[name].ggml, ours.size, importance)
    assert error(rows, importance, ours, name) < 1.01 * error(rows, importance, theirs, name)


@pytest.mark.parametrize("name", ["Q8_0", "F16", "BF16"])
def test_eight_bits_and_more_take_no_weights(name):
    rows, importance = weights(3)
    assert (quantize(rows, name, importance) == quantize(rows, name)).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_equal_importance_is_none(name):
    rows, importance = weights(4)
    for equal in (0.0, 1.0, 7.0):
        given = np.full_like(importance, equal)
        assert (quantize(rows, name, given) == quantize(rows, name)).mean() > 0.999


def test_columns_that_no_text_reached_keep_their_values():
    rows, importance = weights(5)
    importance[:256] = 0  # whole blocks of nothing
    raw = quantize(rows, "Q4_0", importance)
    kept = np.corrcoef(
        dequantize(raw, "Q4_0").reshape(rows.shape)[:, :256].ravel(), rows[:, :256].ravel()
    )
    assert kept[0, 1] > 0.98


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    return result.exit_code, f"{result.exception}" if result.exception else result.output


def test_from_text_to_a_weighted_file(tokenizer, tmp_path):
    save_model(made(), tokenizer, tmp_path / "model")
    (tmp_path / "a.txt").write_text("some words about nothing at all " * 40)
    out = tmp_path / "m.gguf"
    code, said = run("imatrix", tmp_path / "model", tmp_path / "a.txt", "--out", out, "--chunk", 32)
    assert code == 0, said
    assert "15 matrices over" in said
    plain, weighted = tmp_path / "plain.gguf", tmp_path / "weighted.gguf"
    for file, more in ((plain, ()), (weighted, ("--imatrix", out))):
        code, said = run("export", tmp_path / "model", "--to", "gguf:q4_0", file, *more)
        assert code == 0, said
    assert plain.stat().st_size == weighted.stat().st_size
    before, after = load_model(plain), load_model(weighted)
    matrix = imatrix.read(out)["blk.0.ffn_up.weight"]
    exact = made().blocks[0].ffn.up.weight.detach().numpy()

    def cost(model: Transformer) -> float:
        rounded = model.blocks[0].ffn.up.weight.detach().numpy()
        return float((matrix * (rounded - exact) ** 2).sum())

    assert cost(after) < cost(before)

    other = replace(CONFIG, hidden=32)
    save_model(made(other), tokenizer, tmp_path / "other")
    for arguments, message in (
        (("export", tmp_path / "other", "--to", "gguf:q4_0", tmp_path / "o.gguf", "--imatrix", out),
         "64 columns for"),
        (("export", tmp_path / "model", "--to", "gguf:q8_0", tmp_path / "o.gguf", "--imatrix", out),
         "gguf:q8_0 is not made with one"),
        (("imatrix", tmp_path / "model", tmp_path / "a.txt", "--out", tmp_path / "m.dat"),
         "ends in .gguf"),
        (("imatrix", tmp_path / "model", tmp_path / "a.txt", "--out", out, "--tokens", 9), "9 tokens"),
        (("imatrix", tmp_path / "model", tmp_path / "none.txt", "--out", out), "no such file"),
    ):  # fmt: skip
        code, said = run(*arguments)
        assert code
        assert message in said
    assert not (tmp_path / "o.gguf").exists()
