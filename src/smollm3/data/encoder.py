"""Texts to ids as the tokenizer gives them, by tiktoken where it is sure to give the same."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from smollm3.tokenizer import Tokenizer

Encode = Callable[[Sequence[str]], list[list[int]]]

# A run of about a million blanks overflows the stack of tiktoken's regular expressions.
_MANY = 100_000
_LONG_BLANKS = re.compile(rf"\s{{{_MANY}}}")


def text_encoder(tokenizer: Tokenizer) -> Encode:
    """A function from texts to ids with the results of `tokenizer.encode_batch`.

    tiktoken is about four times as fast on one core. It is used for byte-level BPE in which a
    token's number is its rank and every way to put it together is a merge (`same_merges`), as in
    Llama 3's vocabulary and so in SmolLM3's.
    """
    try:
        import tiktoken
    except ImportError:
        return tokenizer.encode_batch
    parts = json.loads(tokenizer.source)
    pattern = _pattern(parts)
    if pattern is None or not _only_control_added(parts, tokenizer) or not same_merges(parts):
        return tokenizer.encode_batch
    ranks = {tokenizer.token_bytes(i): i for i in parts["model"]["vocab"].values()}
    fast = tiktoken.Encoding(
        "text", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
    ).encode_ordinary

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [
            tokenizer.encode(text)
            if len(text) > _MANY and _LONG_BLANKS.search(text)
            else fast(text)
            for text in texts
        ]

    return encode


def _pattern(parts: dict[str, Any]) -> str | None:
    """The regular expression of a tokenizer that splits by one and then is byte-level BPE; None
    for any other."""
    model = parts["model"]
    plain = all(
        not model.get(key)
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    )
    if model.get("type") != "BPE" or not plain or not model.get("ignore_merges"):
        return None
    match parts.get("normalizer"), parts.get("pre_tokenizer"):
        case None, {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": str(pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        }:
            return pattern
    return None


def _only_control_added(parts: dict[str, Any], tokenizer: Tokenizer) -> bool:
    control = tokenizer.special_ids | set(tokenizer.tags.values())
    vocabulary = parts["model"]["vocab"]
    return all(
        token["id"] in control and token["content"] not in vocabulary
        for token in parts["added_tokens"]
    )


def same_merges(parts: dict[str, Any]) -> bool:
    """Whether merging by lists, as tokenizers does, is merging by ranks, as tiktoken does: the
    merges come in the order of what they make, and any two tokens that make a third are one."""
    vocabulary: dict[str, int] = parts["model"]["vocab"]
    merges = {
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge): None
        for merge in parts["model"]["merges"]
    }
    made = [vocabulary[left + right] for left, right in merges]
    if any(a > b for a, b in itertools.pairwise(made)):
        return False
    if sum(len(token) == 1 for token in vocabulary) < 256:
        return False
    for token in vocabulary:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary and (left, right) not in merges:
                return False
    return True
