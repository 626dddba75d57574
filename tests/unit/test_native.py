"""The native backend: the forms of weights, the arithmetic against PyTorch, and bits that stay."""

import os
import threading

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.gguf_files import write_mixed

from smollm3.checkpoint import load_model, save_model
from smollm3.checkpoint.gguf.quantize import RECODED, quantize
from smollm3.checkpoint.gguf.quants import FORMATS, dequantize
from smollm3.errors import UserError
from smollm3.infer.backends import BLOCK, StepBatch
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern

kernels = pytest.importorskip("smollm3_kernels", reason="the CPU kernels are not installed")

from smollm3.infer.backends import packed  # noqa: E402
from smollm3.infer.backends.native import NativeBackend  # noqa: E402

ISAS = kernels.instruction_sets()


def config(**changes) -> ModelConfig:
    """Sizes that fill neither tiles of 16 rows nor groups of 32 columns, but for `hidden`."""
    sizes = {
        "vocab_size": 301, "layers": 3, "hidden": 64, "heads": 6, "kv_heads": 2, "head_dim": 20,
        "ffn": 88, "uses_rope": (True, False, True), "rope_theta": 10_000.0, "context": 8192,
    }  # fmt: skip
    return ModelConfig(**sizes | changes)


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """folder(**changes) -> a checkpoint of random weights and its model."""

    def make(dtype="float32", **changes):
        model = Transformer(config(**changes))
        model.init_weights(0)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(4 if p.ndim > 1 else 1).add_(0.1 * torch.rand(p.shape) if p.ndim == 1 else 0)
                if name.endswith("attention.q.weight"):
                    p.mul_(3)
        path = tmp_path_factory.mktemp("native")
        save_model(model, tokenizer, path, dtype)
        return path, model.to(getattr(torch, dtype)).float()

    return make


def batch(*sequences, wanted=None) -> StepBatch:
    """sequences: (first place, ids, table)."""
    sizes = [len(ids) for _, ids, _ in sequences]
    width = max(len(table) for *_, table in sequences)
    return StepBatch(
        ids_N=np.concatenate([np.array(ids, np.int32) for _, ids, _ in sequences]),
        positions_N=np.concatenate([np.arange(at, at + len(i), dtype=np.int32) for at, i, _ in sequences]),
        starts=np.cumsum([0, *sizes]).astype(np.int32),
        tables_SB=np.array([[*t, *[0] * (width - len(t))] for *_, t in sequences], np.int32),
        wanted_R=np.arange(sum(sizes), dtype=np.int32) if wanted is None else np.array(wanted, np.int32),
    )  # fmt: skip


def random_ids(n, seed=0, entries=301):
    return np.random.default_rng(seed).integers(0, entries, n).tolist()


# forms


@pytest.mark.parametrize("name", kernels.TYPES)
def test_every_type_keeps_its_values(name):
    """Exactly, but for F16, which becomes bfloat16."""
    rng = np.random.default_rng(1)
    rows, columns = 35, 512
    form = FORMATS[name]
    blocks = rows * columns // form.block
    raw = rng.integers(0, 256, (blocks, form.dtype.itemsize), dtype=np.uint8)
    records = raw.view(form.dtype)[:, 0]
    if form.dtype.names:
        for field in {"d", "dmin", "m"} & set(form.dtype.names):
            records[field] = rng.normal(0, 0.1, blocks)
    else:
        raw = quantize(rng.normal(0, 1, rows * columns).astype(np.float32), name)
    raw = np.ascontiguousarray(raw).reshape(-1)
    expected = dequantize(raw, name).reshape(rows, columns)
    kind = kernels.form_of(name)
    out = np.empty(kernels.matrix_bytes(kind, rows, columns), np.uint8)
    kernels.pack(name, raw, rows, columns, 0, kind, 0, 2, out)
    found = np.empty((rows, columns), np.float32)
    kernels.unpack(kind, out, rows, columns, found)
    if name == "F16":
        assert np.abs(found - expected).max() <= np.abs(expected).max() / 256
    else:
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-6)


def test_rows_in_pairs_come_out_in_halves():
    raw = np.arange(2 * 8 * 32, dtype=np.float32)
    out = np.empty(kernels.matrix_bytes("f32", 16, 32), np.uint8)
    kernels.pack("F32", raw.view(np.uint8), 16, 32, 8, "f32", 0, 1, out)
    found = np.empty((16, 32), np.float32)
    kernels.unpack("f32", out, 16, 32, found)
    order = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    np.testing.assert_array_equal(found, raw.reshape(16, 32)[order])


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: kernels.form_of("IQ2_XS"), "cannot be packed"),
        (lambda: kernels.pack("Q4_0", np.zeros(17, np.uint8), 1, 32, 0, "q4", 0, 1, np.zeros(1, np.uint8)), "not whole"),
        (lambda: kernels.pack("Q4_0", np.zeros(18, np.uint8), 1, 32, 0, "q4", 0, 1, np.zeros(1, np.uint8)), "out: wants"),
        (lambda: kernels.pack("Q4_0", np.zeros(18, np.uint8), 1, 32, 0, "q8", 0, 1, np.zeros(1, np.uint8)), "not to q8"),
        (lambda: kernels.pack("Q4_0", np.zeros(18, np.uint8), 1, 32, 3, "q4", 0, 1, np.zeros(1, np.uint8)), "whole heads"),
        (lambda: kernels.matrix_bytes("q3", 1, 32), "unknown form"),
    ],
)  # fmt: skip
def test_the_module_checks_what_it_is_given(call, what):
    with pytest.raises(ValueError, match=what):
        call()


# arithmetic


def test_the_instruction_set_can_be_chosen(folder, monkeypatch):
    path, model = folder()
    chosen = []
    monkeypatch.setattr(kernels, "Model", lambda *given: chosen.append(given[-1]))
    for said, asked in (("", ""), ("portable", ""), ("portable", ISAS[0])):
        monkeypatch.setenv("SMOLLM3_ISA", said)
        NativeBackend(path, model.config, blocks=4, threads=1, isa=asked)
    assert chosen == ["", "portable", ISAS[0]]
    monkeypatch.setenv("SMOLLM3_ISA", "mmx")
    with pytest.raises(UserError, match="SMOLLM3_ISA=mmx: this processor has .*portable; unset it"):
        NativeBackend(path, model.config, blocks=4, threads=1)


@pytest.mark.parametrize("isa", ISAS)
def test_float32_is_pytorch(folder, isa):
    path, model = folder()
    ids = random_ids(75)
    backend = NativeBackend(path, model.config, blocks=4, kv_cache_dtype="f32", threads=2, isa=isa)
    found = backend.step(batch((0, ids, [3, 0, 2])))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("isa", ISAS)
def test_states_are_pytorchs(folder, isa):
    path, model = folder()
    backend = NativeBackend(path, config(), blocks=4, isa=isa)
    ids, others = random_ids(40), random_ids(3, seed=1)
    backend.step(batch((0, ids, [1, 2]), (0, others, [3]), wanted=[]))
    with torch.no_grad():
        expected = [model.hidden(torch.tensor([each]))[0] for each in (ids, others)]
    torch.testing.assert_close(backend.states(), torch.cat(expected), atol=2e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="read_states"):
        backend._model.read_states(np.empty((42, 64), np.float32))


def test_a_long_past_is_pytorch(folder):
    """Sums over stretches of 2,048 tokens, brought to one scale, are the sum over all."""
    path, model = folder(layers=1, uses_rope=(False,))
    ids = random_ids(4_200)
    blocks = -(-len(ids) // BLOCK)
    backend = NativeBackend(path, model.config, blocks=blocks, kv_cache_dtype="f32", threads=2)
    tail = range(4_150, 4_200)
    found = backend.step(batch((0, ids, list(range(blocks))), wanted=tail))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, 4_150:]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dtype", "cache", "limit"),
    [("bfloat16", "bf16", 0.03), ("q8_0", "bf16", 0.03), ("q8_0", "int8", 0.04), ("q4_0", "f32", 0.03)],
)  # fmt: skip
def test_other_forms_cost_little(folder, isa, dtype, cache, limit):
    """The same rounded weights in float32 arithmetic are this near, relative to the logits."""
    path, model = folder(ffn=96, heads=4, kv_heads=2, head_dim=32)
    ids = random_ids(75)
    backend = NativeBackend(
        path, model.config, dtype=dtype, blocks=4, kv_cache_dtype=cache, threads=1, isa=isa
    )
    found = backend.step(batch((0, ids, [3, 0, 2])))
    kind = {"bfloat16": "BF16"}.get(dtype, dtype.upper())
    with torch.inference_mode():
        for p in model.parameters():
            if p.ndim == 2:
                rounded = dequantize(quantize(p.numpy(), kind), kind).reshape(p.shape)
                p.copy_(torch.from_numpy(rounded))
        expected = model(torch.tensor([ids]))[0]
    assert 0 < (found - expected).std() < limit * expected.std()


def random_records(name, count, rng) -> np.ndarray:
    """Bytes of records whose values spread by about 0.1."""
    form = FORMATS[name]
    raw = rng.integers(0, 256, (count, form.dtype.itemsize), dtype=np.uint8)
    records = raw.view(form.dtype)[:, 0]
    steps = {"Q8_0": 128, "Q6_K": 128 * 32, "Q4_K": 64 * 16, "Q5_K": 64 * 32}.get(name, 16)
    for field in {"d", "dmin", "m"} & set(form.dtype.names):
        records[field] = rng.uniform(0.5, 1, count) * (0.2 / (64 if field == "dmin" else steps))
    if "m" in form.dtype.names:
        records["m"] = -8 * records["d"]
    return np.ascontiguousarray(raw).reshape(-1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", [n for n in kernels.TYPES if n[0] == "Q"])
def test_every_quantised_type_multiplies(folder, isa, name, monkeypatch):
    """A model all of whose matrices are of one type, against its values in float32."""
    path, model = folder(hidden=256, ffn=256, heads=4, kv_heads=2, head_dim=64)
    rng = np.random.default_rng(0)
    parts, values = {}, {}
    for matrix, (rows, columns) in packed.matrix_shapes(model.config).items():
        raw = random_records(name, rows * columns // FORMATS[name].block, rng)
        values[f"{matrix}.weight"] = torch.from_numpy(dequantize(raw, name).reshape(rows, columns))
        source = packed.Source(name, 0, lambda raw=raw: raw)
        key = matrix.replace(".up", ".gate")
        before = parts[key].sources if key in parts else ()
        parts[key] = packed.PackedPart(kernels.form_of(name), rows, columns, (*before, source))
    norms = {
        n: model.get_parameter(f"{n}.weight").detach().numpy()
        for n in packed.norm_names(model.config)
    }
    monkeypatch.setattr(packed, "plan", lambda *_: packed.Plan(parts, norms, "key"))
    backend = NativeBackend(path, model.config, blocks=2, kv_cache_dtype="f32", isa=isa)
    with torch.inference_mode():
        for weight, value in values.items():
            model.get_parameter(weight).copy_(value)
        ids = random_ids(21)
        expected = model(torch.tensor([ids]))[0]
    found = backend.step(batch((0, ids, [1])))
    assert (found - expected).std() < 0.08 * expected.std()


def test_a_file_of_every_type_runs(tokenizer, tmp_path, monkeypatch):
    """Also of types that the kernels have no form for, and gate and up of different ones."""
    sizes = {"hidden": 256, "ffn": 256, "heads": 4, "kv_heads": 2, "head_dim": 64, "init_std": 0.04}
    formats = [name for name in FORMATS if name not in ("F32", "F16", "BF16")]
    layers = -(-len(formats) // 7) + 1
    made = config(layers=layers, uses_rope=nope_pattern(layers, 4), **sizes)
    write_mixed(made, tokenizer, tmp_path / "m.gguf", formats, monkeypatch)
    model = load_model(tmp_path / "m.gguf")
    ids = random_ids(40, entries=290)
    backend = NativeBackend(tmp_path / "m.gguf", model.config, blocks=2, kv_cache_dtype="f32")
    found = backend.step(batch((0, ids, [1, 0])))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    assert (found - expected).std() < 0.1 * expected.std()


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in kernels.TYPES])
def test_types_without_a_form_keep_their_values(name, tokenizer, tmp_path, monkeypatch):
    """Exactly, or rounded to 8 bits: within 1/254 of the largest of a block, and float16's error."""
    made = config(layers=4, uses_rope=nope_pattern(4, 4), hidden=256, ffn=256, head_dim=64, heads=4)
    write_mixed(made, tokenizer, tmp_path / "m.gguf", [name], monkeypatch)
    expected = load_model(tmp_path / "m.gguf").get_parameter("blocks.0.ffn.down.weight")
    expected = expected.detach().numpy()
    plan = packed.plan(tmp_path / "m.gguf", made, None)
    part = plan.parts["blocks.0.ffn.down"]
    out = np.empty(part.size, np.uint8)
    part.pack(out, 1)
    found = np.empty(expected.shape, np.float32)
    kernels.unpack(part.form, out, *expected.shape, found)
    if name in RECODED:
        np.testing.assert_allclose(found, expected, rtol=3e-7)
    else:
        most = np.abs(expected.reshape(-1, 32)).max(axis=1, keepdims=True)
        assert (np.abs(found - expected).reshape(-1, 32) <= most / 254 * 1.13 + 4e-6).all()


def test_yarn_reaches_the_kernels(folder):
    path, model = folder(context=256, yarn=Yarn(2.0, 128))
    ids = random_ids(60)
    found = NativeBackend(path, model.config, blocks=2).step(batch((0, ids, [1, 0])))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_an_untied_head_is_its_own_matrix(folder):
    path, model = folder(tied=False)
    ids = random_ids(9)
    found = NativeBackend(path, model.config, blocks=2).step(batch((0, ids, [1]), wanted=[8]))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]))[0, 8:]
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


# the same bits


@pytest.fixture(scope="module")
def quantised(folder):
    """backend(**options) of one checkpoint, 8 bits."""
    path, model = folder(ffn=96, heads=6, kv_heads=2, head_dim=32)
    return lambda **options: NativeBackend(
        path, model.config, dtype="q8_0", blocks=options.pop("blocks", 12), **options
    )


def whole(backend, ids, table) -> torch.Tensor:
    return backend.step(batch((0, ids, table)))


@pytest.mark.parametrize("cache", ["bf16", "int8", "f32"])
@pytest.mark.parametrize("isa", ISAS)
def test_chunks_threads_and_neighbours_change_no_bit(quantised, isa, cache):
    ids, others = random_ids(100), random_ids(70, seed=1)
    expected = whole(quantised(isa=isa, kv_cache_dtype=cache, threads=1), ids, [0, 1, 2, 3])
    backend = quantised(isa=isa, kv_cache_dtype=cache, threads=2)
    assert torch.equal(whole(backend, ids, [7, 2, 9, 4]), expected)  # other blocks, two threads
    pieces, at = [], 0
    for n in (1, 33, 2, 31, 13, 20):  # beside another sequence that grows at another pace
        both = batch(
            (at, ids[at : at + n], [5, 6, 8, 10]), (at // 2, others[at // 2 : at // 2 + 3], [1, 3])
        )
        pieces.append(backend.step(both)[:n])
        at += n
    assert torch.equal(torch.cat(pieces), expected)
    alone = [backend.step(batch((i, [ids[i]], [0, 11, 3, 1])))[0] for i in range(40)]
    assert torch.equal(torch.stack(alone), expected[:40])


@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_a_long_past_is_the_same_split_or_not(quantised, cache):
    """Beyond 2,048 tokens attention is handed out in stretches when there are few queries."""
    ids = random_ids(4_200)
    blocks = -(-len(ids) // BLOCK)
    one = quantised(blocks=blocks, kv_cache_dtype=cache, threads=1)
    two = quantised(blocks=blocks, kv_cache_dtype=cache, threads=4)
    table = list(range(blocks))
    for start in range(0, 4_150, 830):
        logits = one.step(batch((start, ids[start : start + 830], table), wanted=[]))
        assert logits.shape == (0, 301)
    for start in range(0, 4_150, 415):
        two.step(batch((start, ids[start : start + 415], table), wanted=[]))
    tail = one.step(batch((4_150, ids[4_150:], table)))
    singles = [two.step(batch((i, [ids[i]], table)))[0] for i in range(4_150, 4_160)]
    assert torch.equal(torch.stack(singles), tail[:10])


def test_a_block_forgets_what_was_in_it(quantised):
    """Not even NaN left by another sequence reaches the next."""
    backend, ids = quantised(), random_ids(40)
    expected = whole(backend, ids, [0, 1])
    poison = np.full((2, backend.block_bytes), 255, np.uint8)
    backend.import_blocks([4, 5], poison)
    assert torch.equal(whole(backend, ids, [4, 5]), expected)


def test_blocks_go_out_and_come_back(quantised):
    ids = random_ids(64)
    first, second = quantised(), quantised()
    expected = whole(first, ids, [3, 1])[-1]
    second.import_blocks([6, 2], first.export_blocks([3, 1]))
    assert torch.equal(second.step(batch((63, ids[63:], [6, 2])))[0], expected)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.data())
def test_any_cut_into_steps_gives_the_same_bits(quantised, sizes, data):
    backend = test_any_cut_into_steps_gives_the_same_bits.__dict__.setdefault(
        "backend", quantised()
    )
    ids = random_ids(sum(sizes), seed=3)
    table = data.draw(st.permutations(range(12)))[:7]
    expected = whole(backend, ids, table)
    again, at = [], 0
    for n in sizes:
        again.append(backend.step(batch((at, ids[at : at + n], table))))
        at += n
    assert torch.equal(torch.cat(again), expected)


def test_steps_are_checked(quantised):
    backend = quantised()
    for bad, what in [
        (batch((0, [301], [0])), "outside the vocabulary"),
        (batch((0, [1], [12])), "outside the cache"),
        (batch((40, [1], [0])), "too short"),
        (batch((0, [1], [0]), wanted=[1]), "outside the step"),
        (StepBatch(np.zeros(2, np.int32), np.array([0, 2], np.int32), np.array([0, 2], np.int32), np.zeros((1, 1), np.int32), np.zeros(0, np.int32)), "follow one another"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=what):
            backend.step(bad)


# the packed weights


def test_the_cache_is_used_mended_and_bounded(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path))
    monkeypatch.setattr(packed, "SMALL", 0)
    path, model = folder()
    plan = packed.plan(path, model.config, None)
    first = {name: data.copy() for name, data in packed.load(plan, 1).items()}
    (file,) = (tmp_path / "packed").glob("*.safetensors")
    made = file.stat().st_ino

    def load_again():
        for name, data in packed.load(packed.plan(path, model.config, None), 2).items():
            assert np.array_equal(data, first[name]), name
        return file.stat().st_ino

    assert load_again() == made  # found
    content = file.read_bytes()
    for broken in (content[:-1], b"x" + content[1:], content[:-5000] + bytes(5000), content[:4096] + bytes(len(content) - 4096)):  # fmt: skip
        if broken == content:
            continue
        file.write_bytes(broken)
        load_again()
        assert file.read_bytes() == content
    os.utime(path / "config.json", ns=(1, 1))  # another checkpoint, for all we know
    packed.load(packed.plan(path, model.config, None), 1)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) == 2
    monkeypatch.setattr(packed, "CACHE_BYTES", 1)
    os.utime(path / "config.json", ns=(2, 2))
    packed.load(packed.plan(path, model.config, None), 1)
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) == 1
    assert not list((tmp_path / "packed").glob("*.partial"))


def test_without_room_for_the_cache_it_packs_in_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SMALL", 0)
    path, model = folder()
    plan = packed.plan(path, model.config, None)
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert packed.load(plan, 1).keys() == plan.parts.keys()
    assert {path.name for path in (tmp_path / "packed").iterdir()} <= {".lock"}


def test_two_who_start_at_once_pack_once(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path))
    monkeypatch.setattr(packed, "SMALL", 0)
    path, model = folder()
    plan = packed.plan(path, model.config, None)
    both, written, write = threading.Barrier(2), [], packed._write
    mapped = packed._mapped

    def look(*given):
        found = mapped(*given)
        if not both.broken and threading.current_thread() not in looked:
            looked.add(threading.current_thread())
            both.wait(60)  # neither has found it
        return found

    looked = set()
    monkeypatch.setattr(packed, "_mapped", look)
    monkeypatch.setattr(packed, "_write", lambda *given: written.append(1) or write(*given))
    threads = [threading.Thread(target=packed.load, args=(plan, 1)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert written == [1]


def test_whoever_waits_too_long_packs_in_memory(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path))
    monkeypatch.setattr(packed, "SMALL", 0)
    monkeypatch.setattr(packed, "PACKING_SECONDS", 0.05)
    path, model = folder()
    plan = packed.plan(path, model.config, None)
    (tmp_path / "packed").mkdir()
    with FileLock(tmp_path / "packed" / ".lock"):
        assert packed.load(plan, 1).keys() == plan.parts.keys()
    assert not list((tmp_path / "packed").glob("*.safetensors"))


def test_what_cannot_be_packed_is_one_line(folder):
    path, model = folder()
    with pytest.raises(UserError, match="dtype: 'int3' is not one of"):
        packed.plan(path, model.config, "int3")
    with pytest.raises(UserError, match="kv_cache_dtype: 'q2' is not one of f32, bf16, int8"):
        NativeBackend(path, model.config, blocks=1, kv_cache_dtype="q2")
    with pytest.raises(UserError, match="missing, or not of shape"):
        packed.plan(path, config(hidden=32), None)
