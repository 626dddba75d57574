"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Iterator

from smollm3.tokenizer import Tokenizer


class TextStream:
    """Pieces of text whose sum is the decoded whole; none splits a character.

    A byte-level token may end inside a UTF-8 character, which decodes to U+FFFD: tokens wait
    until the character is whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []

    def push(self, token: int) -> Iterator[str]:
        self._waiting.append(token)
        text = self._tokenizer.decode(self._waiting, skip_special=True)
        if not text.endswith("\ufffd"):
            self._waiting = []
            if text:
                yield text

    def end(self) -> Iterator[str]:
        text = self._tokenizer.decode(self._waiting, skip_special=True)
        self._waiting = []
        if text:
            yield text
