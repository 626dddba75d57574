"""Which items of a task stand in training data: overlap of 13 words in a row, as GPT-3's authors
counted it (Brown et al. 2020, appendix C)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.local import read_text

WORDS = 13
_WORD = re.compile(r"\w+")


def grams(text: str, n: int = WORDS) -> Iterator[str]:
    """Each n words in a row, in small letters and without signs; all of a text of fewer words."""
    words = _WORD.findall(text.lower())
    for start in range(max(len(words) - n + 1, 1 if words else 0)):
        yield " ".join(words[start : start + n])


@dataclass(frozen=True)
class Overlap:
    """items: that share a gram with the data, of so many; documents: that hold one, of so many."""

    items: tuple[int, ...]
    of_items: int
    documents: int
    of_documents: int


class ItemIndex:
    """The grams of a task's items. Those of fewer words than a gram are left out, as "yes" is in
    every document; `short` counts them."""

    def __init__(self, items: Iterable[str], n: int = WORDS) -> None:
        self.n = n
        self.count = self.short = 0
        self._items: dict[str, set[int]] = {}
        for index, text in enumerate(items):
            self.count += 1
            if len(_WORD.findall(text)) < n:
                self.short += 1
                continue
            for gram in grams(text, n):
                self._items.setdefault(gram, set()).add(index)

    def found_in(self, document: str) -> set[int]:
        """The items that share a gram with a document."""
        found: set[int] = set()
        for gram in grams(document, self.n):
            found |= self._items.get(gram, set())
        return found

    def clean(self, documents: Iterable[str]) -> Iterator[str]:
        """The documents that share no gram with any item: a filter for training data."""
        return (document for document in documents if not self.found_in(document))

    def overlap(self, documents: Iterable[str]) -> Overlap:
        items: set[int] = set()
        hits = total = 0
        for document in documents:
            found = self.found_in(document)
            items |= found
            hits += bool(found)
            total += 1
        return Overlap(tuple(sorted(items)), self.count, hits, total)


def documents(files: Sequence[Path]) -> Iterator[str]:
    """Of text files one each, of JSON lines (.jsonl, also .gz) one a line: all texts in it."""
    for file in files:
        text = read_text(file)
        if ".jsonl" not in file.name:
            yield text
            continue
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield "\n".join(_texts(json.loads(line)))
                except ValueError as e:
                    raise UserError(f"{file}:{number}: not valid JSON ({e})") from None


def _texts(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case Mapping():
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)
