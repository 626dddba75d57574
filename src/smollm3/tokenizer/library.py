"""Calls of the `tokenizers` library, whose errors become ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import tokenizers

from smollm3.errors import UserError


@cache
def byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write bytes with: those that are printable
    themselves, and for the others U+0100 and on, in order."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in shown)
    return {chr(b): b for b in shown} | {chr(0x100 + i): b for i, b in enumerate(others)}


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in encodings(tokenizer.encode_batch_fast, texts)]


def encodings(
    method: Callable[..., list[tokenizers.Encoding]], texts: Sequence[str]
) -> list[tokenizers.Encoding]:
    try:
        return method(list(texts), add_special_tokens=False)
    except TypeError:
        raise UserError(
            "a text holds a lone surrogate, which is no character; fix the data"
        ) from None
    except BaseException as e:
        reraise_unless_library(e)
        raise UserError(f"the tokenizer gives up on a text ({e}); shorten or fix it") from None


def reraise_unless_library(error: BaseException) -> None:
    """Raise what is no failure of the library: it raises bare Exceptions and, when it panics,
    something that is none."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


# What byte-level BPE models use, and those of the older kind with one sign for a blank.
_PARTS = {
    "normalizer": "NFC NFD NFKC NFKD Lowercase Replace Prepend Strip StripAccents Nmt "
    "BertNormalizer",
    "pre_tokenizer": "ByteLevel Split Digits Whitespace WhitespaceSplit Punctuation Metaspace "
    "BertPreTokenizer CharDelimiterSplit UnicodeScripts",
    "post_processor": "ByteLevel TemplateProcessing BertProcessing RobertaProcessing",
    "decoder": "ByteLevel Metaspace Replace ByteFallback Fuse Strip BPEDecoder WordPiece CTC",
}
_STEPS = 8  # of a part, nested ones included
_GROWING = 2  # of these, that put text in
_PUT = 4  # bytes that such a step may put in for a sign
_TOKEN = 512  # bytes of an added token
_PATTERN = 2048  # characters


def check_parts(source: str) -> None:
    """Raises UserError for parts of a tokenizer.json that would let a text, or its tokens' text,
    grow without bound, or that no model of this kind has. Damage is the library's to find."""
    try:
        content = json.loads(source)
        added = [token["content"] for token in content["added_tokens"]]
    except (ValueError, RecursionError, LookupError, TypeError):
        return
    for token in added:
        if isinstance(token, str) and len(token.encode(errors="replace")) > _TOKEN:
            raise UserError(f"tokenizer.json: added_tokens: one of more than {_TOKEN} bytes")
    for name, known in _PARTS.items():
        steps = list(_steps(content.get(name)))
        growing = 0
        for step in steps:
            kind = step.get("type")
            if kind not in known.split():
                raise UserError(f"tokenizer.json: {name}: {kind!r:.40} is not supported")
            put = step.get("content" if kind == "Replace" else "prepend", "")
            growing += kind in ("Replace", "Prepend")
            if isinstance(put, str) and len(put.encode(errors="replace")) > _PUT:
                raise UserError(f"tokenizer.json: {name}: {kind} puts in more than {_PUT} bytes")
            if len(json.dumps(step)) > _PATTERN:
                raise UserError(f"tokenizer.json: {name}: {kind}: too long")
        if len(steps) > _STEPS or growing > _GROWING:
            raise UserError(f"tokenizer.json: {name}: too many steps")


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """Of sequences, which may lie in each other, what they are made of."""
    left = [part]
    while left:
        match left.pop():
            case {"type": "Sequence", **rest}:
                for held in rest.values():
                    left += held if isinstance(held, list) else ()
            case dict() as step:
                yield step
