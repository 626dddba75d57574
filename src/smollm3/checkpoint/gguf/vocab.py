"""The tokenizer inside a GGUF file: byte-level BPE (`tokenizer.ggml.model` = gpt2) to and from a
tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from smollm3.checkpoint.gguf.reader import Gguf
from smollm3.errors import UserError
from smollm3.tokenizer import SPLIT, Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
PREFIX = "tokenizer.ggml."
NAMED = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}
STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")


def _llama3() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


# How text is split before the merges, by llama.cpp's names. `smaug-bpe`, SmolLM3's, splits as
# `llama-bpe` but puts no BOS before a text.
SPLITS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smaug-bpe": _llama3,
    "llama-bpe": _llama3,
    "smollm": _smollm,
    "gpt-2": _gpt2,
}
# Llama 3's vocabulary, and SmolLM3's: a word that is a token is that token, whatever the merges
# make of it. Says SmolLM3's tokenizer.json; llama.cpp does so for llama-bpe only.
WHOLE_WORDS = ("smaug-bpe", "llama-bpe")


def read_tokenizer(file: Gguf) -> Tokenizer:
    """The tokenizer and chat template in `file`; a UserError names the key that does not fit."""
    pre = _pre(file)
    tokens = _strings(file, "tokens")
    if len(set(tokens)) < len(tokens):
        raise file.fail(PREFIX + "tokens", "a token appears twice")
    config = {name: tokens[i] for name, key in NAMED.items() if (i := _id(file, key, tokens)) >= 0}
    stops = [i for key in STOPS if (i := _id(file, key, tokens)) >= 0]
    types = _types(file, len(tokens))
    ends = {tokens[i] for i in stops}

    added = {
        token: kind != USER_DEFINED
        for token, kind in zip(tokens, types, strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) or token in ends
    }
    if "" in added:
        raise file.fail(PREFIX + "tokens", "a control token is empty")
    # The control tokens behind all others stay out of BPE's vocabulary, as in a tokenizer.json, so
    # that it serves for text too. Runs of blanks are text.
    end = len(tokens)
    while end and tokens[end - 1] in added and (added[tokens[end - 1]] or tokens[end - 1].strip()):
        end -= 1
    pieces = dict(zip(tokens[:end], range(end), strict=True))
    bpe = tokenizers.Tokenizer(_bpe(file, pieces, ignore_merges=pre in WHOLE_WORDS))
    bpe.pre_tokenizer = SPLITS[pre]()
    bpe.decoder = decoders.ByteLevel()
    bpe.add_tokens([AddedToken(t, special=s, normalized=False) for t, s in added.items()])
    if file.get(PREFIX + "add_bos_token", bool, pre == "llama-bpe"):
        if "bos_token" not in config:
            raise file.fail(PREFIX + "bos_token_id", "missing, but add_bos_token is set")
        bos = config["bos_token"]
        bpe.post_processor = processors.TemplateProcessing(
            single="BOS $A",
            special_tokens=[{"id": "BOS", "ids": [tokens.index(bos)], "tokens": [bos]}],
        )
    template: str = file.get("tokenizer.chat_template", str, "")
    try:
        return Tokenizer(bpe, config, template, stops)
    except UserError as e:
        raise UserError(f"{file.path}: {e}") from None


def _pre(file: Gguf) -> str:
    model: str = file.get(PREFIX + "model", str)
    if model != "gpt2":
        raise file.fail(PREFIX + "model", f"{model!r} is not supported, only gpt2 (byte-level BPE)")
    pre: str = file.get(PREFIX + "pre", str)
    if pre not in SPLITS:
        raise file.fail(PREFIX + "pre", f"{pre!r} is not supported, only {', '.join(SPLITS)}")
    return pre


def _strings(file: Gguf, key: str) -> list[str]:
    values: list[Any] = file.get(PREFIX + key, list)  # the reader makes lists of strings only
    return values


def _id(file: Gguf, key: str, tokens: list[str]) -> int:
    """The token's id, or -1 where the key is absent."""
    index: int = file.get(PREFIX + key, int, -1)
    if index >= len(tokens):
        raise file.fail(PREFIX + key, f"{index} is beyond the {len(tokens)} tokens")
    return index


def _types(file: Gguf, count: int) -> list[int]:
    types = file.metadata.get(PREFIX + "token_type")
    if types is None:
        return [NORMAL] * count
    if isinstance(types, str | list) or getattr(types, "shape", None) != (count,):
        raise file.fail(PREFIX + "token_type", f"must be one number for each of {count} tokens")
    kinds: list[int] = types.tolist()
    return kinds


def _bpe(file: Gguf, vocab: dict[str, int], ignore_merges: bool) -> models.BPE:
    merges = _strings(file, "merges")
    pairs = [merge.partition(" ")[::2] for merge in merges]
    try:
        return models.BPE(vocab=vocab, merges=pairs, ignore_merges=ignore_merges)
    except Exception:
        for merge, (left, right) in zip(merges, pairs, strict=True):
            if not {left, right, left + right} <= vocab.keys():
                problem = f"{merge!r:.80} is not of two tokens to a third"
                raise file.fail(PREFIX + "merges", problem) from None
        raise


def add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Put `tokenizer` and its template among the metadata, filled up to the model's `vocab_size`.

    A UserError for tokenizers that llama.cpp has no name for.
    """
    parts = json.loads(tokenizer.source)
    pre = _pre_of(parts, tokenizer.bos is not None)
    types = dict.fromkeys(parts["model"]["vocab"], NORMAL)
    ids = dict(parts["model"]["vocab"])
    for token in parts["added_tokens"]:
        ids[token["content"]] = token["id"]
        types[token["content"]] = CONTROL if token["special"] else USER_DEFINED
    tokens = {index: token for token, index in ids.items()}
    if len(tokens) < len(ids) or max(tokens) >= vocab_size:
        raise UserError(f"tokenizer.json: its ids do not fit a model of {vocab_size} tokens")
    rows = [tokens.get(i) for i in range(vocab_size)]

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([f"[PAD{i}]" if row is None else row for i, row in enumerate(rows)])
    writer.add_token_types([UNUSED if row is None else types[row] for row in rows])
    writer.add_token_merges([_merge(pair) for pair in parts["model"]["merges"]])
    # llama.cpp takes id 11 where there is no key.
    bos = tokenizer.named.get("bos_token", "<|begin_of_text|>")
    writer.add_bos_token_id(ids.get(bos, tokenizer.end_of_text_id))
    for key, index in zip(STOPS, tokenizer.stop_ids, strict=False):
        writer.add_uint32(PREFIX + key, index)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(tokenizer.bos is not None)
    if tokenizer.template:
        writer.add_chat_template(tokenizer.template)


def _merge(pair: str | list[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _pre_of(parts: dict[str, Any], adds_bos: bool) -> str:
    """llama.cpp's name for the way a tokenizer.json splits text."""
    model = parts["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or parts["normalizer"] is not None:
        raise UserError("tokenizer.json: GGUF files hold byte-level BPE without a normalizer only")
    split = _comparable(parts["pre_tokenizer"])
    for pre, make in SPLITS.items():
        like = tokenizers.Tokenizer(models.BPE())
        like.pre_tokenizer = make()
        if _comparable(json.loads(like.to_str())["pre_tokenizer"]) == split:
            return "llama-bpe" if pre == "smaug-bpe" and adds_bos else pre
    raise UserError(
        "tokenizer.json: pre_tokenizer: llama.cpp has no name for this way to split text; "
        "it knows those of SmolLM3, Llama 3, SmolLM2 and GPT-2"
    )


def _comparable(node: Any) -> Any:
    """Without `trim_offsets`, which changes no id."""
    if isinstance(node, dict):
        return {k: _comparable(v) for k, v in node.items() if k != "trim_offsets"}
    return [_comparable(v) for v in node] if isinstance(node, list) else node
