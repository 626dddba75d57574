"""What is counted while a source is prepared, and what of it a user is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from smollm3.data.formats import spells_template
from smollm3.data.shards import GENERATED, PUBLISHED
from smollm3.data.sources import Document, Skipped

_Numbers = Sequence[Sequence[int]]
MODES = {True: "think", False: "no_think", None: "not said"}
_GUESSES = {"think": "/think for their reasoning", "no_think": "/no_think for lack of reasoning"}


class Counts:
    """Of the documents that are kept.

    tokens_by_mode: of conversations. guessed: those that say nothing about thinking, by the mode
    that they were given. spelled: texts that spell out a chat template. trained: tokens by mask.
    """

    SUMS = ("tokens_by_mode", "guessed", "spelled", "trained")

    def __init__(self, *, thinks: bool) -> None:
        """thinks: whether the template has two modes."""
        self._thinks = thinks
        self._sums: dict[str, Counter[str]] = {key: Counter() for key in self.SUMS}

    def add(self, document: Document, ids: _Numbers, masks: _Numbers | None) -> None:
        if document.text is not None:
            self._sums["spelled"]["texts"] += spells_template(document.text)
            return
        mode = MODES[document.options.get("enable_thinking")]
        self._sums["tokens_by_mode"][mode] += sum(map(len, ids))
        self._sums["guessed"][mode] += document.guessed and self._thinks
        for mask in masks or ():
            self._sums["trained"]["generated"] += sum(bit & GENERATED for bit in mask)
            self._sums["trained"]["published"] += sum(bit & PUBLISHED for bit in mask) // PUBLISHED

    def sums(self) -> dict[str, dict[str, int]]:
        return {key: dict(+sums) for key, sums in self._sums.items()}


def first_places(places: Iterable[dict[str, list[str]]]) -> dict[str, list[str]]:
    """The first few places of each reason."""
    found: dict[str, list[str]] = {}
    for part in places:
        for reason, more in part.items():
            found[reason] = (found.get(reason, []) + more)[: Skipped.PLACES]
    return found


def notes(meta: dict[str, Any]) -> Iterator[str]:
    """What a user should know of a prepared source, a line each: what was left out and where, and
    what was guessed."""
    for reason, count in meta["skipped"].items():
        at = ", ".join(meta["places"].get(reason, ()))
        more = ", ..." if count > Skipped.PLACES else ""
        yield f"{count} documents skipped ({reason}){': ' + at + more if at else ''}"
    if meta["guessed"]:
        how = ", ".join(f"{n} as {_GUESSES[mode]}" for mode, n in meta["guessed"].items())
        yield (
            f"conversations that say nothing about thinking are trained by what they hold: {how}; "
            "`thinking` of the source sets it"
        )
    if n := meta["spelled"].get("texts", 0):
        yield (
            f"{n} texts begin with the marks of a chat template, which are trained as plain text; "
            "with `format: chat` they are read as conversations"
        )
