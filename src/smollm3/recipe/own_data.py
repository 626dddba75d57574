"""Somebody's own data as `smollm3 finetune` sees them: what they are, how many, how long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from smollm3 import data
from smollm3.data import readers
from smollm3.data.detect import detect
from smollm3.data.sources import plan
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer
from smollm3.units import count

# Held out at most: enough for an interval, and nearly all is trained on.
HELD_OUT = 200
SOURCE: TypeAdapter[Source] = TypeAdapter(Source)


@dataclass(frozen=True)
class Looked:
    """A source that was prepared to see what it is. lengths: in tokens, of what is trained on (of a
    pair the longer side). held: documents (pairs) held out. skipped: reason -> rows left out."""

    name: str
    spec: dict[str, Any]
    lengths: np.ndarray[Any, np.dtype[np.int64]]
    tokens: int
    held: int
    skipped: dict[str, int]

    @property
    def is_pairs(self) -> bool:
        return bool(self.spec["format"] == "preference")

    @property
    def work(self) -> float:
        """What a step costs beside the training of its rows: of pairs a forward pass of the
        reference model."""
        return 1.5 if self.is_pairs else 1.0

    def __str__(self) -> str:
        what = {"chat": "conversations", "preference": "pairs", "text": "documents"}
        found = (
            f"{len(self.lengths) + self.held:,} {what[self.spec['format']]}, {count(self.tokens)} "
            f"tokens to train on, median length {int(np.median(self.lengths)):,}"
        )
        lost = ", ".join(f"{n:,} left out ({reason})" for reason, n in self.skipped.items() if n)
        return f"{found}; {lost}" if lost else found


def look(name: str, where: str, tokenizer: Tokenizer, cache: Path) -> Looked:
    """Prepare what lies at `where` in `cache`, with a share held out that its size asks for."""
    found = detect(where)
    spec, source = found.spec, found.source
    rows = sum(
        readers.count_rows(span, source.read_as) for part in plan(source, 0).parts for span in part
    )
    if rows < 4:
        raise UserError(f"{where}: {rows} rows; training and holding out need at least 4")
    spec["holdout"] = round(min(0.2, max(0.1, 20 / rows), max(0.005, HELD_OUT / rows)), 4)
    shard = data.prepare(name, SOURCE.validate_python(spec), tokenizer, cache, seed=0)
    held = data.Shard.open(shard.folder, split="heldout")
    lengths = shard.lengths()
    if spec["format"] == "preference":
        lengths = lengths.reshape(-1, 2).max(axis=1)
    if not len(lengths) or not held.documents:
        raise UserError(
            f"{where}: {len(lengths)} rows to train on and {held.documents} held out; "
            "different rows are needed on both sides"
        )
    pairs = 2 if spec["format"] == "preference" else 1
    skipped = {reason: n for reason, n in shard.meta["skipped"].items() if n}
    return Looked(name, spec, lengths, shard.n_tokens, held.documents // pairs, skipped)
