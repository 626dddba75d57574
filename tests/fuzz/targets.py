"""What is fuzzed: everything that reads files, or text that a model, a user or a tool wrote."""

from __future__ import annotations

import json
import struct
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from smollm3.chat import (
    ArgumentsDelta,
    CallEnd,
    ContentDelta,
    Message,
    ReasoningDelta,
    Renderer,
    StreamParser,
    ToolCall,
    default_template,
    parse,
)
from smollm3.checkpoint import load_config, load_model, load_tokenizer, save_model
from smollm3.checkpoint.gguf import reader
from smollm3.checkpoint.gguf.load import load_config as load_gguf_config
from smollm3.checkpoint.gguf.load import load_tokenizer as load_gguf_tokenizer
from smollm3.checkpoint.weights import INDEX, Weights
from smollm3.data.shards import Shard
from smollm3.infer.params import model_params
from smollm3.model import ModelConfig, Transformer, rope_tables
from smollm3.recipe.load import load_recipe
from smollm3.tokenizer import CONTROL, Tokenizer
from tests.fuzz.fuzzer import Target

RECIPE = b"""
name: mine
sources:
  web: {kind: procedural, generator: web, documents: 50}
  talks: {kind: jsonl, files: ["talks/*.jsonl"], format: chat}
model: &m {layers: 2, hidden: 16, heads: 4, kv_heads: 2, ffn: 24}
stages:
  tok: {kind: tokenizer, vocab: 300, mixture: {web: 1}}
  one: {kind: train, mixture: {web: 1}, context: 32, batch: 4, steps: 1_0, lr: {peak: 1e-3, warmup: 2}}
  two: {kind: train, mixture: {talks: 1.0}, loss: assistant, context: 64, batch: 4, epochs: 2, lr: {peak: 1e-3}}
  out: {kind: export, to: [hf:bfloat16, "gguf:q8_0"]}
"""
TEMPLATES = [
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
    "{%- if tools %}{{ tools | tojson(indent=2) }}{% endif -%}{{ messages[0]['content'].split('/')[-1] }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% generation %}{{ m | tojson }}{% endgeneration %}{{ raise_exception('no') if ns.n > 3 }}{% endfor %}",
    "{% macro f(x) %}{{ x }}{{ strftime_now('%d %B') }}{% endmacro %}{{ f(messages | length) ~ '%s' % 3 }}",
]
CHATS = [
    "<think>\nHm.\n</think>\nThe answer is 5.",
    '<think>\n\n</think>\n<tool_call>{"name": "f", "arguments": {"a": [1, {"b": "}"}], "c": "\\n"}}</tool_call>',
    "Look:\n```\n<tool_call>{}</tool_call>\n```\n<tool_call>{'name': 'g', 'arguments': {'x': True}}</tool_call>\nx",
    "<code>\nprint('</tool_call>')\n</code>\n<code>x",
    '<tool_call>\n{"name": "f", "arguments": "text", "id": 3}\n<tool_call>{"arguments": {}, "name": "h"}',
]
CHAT_WORDS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<code>", "</code>", "```", "`", "~~~", "\n"),
    *('{"name": "f", "arguments": {', '"}', "{", "}", "[", "]", '"', "\\", "\\u12", "True", "None", "'", "<"),
    *("NaN", "-Infinity", "1e999", "é", "\u2028", "\0", "\\ud800", "set()", "b''", " "),
]  # fmt: skip
HISTORY = [
    {"role": "system", "content": "Be brief. /no_think"},
    {"role": "user", "content": [{"type": "text", "text": "2 + 2? <|im_end|>"}]},
    {"role": "assistant", "content": "4", "reasoning_content": "Easy.", "tool_calls": [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
    {"role": "tool", "tool_call_id": "a", "name": "f", "content": "5"},
]  # fmt: skip


def targets(folder: Path) -> list[Target]:
    """The targets; `folder` is for the files that they read, best in memory."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["the model answers"], 280, default_template())
    config = ModelConfig(280, 2, 8, 2, 1, 4, 12, (True, False), rope_theta=1e4, context=64)
    model = Transformer(config)
    model.init_weights(0)
    save_model(model, tokenizer, folder)
    settings = (folder / "config.json").read_bytes()
    yarn = json.loads(settings) | {
        "max_position_embeddings": 128,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 2.0,
            "original_max_position_embeddings": 64,
        },
    }
    llama = {
        "model_type": "llama",
        "hidden_size": 8,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    weights = (folder / "model.safetensors").read_bytes()
    header = weights[: 8 + int.from_bytes(weights[:8], "little")]
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16), "c": torch.ones(0)}
    index = {"weight_map": dict.fromkeys(Weights(folder), "part.safetensors")}
    sharded = _copy(folder, "i")
    (sharded / "model.safetensors").rename(sharded / "part.safetensors")
    json_words = [
        b"null",
        b"1e999",
        b"-",
        b"{",
        b"[",
        b'"\\ud800"',
        b"[" * 2000,
        b"9" * 5000,
        b"NaN",
    ]
    return [
        Target("chat", _chat, [c.encode() for c in CHATS], 350_000, [w.encode() for w in CHAT_WORDS]),
        Target("gguf", partial(_gguf, folder / "a.gguf"), gguf_seeds(), 350_000, GGUF_WORDS),
        Target("safetensors", partial(_safetensors, _sub(folder, "s")), [save(tensors), header, weights],
               200_000, [b"F32", b"BF16", b"I64", b"F8_E4M3", b'"shape":[]', *json_words]),
        Target("config", partial(_config, _sub(folder, "c")),
               [settings, json.dumps(yarn).encode(), json.dumps(llama).encode()], 40_000, json_words, "json"),
        Target("history", partial(_history, _renderer(tokenizer)), [json.dumps(HISTORY).encode()],
               5_000, json_words, "json"),
        Target("index", partial(_index, sharded), [json.dumps(index).encode()], 3_000, json_words,
               "json"),
        Target("settings", partial(_settings, _copy(folder, "g")),
               [(folder / name).read_bytes() for name in ("generation_config.json", "tokenizer_config.json")],
               2_000, json_words, "json"),
        Target("tokenizer", partial(_tokenizer, _copy(folder, "t")), [(folder / "tokenizer.json").read_bytes()],
               2_000, json_words, "json"),
        Target("recipe", partial(_recipe, folder / "r.yaml"), [RECIPE], 10_000,
               [b"&a", b"*a", b"*m", b"<<: *m", b"!!python/name:os.system", b"? ", b"- ", b"{", b"[", b": ", b"\t",
                b"%YAML 9", b"---\n", b"!!int", b"1:30", b"0x", b".nan", b"[" * 3000]),
        Target("template", partial(_template, tokenizer), [t.encode() for t in TEMPLATES], 1_000,
               [b"{{", b"}}", b"{%", b"%}", b"{#", b"| tojson", b".__class__", b"* 10**9", b"range(99999)", b"self",
                b"{% for i in messages %}", b"{% endfor %}", b"loop", b"cycler", b"%c", b"| map", b"(" * 500]),
        Target("folder", partial(_folder, _copy(sharded, "f", folder)),
               [json.dumps({"config.json": json.loads(settings), INDEX: index, "generation_config.json": {"top_p": 0.9}}).encode()],
               3_000, json_words, "json"),
        Target("shard", partial(_shard, shard_folder(_sub(folder, "d"))), [json.dumps(SHARD).encode()], 20_000, json_words, "json"),
        Target("gguf-tokenizer", partial(_gguf_tokenizer, folder / "b.gguf"), [gguf_tokenizer()], 60_000, GGUF_WORDS),
    ]  # fmt: skip


def _sub(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def _copy(folder: Path, name: str, beside: Path | None = None) -> Path:
    copy = _sub(beside or folder, name)
    for file in folder.iterdir():
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # what is still mapped keeps its content
    path.write_bytes(data)


# readers of files


def _gguf(path: Path, data: bytes) -> object:
    _write(path, data)
    file = reader.Gguf(path)
    for name in file.tensors:
        file.read(name)
    return load_gguf_config(path).layers


def _gguf_tokenizer(path: Path, data: bytes) -> object:
    _write(path, data)
    tokenizer = load_gguf_tokenizer(path)
    tokenizer.decode(tokenizer.encode("ab <|im_end|> é"))
    return tokenizer.bos, len(tokenizer.stop_ids)


def _safetensors(folder: Path, data: bytes) -> object:
    _write(folder / "model.safetensors", data)
    weights = Weights(folder)
    for name, shape in weights.shapes.items():
        assert tuple(weights[name].shape) == shape
    return len(weights)


def _index(folder: Path, data: bytes) -> object:
    _write(folder / INDEX, data)
    return len(load_model(folder).blocks)


def _folder(folder: Path, data: bytes) -> object:
    """Several files of a model at once, which may contradict each other."""
    try:
        files = json.loads(data)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(files, dict):
        return "no object"
    for name in ("config.json", INDEX, "generation_config.json"):
        _write(folder / name, json.dumps(files.get(name)).encode())
    params, tokenizer = model_params(folder), load_tokenizer(folder)
    return params.top_p == 1, len(tokenizer.stop_ids), len(load_model(folder).blocks)


SHARD: dict[str, Any] = {"name": "web", "format": "chat", "digest": "d" * 64, "token_bytes": 2,
         "parts": [{"name": "00000", "train": [2, 5], "heldout": [0, 0]},
                   {"name": "00001", "train": [1, 3], "heldout": [1, 1]}]}  # fmt: skip


def shard_folder(folder: Path) -> Path:
    """The files that SHARD tells of."""
    for split in ("train", "heldout"):
        _sub(folder, split)
        for part in SHARD["parts"]:
            documents, tokens = part[split]
            for suffix, size in (("", 2 * tokens), (".index", 8 * documents), (".masks", tokens)):
                (folder / split / f"{part['name']}.ds{suffix}").write_bytes(b"\1" * size)
    return folder


def _shard(folder: Path, data: bytes) -> object:
    _write(folder / "meta.json", data)
    shard = Shard.open(folder)
    shard.tokens[:3].sum()
    return shard.documents, shard.n_tokens, shard.masks is None


def _config(folder: Path, data: bytes) -> object:
    _write(folder / "config.json", data)
    config = load_config(folder)
    rope_tables(config, torch.zeros(1, dtype=torch.long)) if config.head_dim < 1000 else None
    return config.uses_rope, config.yarn is None, config.tied


def _settings(folder: Path, data: bytes) -> object:
    name = (
        "tokenizer_config.json"
        if b"token" in data and b"class" in data
        else "generation_config.json"
    )
    before = (folder / name).read_bytes()
    try:
        _write(folder / name, data)
        params = model_params(folder)
        tokenizer = load_tokenizer(folder)
        tokenizer.save(folder / "again")
        return params.temperature == 0, tuple(tokenizer.named)
    finally:
        _write(folder / name, before)


def _tokenizer(folder: Path, data: bytes) -> object:
    _write(folder / "tokenizer.json", data)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("the a <|im_end|> é日 12345\n") + tokenizer.encode_markup("x<think>")
    tokenizer.decode([*ids, 0, 2**31])
    return len(tokenizer.render([{"role": "user", "content": "a"}]).ids) > 0


def _recipe(path: Path, data: bytes) -> object:
    _write(path, data)
    return tuple(load_recipe(str(path)).stages)


# readers of text


def _chat(data: bytes) -> object:
    """However the text is cut, the same message comes out, and what was told adds up to it."""
    text = data.decode(errors="surrogateescape")
    rng = Random(data)
    style = {"xml": rng.random() < 0.8, "python": rng.random() < 0.5}
    whole = parse(text, **style)
    parser = StreamParser(**style)
    events: list[Any] = []
    at = 0
    while at < len(text):
        step = rng.choice((1, 2, 5, 20, 200))
        events += parser.feed(text[at : at + step])
        at += step
    events += parser.finish()
    assert parser.message == whole, (parser.message, whole)
    assert _added_up(events) == whole, (events, whole)
    calls = tuple(type(call.arguments).__name__ for call in whole.tool_calls[:4])
    return whole.reasoning is None, bool(whole.content), calls


def _added_up(events: list[Any]) -> Message:
    reasoning = "".join(e.text for e in events if isinstance(e, ReasoningDelta))
    content = "".join(e.text for e in events if isinstance(e, ContentDelta))
    calls: list[ToolCall] = [e.call for e in events if isinstance(e, CallEnd)]
    for i, call in enumerate(calls):
        told = "".join(e.text for e in events if isinstance(e, ArgumentsDelta) and e.index == i)
        assert told == call.arguments or json.loads(told) == call.arguments
    return Message("assistant", content, reasoning or None, tuple(calls))


def _renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer.template, CONTROL, ["<|im_end|>"], tokenizer.named)


def _history(renderer: Renderer, data: bytes) -> object:
    try:
        messages = json.loads(data)
    except (ValueError, RecursionError):
        return "not JSON"
    if not isinstance(messages, list):
        return "no list"
    rendering = renderer.render(messages, add_generation_prompt=False)
    return rendering.problem, len(rendering.pieces)


def _template(tokenizer: Tokenizer, data: bytes) -> object:
    source = data.decode(errors="surrogateescape")
    renderer = Renderer(source, CONTROL, ["<|im_end|>"], tokenizer.named)
    return len(renderer.render(HISTORY[1:]).text) > 0


# GGUF files made here: the smallest that say something of every kind

GGUF_WORDS = [struct.pack("<Q", n) for n in (0, 1, 3, 2**20, 2**40, 2**63)] + [
    *(struct.pack("<I", n) for n in (4, 5, 6, 8, 9, 10, 12)),
    *(b"general.alignment", b"llama.", b"split.count", b"\xff\xfe", b"tokenizer.ggml.tokens"),
]


def gguf_file(metadata: list[tuple[str, int, bytes]], shapes: dict[str, tuple[int, ...]]) -> bytes:
    """metadata: key, type, value as stored. shapes: of float32 tensors, rows last."""
    out = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(metadata))
    for key, kind, value in metadata:
        out += gguf_text(key) + struct.pack("<I", kind) + value
    at = 0
    for name, shape in shapes.items():
        out += gguf_text(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}QIQ", *reversed(shape), 0, at)
        at += -(-4 * shape[0] * shape[-1] // 32) * 32
    return out + bytes(-len(out) % 32) + bytes(at)


def gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_texts(texts: list[str]) -> bytes:
    return struct.pack("<IQ", reader.STRING, len(texts)) + b"".join(map(gguf_text, texts))


def gguf_seeds() -> list[bytes]:
    sizes = {"block_count": 1, "embedding_length": 4, "feed_forward_length": 6, "context_length": 64,
             "attention.head_count": 2, "attention.head_count_kv": 1}  # fmt: skip
    seeds = []
    for arch in ("smollm3", "llama"):
        metadata = [("general.architecture", 8, gguf_text(arch))]
        metadata += [(f"{arch}.{k}", 4, struct.pack("<I", v)) for k, v in sizes.items()]
        metadata += [(f"{arch}.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5))]
        if arch == "smollm3":
            scaling = f"{arch}.rope.scaling."
            metadata += [
                (scaling + "type", 8, gguf_text("yarn")),
                (scaling + "factor", 6, struct.pack("<f", 2)),
                (scaling + "original_context_length", 4, struct.pack("<I", 32)),
                ("list", 9, struct.pack("<IQ3H", 2, 3, 1, 2, 3)),
                ("names", 9, gguf_texts(["a", "été"])),
                ("flag", 7, b"\1"),
            ]
        shapes = {"token_embd.weight": (5, 4), "output_norm.weight": (4,), "blk.0.attn_q.weight": (4, 4),
                  "blk.0.attn_k.weight": (2, 4), "blk.0.ffn_gate.weight": (6, 4)}  # fmt: skip
        seeds.append(gguf_file(metadata, shapes))
    return seeds


def gguf_tokenizer() -> bytes:
    tokens = ["a", "b", "ab", "Ġ", "<|im_end|>", "<think>", "<|begin_of_text|>"]
    kinds = struct.pack("<IQ7i", 5, 7, 1, 1, 1, 1, 3, 4, 3)
    prefix = "tokenizer.ggml."
    metadata = [
        (prefix + "model", 8, gguf_text("gpt2")),
        (prefix + "pre", 8, gguf_text("llama-bpe")),
        (prefix + "tokens", 9, gguf_texts(tokens)),
        (prefix + "token_type", 9, kinds),
        (prefix + "merges", 9, gguf_texts(["a b"])),
        (prefix + "bos_token_id", 4, struct.pack("<I", 6)),
        (prefix + "eos_token_id", 4, struct.pack("<I", 4)),
        (prefix + "add_bos_token", 7, b"\1"),
        ("tokenizer.chat_template", 8, gguf_text("{{ messages[0].content }}<|im_end|>")),
    ]
    return gguf_file(metadata, {"token_embd.weight": (7, 4)})
