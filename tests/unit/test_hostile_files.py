"""Damaged and hostile files: a UserError of one line, or nothing of note; never a traceback, code
that runs, or memory and time beyond the file's own size. GGUF files are in
test_gguf.py, templates that loop or grow in test_chat_sandbox.py."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from smollm3.chat import parse
from smollm3.checkpoint import load_config, load_model, load_tokenizer, locate, save_model
from smollm3.errors import LONGEST, UserError
from smollm3.infer import load_engine
from smollm3.merge import merge
from smollm3.model import ModelConfig, Transformer
from smollm3.tokenizer import Tokenizer

CONFIG = ModelConfig(300, 2, 16, 4, 2, 4, 24, (True, False), rope_theta=1e4, context=64)
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def good(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    model = Transformer(replace(CONFIG, vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(action: Callable[[], object], *words: str) -> None:
    """One printable line that has the words, within 5 seconds."""
    start = time.process_time()
    with pytest.raises(UserError) as caught:
        action()
    assert time.process_time() - start < 5
    line = str(caught.value)
    assert line.isprintable()
    assert len(line) <= LONGEST + 10
    for word in words:
        assert word in line


# truncation


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_truncated_at_every_kilobyte(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes()
    load = load_model if file == "model.safetensors" else load_tokenizer
    for size in (*range(0, len(whole), 1024), len(whole) - 1):
        (folder / file).write_bytes(whole[:size])
        # tokenizer.json ends in a line end, without which it is whole
        if whole[size:].strip():
            refused(lambda: load(folder), file)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_json_truncated_anywhere(folder: Path, file: str) -> None:
    whole = (folder / file).read_bytes().rstrip()
    for size in range(0, len(whole), 7):
        (folder / file).write_bytes(whole[:size])
        refused(lambda: load_engine(folder), file, "not valid JSON")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json",
                                  "generation_config.json", "chat_template.jinja", "model.safetensors"])  # fmt: skip
def test_a_folder_in_a_files_place(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / file).mkdir()
    refused(lambda: (load_model(folder), load_tokenizer(folder)), file)


# config.json


@pytest.mark.parametrize(
    "value", [10**400, 2**31, -1, 0, True, 0.5, "4", [], {}, "x" * 10**6, "\x1b[2J\n"]
)
@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "head_dim", "max_position_embeddings", "no_rope_layers"],
)  # fmt: skip
def test_absurd_sizes(folder: Path, key: str, value: Any) -> None:
    edit(folder / "config.json", **{key: value})
    refused(lambda: load_model(folder), "config.json")


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps", "initializer_range"])
@pytest.mark.parametrize("value", [10**400, float("nan"), float("inf"), -1, 0, "1", [1]])
def test_absurd_numbers(folder: Path, key: str, value: Any) -> None:
    edit(folder / "config.json", **{key: value}, rope_parameters=None)
    refused(lambda: load_config(folder), "config.json", key)


def test_sizes_that_are_each_possible(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=2**30, intermediate_size=2**30)
    refused(lambda: load_model(folder), "parameters")
    edit(folder / "config.json", hidden_size=16, intermediate_size=2**30, num_hidden_layers=1024,
         no_rope_layers=None, layer_types=None)  # fmt: skip
    refused(lambda: load_model(folder), "parameters")
    edit(folder / "config.json", intermediate_size=24)
    refused(lambda: load_model(folder), "model.layers.2.", "missing")


@pytest.mark.parametrize(
    "rope",
    [
        {"factor": 1e308},
        {"factor": 10**400},
        {"factor": 2.0, "beta_fast": 5e-324},
        {"factor": 2.0, "beta_slow": 40.0},
        {"factor": 2.0, "rope_theta": 1.0},
        {"factor": 2.0, "rope_theta": 5e-324},
        {"original_max_position_embeddings": 2**40},
        [],
        "yarn",
    ],
)
def test_absurd_yarn(folder: Path, rope: Any) -> None:
    if isinstance(rope, dict):
        rope = {"rope_type": "yarn", **rope}
    edit(folder / "config.json", rope_scaling=rope or [1], rope_parameters=None)
    refused(lambda: load_config(folder), "config.json")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, '{"vocab_size": ' + "9" * 10_000 + "}", '{"model_type": "\\ud800"}', "\0",
     "\ufeff{}", "[" + "[]," * 11_200_000 + "[]]"],
    ids=["arrays", "objects", "digits", "surrogate", "NUL", "BOM", "33 MB"],
)  # fmt: skip
def test_json_that_is_an_attack(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(lambda: load_config(folder), "config.json")


# weights


def raw_safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1),
        raw_safetensors(b"[" * 5000),
        raw_safetensors(b"\xff\xfe"),
        raw_safetensors([]),
        raw_safetensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
        raw_safetensors({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, bytes(8)),
        raw_safetensors({"a": entry(0, 8, [2])}, bytes(4)),
        raw_safetensors({"a": entry(0, 8, [2])}, bytes(400)),
        raw_safetensors({"a": entry(0, 2**62, [2**60])}),
        raw_safetensors({"a": entry(0, 4, [2**32, 2**32, 2**32])}, bytes(4)),
        raw_safetensors({"a": entry(8, 0, [2])}, bytes(8)),
        raw_safetensors({"a": entry(0, 8, [3])}, bytes(8)),
        raw_safetensors({"a": entry(0, 8, [2], "F33")}, bytes(8)),
        raw_safetensors(b'{"a": ' + json.dumps(entry(0, 8, [2])).encode() + b'} trailing', bytes(8)),
        raw_safetensors({"\x1b[2J\n" + "x" * 10**5: entry(0, 8, [2])}, bytes(8)),
    ],
)  # fmt: skip
def test_absurd_safetensors(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(lambda: load_model(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(
    folder: Path, tmp_path: Path, dtype: Any, value: float
) -> None:
    file = folder / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    save_file(tensors, file)
    refused(lambda: load_model(folder), "model.safetensors", name, "NaN or infinity")
    refused(lambda: merge({folder: 1.0}, tmp_path / "merged"), name, "NaN or infinity")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "consolidated.pth", "model.ckpt", "a.pkl"]
)
def test_pickles_do_not_run(folder: Path, tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    load_model(folder)  # beside safetensors it is not looked at
    (folder / "model.safetensors").unlink()
    refused(lambda: load_model(folder), "pickle", name)
    shutil.move(folder / name, folder / "model.safetensors")
    refused(lambda: load_model(folder), "not a whole safetensors file")
    assert not mark.exists()


def test_code_beside_a_model_does_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("modeling_smollm3.py", "tokenization.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_smollm3.SmolLM3"})
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", None]})
    load_engine(folder)
    assert not mark.exists()


# tokenizer


def change(folder: Path, **parts: Any) -> Tokenizer:
    edit(folder / "tokenizer.json", **parts)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    "token",
    [5, [], [1], {}, {"content": 3}, True, "\ud800", "not there", {"content": "<|im_end|>x"}],
)
def test_absurd_named_tokens(folder: Path, token: Any) -> None:
    edit(folder / "tokenizer_config.json", eos_token=token)
    if token in ([], {}):  # as good as none
        assert load_tokenizer(folder).stop_ids
    else:
        refused(lambda: load_tokenizer(folder), "tokenizer_config.json")


@pytest.mark.parametrize("ids", [-1, [10**30], [2, 2**32]])
def test_absurd_stop_ids(folder: Path, ids: Any) -> None:
    edit(folder / "generation_config.json", eos_token_id=ids)
    refused(lambda: load_tokenizer(folder), "generation_config.json", "eos_token_id")


@pytest.mark.parametrize("listed", [[3], [{"name": [], "template": 3}], [{}], {"a": 1}, 3])
def test_absurd_lists_of_templates(folder: Path, listed: Any) -> None:
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=listed)
    refused(lambda: load_tokenizer(folder).render(USER), "no chat template")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
                            "invert": False}}, "a" * 50 + "!"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                             "pair": [], "special_tokens": {}}}, "a"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}}, "b"),
        ({"model": {"type": "Unigram", "vocab": [], "unk_id": 3}}, "b"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}}, "a"),
        ({"model": None}, "a"),
        ({"added_tokens": [3]}, "a"),
    ],
)  # fmt: skip
def test_tokenizers_at_which_the_library_fails(
    folder: Path, parts: dict[str, Any], text: str
) -> None:
    refused(lambda: change(folder, **parts).encode(text))


def test_padding_and_truncation_of_the_file_are_not_used(folder: Path) -> None:
    padding = {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    truncation = {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    assert change(folder, padding=padding, truncation=truncation).encode("to be") == (
        change(folder, padding=None, truncation=None).encode("to be")
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ self.__init__.__globals__ }}",
        "{{ '\\ud800' }}",
    ],
)
def test_templates_reach_nothing(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    refused(lambda: load_tokenizer(folder).render(USER))


# texts


def test_a_line_of_10_megabytes(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    start = time.process_time()
    for line in ("ab" * 5_000_000, "<think>" + "a\n" * 5_000_000, "`" * 10_000_000,
                 '<tool_call>{"name": "f", "arguments": {"a": "' + "x" * 10_000_000):  # fmt: skip
        parse(line)
    assert time.process_time() - start < 10
    text = "the model " * 200_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.slow
def test_10_megabytes_without_a_place_to_cut(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    refused(lambda: tokenizer.encode(" " * 20_000_000), "shorten")
    text = "a" * 10_000_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80" * 1000])
def test_lone_surrogates(folder: Path, text: str) -> None:
    tokenizer = load_tokenizer(folder)
    refused(lambda: tokenizer.encode(text), "surrogate")
    refused(lambda: tokenizer.encode_markup(text), "surrogate")
    refused(lambda: tokenizer.render([{"role": "user", "content": text}]), "surrogate")
    assert parse(text).content == text


# names and messages


@pytest.mark.parametrize(
    "target", ["a" * 5000, "~nobody-of-that-name/x", "a\0b", "\ud800", "x/\x1b[2J\n"]
)
def test_absurd_names_of_models(target: str) -> None:
    refused(lambda: locate(target))


def test_an_error_is_one_printable_line() -> None:
    error = UserError("a\nb\x1b[2J\ud800\u202e" + "é" * 10**6 + "end")
    assert str(error).startswith("a b\\x1b[2J\\ud800\\u202eééé")
    assert str(error).endswith("ééé" + "end")
    assert str(error).isprintable()
    assert len(str(error)) < LONGEST + 50
