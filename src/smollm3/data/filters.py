"""Filters that datatrove does not have, in its form: a filter says whether a document is kept, or
why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.pipeline.filters import LanguageFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from numpy.typing import NDArray

from smollm3.data import places, readers
from smollm3.data.places import Span
from smollm3.data.sources import hash64
from smollm3.errors import UserError

Verdict = bool | tuple[bool, str]
_WORD = re.compile(r"\w+")
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers never vanish modulo 2^64


class CodeQuality(BaseFilter):  # type: ignore[misc]
    """The rules of Codex (Chen et al. 2021) and StarCoder (Li et al. 2023): no line above 1,000
    characters, lines of at most 100 on average, at least a quarter of letters and digits."""

    name = "code quality"

    def __init__(
        self,
        max_line: int = 1000,
        max_mean_line: float = 100,
        min_alphanumeric: float = 0.25,
        exclusion_writer: Any = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.max_line, self.max_mean_line = max_line, max_mean_line
        self.min_alphanumeric = min_alphanumeric

    def filter(self, doc: Any) -> Verdict:
        lengths = [len(line) for line in doc.text.splitlines()] or [0]
        if max(lengths) > self.max_line:
            return False, "long_line"
        if sum(lengths) / len(lengths) > self.max_mean_line:
            return False, "long_lines"
        if sum(map(str.isalnum, doc.text)) < self.min_alphanumeric * len(doc.text):
            return False, "few_letters"
        return True


class Language(LanguageFilter):  # type: ignore[misc]
    """datatrove's, which also takes a fastText model that is on the machine: where tasks have no
    network, or in place of the model that it would fetch.

    model: file of a fastText model whose labels are `__label__fr` (lid.176) or, with the backend
    glotlid, `__label__fra_Latn`.
    """

    def __init__(self, model: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.file = model
        if model is not None and not Path(model).is_file():
            raise UserError(f"steps: language: {model}: no such file")

    def filter(self, doc: Any) -> bool:
        if self.file is not None and self.model._model is None:
            from fasttext.FastText import _FastText

            self.model._model = _FastText(self.file)
        return bool(super().filter(doc))


class Function(BaseFilter):  # type: ignore[misc]
    """A function of the user's, "module:name": from a text to whether it is kept, or to why it is
    not (a str)."""

    name = "function"

    def __init__(self, function: str, exclusion_writer: Any = None) -> None:
        super().__init__(exclusion_writer)
        module, _, name = function.partition(":")
        try:
            self.function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as e:
            raise UserError(f"steps: function: {function}: {e}; write module:name") from None

    def filter(self, doc: Any) -> Verdict:
        kept = self.function(doc.text)
        return (False, kept) if isinstance(kept, str) else bool(kept)


class Decontaminate(BaseFilter):  # type: ignore[misc]
    """Drops texts that share a run of `n_grams` words with an evaluation item (13, as GPT-3 did).

    An item is every text in a row of the files `against` (JSON lines or Parquet); one of fewer
    words counts whole, from `min_words` up. Words are compared in lower case without punctuation.
    """

    name = "decontaminate"

    def __init__(
        self,
        against: list[str],
        n_grams: int = 13,
        min_words: int = 8,
        exclusion_writer: Any = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.n_grams, self.min_words = n_grams, min_words
        self._tables, self.items, self.too_short = self._index(against)

    def _index(self, patterns: list[str]) -> tuple[dict[int, dict[int, str]], int, int]:
        """{words: {their checksum: where they stand}}, items, items without enough words."""
        tables: dict[int, dict[int, str]] = {}
        items = too_short = 0
        for file, _ in places.find(patterns):
            for read in readers.rows(Span(file, 0)):
                if read.fault is not None:
                    raise UserError(f"steps: decontaminate: {file}: {read.fault}")
                items += 1
                place = f"{Path(file).name}:{read.number}"
                lengths = [self._add(text, place, tables) for text in _texts(read.row)]
                too_short += not any(lengths)
        return tables, items, too_short

    def _add(self, text: str, place: str, tables: dict[int, dict[int, str]]) -> bool:
        words = _words(text)
        n = min(self.n_grams, len(words))
        if n < self.min_words:
            return False
        table = tables.setdefault(n, {})
        for gram in _grams(words, n).tolist():
            table.setdefault(gram, place)
        return True

    def filter(self, doc: Any) -> Verdict:
        words = _words(doc.text)
        for n, table in self._tables.items():
            if n > len(words):
                continue
            found = next((g for g in _grams(words, n).tolist() if g in table), None)
            if found is not None:
                doc.metadata["contaminated_by"] = table[found]
                return False, f"holds {table[found].rpartition(':')[0]}"
        return True


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_texts, value))


def _words(text: str) -> NDArray[np.uint64]:
    """A 64-bit checksum of each word. Equal words in one text are hashed once."""
    words = _WORD.findall(text.lower())
    known = {word: hash64(word) for word in set(words)}
    return np.fromiter((known[word] for word in words), np.uint64, len(words))


def _grams(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """A checksum of each run of n words: a polynomial in them modulo 2^64."""
    total = np.zeros(len(words) - n + 1, np.uint64)
    for i in range(n):
        power = pow(_BASE, n - 1 - i, 1 << 64)
        total += words[i : len(words) - n + 1 + i] * np.uint64(power)
    return total
