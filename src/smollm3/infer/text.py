"""Text from tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence

from smollm3.tokenizer import Tokenizer

INCOMPLETE = "\ufffd"
LONGEST_WAIT = 8  # tokens; a character has at most 4 bytes, so more of them are no character


class TextStream:
    """Pieces of text whose sum is the decoded whole; none splits a character.

    A byte-level token may end inside a UTF-8 character, which decodes to U+FFFD: what is not yet
    whole waits.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting: list[int] = []
        self._given = 0  # characters of the waiting tokens' text

    def push(self, token: int) -> str:
        self._waiting.append(token)
        text = self._decode(self._waiting)
        # Only the last character can still change: of an invalid run each byte but the last few,
        # which count as one, has been given up on.
        whole = len(text) - 1 if text.endswith(INCOMPLETE) else len(text)
        piece, self._given = text[self._given : whole], max(whole, self._given)
        if whole == len(text):
            self._waiting, self._given = [], 0
        elif len(self._waiting) > LONGEST_WAIT:
            self._shorten(text)
        return piece

    def end(self) -> str:
        piece = self._decode(self._waiting)[self._given :]
        self._waiting, self._given = [], 0
        return piece

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=True)

    def _shorten(self, text: str) -> None:
        """Drop waiting tokens whose text is settled, or an endless run would be decoded anew with
        each token."""
        for keep in range(1, LONGEST_WAIT):
            head, tail = (
                self._decode(ids) for ids in (self._waiting[:-keep], self._waiting[-keep:])
            )
            if head + tail == text and len(head) <= self._given:
                self._waiting, self._given = self._waiting[-keep:], self._given - len(head)
                return


class StopTexts:
    """Holds back what may yet become a stop text; the pieces end before the first that does."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found: str | None = None  # the stop text that was

    def push(self, piece: str) -> str:
        """What may be shown now."""
        text = self._held + piece
        places = [(place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, self.found = min(places)
            self._held = ""
            return text[:place]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def end(self) -> str:
        """The rest, when the answer has ended otherwise."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
