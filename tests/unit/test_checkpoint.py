import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from smollm3.checkpoint import (
    digest,
    load_config,
    load_model,
    load_tokenizer,
    locate,
    save_model,
    weights,
)
from smollm3.checkpoint.config import from_json, to_json
from smollm3.errors import UserError
from smollm3.model import ModelConfig, Transformer, Yarn, nope_pattern

CONFIG = ModelConfig(
    vocab_size=300,
    layers=3,
    hidden=16,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=24,
    uses_rope=(True, False, True),
    rope_theta=50_000.0,
    context=32,
)
FILE = Path("config.json")
# The published config.json of SmolLM3-3B, as far as it describes the network.
RELEASED = {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "intermediate_size": 11008,
    "vocab_size": 128256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "attention_bias": False,
    "mlp_bias": False,
    "max_position_embeddings": 65536,
    "rope_theta": 5000000.0,
    "rope_scaling": None,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "layer_types": ["full_attention"] * 36,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "pretraining_tp": 2,
}


def new(config: ModelConfig = CONFIG, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    return model


@pytest.fixture
def folder(tmp_path, tokenizer):
    save_model(new(), tokenizer, tmp_path / "model")
    return tmp_path / "model"


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# config.json


def test_released_config():
    config = from_json(RELEASED, FILE)
    assert config.parameters == 3_075_098_624
    assert config.tied
    assert config.head_dim == 128
    assert config.uses_rope == nope_pattern(36, 4)
    assert (config.rope_theta, config.context, config.yarn) == (5e6, 65536, None)


def test_defaults_are_those_of_the_classes():
    config = from_json({"model_type": "smollm3"}, FILE)
    assert config.parameters == 3_075_098_624
    assert (config.rope_theta, config.context) == (2e6, 32768)
    llama = from_json({"model_type": "llama", "num_attention_heads": 64}, FILE)
    assert (llama.rope_theta, llama.context, llama.vocab_size) == (1e4, 2048, 32000)
    assert (llama.kv_heads, llama.head_dim, llama.tied) == (64, 64, False)
    assert llama.uses_rope == (True,) * 32


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_yarn_of_the_model_card(key, kind):
    card = {kind: "yarn", "factor": 2.0, "original_max_position_embeddings": 65536}
    raised = RELEASED | {key: card, "max_position_embeddings": 131072}
    config = from_json(raised, FILE)
    assert config.yarn == Yarn(2.0, 65536)
    assert (config.rope_theta, config.context) == (5e6, 131072)
    # max_position_embeddings not raised: it is the length without YaRN
    assert from_json(RELEASED | {key: card}, FILE) == config
    # no factor: the lengths say it
    for factor in ({}, {"factor": None}):
        lengths = {kind: "yarn", "original_max_position_embeddings": 65536, **factor}
        assert from_json(raised | {key: lengths}, FILE) == config
    # no original length: max_position_embeddings is it
    config = from_json(RELEASED | {key: {kind: "yarn", "factor": 2.0}}, FILE)
    assert (config.yarn, config.context) == (Yarn(2.0, 65536), 131072)


def test_rope_scaling_wins_and_theta_has_two_places():
    values = RELEASED | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 7.0},
    }
    assert from_json(values, FILE).rope_theta == 7.0
    values["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    config = from_json(values, FILE)
    assert config.yarn is not None
    assert config.rope_theta == 5e6


configs = st.builds(
    lambda layers, kv, groups, dim, nope, theta, tied, explicit, yarn, extra: ModelConfig(
        vocab_size=64 + extra,
        layers=layers,
        hidden=kv * groups * dim if extra % 2 else 24,
        heads=kv * groups,
        kv_heads=kv,
        head_dim=dim,
        ffn=8 + extra,
        uses_rope=tuple(explicit[:layers]) if nope is None else nope_pattern(layers, nope),
        rope_theta=theta,
        context=64 if yarn is None else 16 * yarn,
        tied=tied,
        yarn=None if yarn is None else Yarn(float(yarn), 16, 24.0, 2.0),
    ),
    layers=st.integers(1, 9),
    kv=st.integers(1, 3),
    groups=st.integers(1, 3),
    dim=st.sampled_from([2, 4, 8]),
    nope=st.one_of(st.none(), st.integers(0, 6)),
    theta=st.floats(10, 1e7),
    tied=st.booleans(),
    explicit=st.lists(st.booleans(), min_size=9, max_size=9),
    yarn=st.one_of(st.none(), st.integers(1, 8)),
    extra=st.integers(0, 20),
)


@given(config=configs)
def test_config_survives_writing(config):
    values = json.loads(json.dumps(to_json(config, "float32")))
    assert from_json(values, FILE) == config
    # Whoever reads only the interval must not be told another pattern than the list.
    interval = values.get("no_rope_layer_interval")
    if interval is not None:
        assert nope_pattern(config.layers, interval) == config.uses_rope
    # and either place of the rope settings says the same
    del values["rope_parameters"]
    assert from_json(values, FILE) == config


def test_a_pattern_without_interval_writes_none():
    odd = replace(CONFIG, layers=4, uses_rope=(False, True, True, False))
    assert "no_rope_layer_interval" not in to_json(odd, "float32")


def test_yarn_factor_is_the_ratio_of_the_lengths():
    with pytest.raises(ValueError, match="YaRN"):
        to_json(replace(CONFIG, yarn=Yarn(3.0, 16)), "float32")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen2"),
        ("model_type", None),
        ("model_type", ["llama"]),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("use_sliding_window", True),
        ("layer_types", ["sliding_attention"] * 36),
        ("layer_types", 3),
        ("quantization_config", {"bits": 4}),
        ("hidden_size", 0),
        ("hidden_size", "2048"),
        ("hidden_size", True),
        ("num_hidden_layers", 2.5),
        ("num_key_value_heads", 3),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_theta", -1.0),
        ("initializer_range", float("nan")),
        ("tie_word_embeddings", "yes"),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("no_rope_layers", [1, 2] * 18),
        ("no_rope_layers", "1110"),
        ("no_rope_layer_interval", 0),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", {"type": "linear", "factor": 8.0}),
        ("rope_scaling", {"type": "yarn"}),
        ("rope_scaling", {"type": "yarn", "factor": 2.0, "attention_factor": 1.5}),
        ("rope_scaling", {"type": "yarn", "factor": float("nan")}),
        (
            "rope_scaling",
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        ),
        ("rope_scaling", [1]),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
        ("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ],
)
def test_config_it_is_not(key, value):
    values = dict(RELEASED)
    if key == "no_rope_layer_interval":  # looked at only where there is no list
        del values["no_rope_layers"]
    names = {"num_key_value_heads": "kv_heads"}
    with pytest.raises(UserError, match=rf"^config\.json: .*{names.get(key, key)}"):
        from_json(values | {key: value}, FILE)


def test_config_that_is_no_object():
    with pytest.raises(UserError, match=r"config\.json: model_type"):
        from_json([], FILE)


# weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_round_trip(tmp_path, tokenizer, tied, dtype):
    model = new(replace(CONFIG, tied=tied))
    save_model(model, tokenizer, tmp_path / "a", dtype=dtype)
    loaded = load_model(tmp_path / "a", dtype=dtype)
    assert loaded.config == model.config
    assert (loaded.unembed.weight is loaded.embed.weight) == tied
    back = dict(loaded.named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(back[name], weight.to(getattr(torch, dtype)))
        assert back[name].requires_grad
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)
    save_model(loaded, load_tokenizer(tmp_path / "a"), tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_published_names(folder):
    names = set(load_file(folder / "model.safetensors"))
    layer = {
        "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    }  # fmt: skip
    assert names == {"model.embed_tokens.weight", "model.norm.weight"} | {
        f"model.layers.{i}.{part}.weight" for i in range(3) for part in layer
    }


def test_ids_come_from_the_tokenizer(folder, tokenizer):
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert config["eos_token_id"] == tokenizer.stop_ids[0]
    assert generation["eos_token_id"] == list(tokenizer.stop_ids)
    for values in (config, generation):
        assert values["bos_token_id"] is None
        assert values["pad_token_id"] == tokenizer.pad_id
    assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (
        True, 0.6, 0.95,
    )  # fmt: skip
    # what was read back encodes, stops and renders as before
    assert load_tokenizer(folder).digest == tokenizer.digest


def test_shards(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 8000)
    save_model(new(), tokenizer, tmp_path)
    shards = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / weights.INDEX).read_text())
    assert len(shards) > 2
    assert shards == sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    expected = dict(new().named_parameters())
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in expected.values())
    for name, weight in load_model(tmp_path).named_parameters():
        assert torch.equal(weight, expected[name])
    monkeypatch.undo()
    save_model(new(seed=1), tokenizer, tmp_path)  # the shards of before are gone
    assert [p.name for p in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_loading_leaves_the_file_alone(folder):
    before = (folder / "model.safetensors").read_bytes()
    model = load_model(folder)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_weights_are_in_memory_once(tmp_path, tokenizer):
    """Peak of the resident memory while 192 MB are loaded, measured by the kernel."""
    config = replace(CONFIG, hidden=512, head_dim=128, ffn=8192, layers=3)
    save_model(new(config), tokenizer, tmp_path)
    size = config.parameters * 4
    assert size > 150e6

    def resident(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(li.split()[1]) * 1024 for li in lines if li.startswith(field))

    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    model = load_model(tmp_path)
    assert resident("VmHWM") - before < 1.25 * size
    assert model.config == config


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


V = "model.layers.1.self_attn.v_proj.weight"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.pop(V), rf"{V}: missing"),
        (lambda t: t.update({V: t[V][:, :3].clone()}), rf"safetensors: {V}: .*\[8, 3\].*\[8, 16\]"),
        (lambda t: t.update({V: t[V].char()}), rf"safetensors: {V}: is I8; quantised"),
        (lambda t: t.update(extra=torch.ones(2)), r"safetensors: extra: unknown"),
        (lambda t: t.update({"lm_head.weight": torch.ones(300, 16)}), r"lm_head.*tie_word"),
    ],
)
def test_tensors_that_do_not_fit(folder, change, problem):
    rewrite(folder, change)
    with pytest.raises(UserError, match=problem):
        load_model(folder)


def test_tensors_that_may_be_there(folder):
    def change(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)

    rewrite(folder, change)
    assert torch.equal(load_model(folder).embed.weight, new().embed.weight)


@pytest.mark.parametrize("keep", [0, 4, 100, 20_000])
def test_truncated_weights(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: not a whole"):
        load_model(folder)


def test_pickles_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickled weights \(pytorch_model\.bin\)"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({V: "../model.safetensors"}, "plain name"),
        ({V: "/etc/model.safetensors"}, "plain name"),
        ({V: "sub\\model.safetensors"}, "plain name"),
        ({V: "pytorch_model.bin"}, "plain name"),
        ({V: 3}, "plain name"),
        ({V: ".."}, "plain name"),
        ({}, "weight_map: missing"),
        (None, "weight_map: missing"),
        ({V: "absent.safetensors"}, "absent.safetensors: no such file"),
        ({V: "part.safetensors", "gone": "part.safetensors"}, "gone: missing"),
    ],
)
def test_index_that_lies(folder, weight_map, problem):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=problem):
        load_model(folder)


def test_configs_that_cannot_be_read(folder):
    edit(folder / "config.json", rms_norm_eps=float("nan"))
    with pytest.raises(UserError, match=r"config\.json: rms_norm_eps.*nan"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
        load_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load_config(folder)


def test_unknown_dtype(folder):
    with pytest.raises(UserError, match="dtype: 'int8'"):
        load_model(folder, dtype="int8")


def test_tokenizer_larger_than_the_model(tmp_path, tokenizer):
    with pytest.raises(UserError, match="292 entries, the model only 291"):
        save_model(new(replace(CONFIG, vocab_size=291)), tokenizer, tmp_path)


def test_digest_sees_every_part(folder):
    seen = {digest(folder)}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        with (folder / name).open("ab") as f:
            f.write(b" ")
        seen.add(digest(folder))
    assert len(seen) == 5
    (folder / "stage.json").write_text("{}")
    assert digest(folder) in seen


# names


def test_locate_folders(tmp_path, monkeypatch):
    (tmp_path / "run" / "sft").mkdir(parents=True)
    assert locate(tmp_path / "run") == tmp_path / "run"
    run = tmp_path / "run" / "run.json"
    run.write_text('{"final": "sft"}')
    assert locate(str(tmp_path / "run")) == tmp_path / "run" / "sft"
    run.write_text('{"final": "apo"}')
    with pytest.raises(UserError, match="apo, is not made yet"):
        locate(tmp_path / "run")
    for bad in ('{"final": "../x"}', "{}", "[]"):
        run.write_text(bad)
        with pytest.raises(UserError, match=r"run\.json: final"):
            locate(tmp_path / "run")
    with pytest.raises(UserError, match=r"run\.json: is a file"):
        locate(run)
    monkeypatch.chdir(tmp_path)
    for absent in ("run/stf", "nothing", "a/b/c", "../x", "org/name@"):
        with pytest.raises(UserError, match="no such folder"):
            locate(absent)


@pytest.mark.parametrize(
    ("target", "repo", "revision"),
    [
        ("org/name", "org/name", None),
        ("org/name-1.5@v2", "org/name-1.5", "v2"),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3"),
        ("smollm3-3b", "HuggingFaceTB/SmolLM3-3B", None),
        ("smollm3-3b-base", "HuggingFaceTB/SmolLM3-3B-Base", None),
    ],
)
def test_locate_on_the_hub(monkeypatch, tmp_path, target, repo, revision):
    asked = {}

    def snapshot_download(repo_id, **options):
        asked.update(options, repo=repo_id)
        return str(tmp_path)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate(target) == tmp_path
    assert (asked["repo"], asked["revision"]) == (repo, revision)
    taken = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "model-1.safetensors", "chat_template.jinja", "pytorch_model.bin",
         "model.pt", "evil.py", "onnx/model.safetensors", "model.safetensors.index.json"],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )  # fmt: skip
    assert list(taken) == [
        "config.json", "model-1.safetensors", "chat_template.jinja", "model.safetensors.index.json",
    ]  # fmt: skip


def test_hub_offline_is_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"^no-such-org/nothing: no such folder, and fetching") as e:
        locate("no-such-org/nothing")
    assert "\n" not in str(e.value)


def test_import_is_light():
    code = (
        "import sys, smollm3\n"
        "assert smollm3.__version__ and 'load_model' in dir(smollm3)\n"
        "assert 'torch' not in sys.modules\n"
        "smollm3.load_model\n"
        "assert 'torch' in sys.modules\n"
        "try: smollm3.nothing\n"
        "except AttributeError: print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ok\n"
