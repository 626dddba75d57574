"""Calls of the `tokenizers` library, whose errors become ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

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
