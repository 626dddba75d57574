"""Somebody's own data as `smollm3 finetune` sees them: what they are, how many, how long."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from smollm3 import data
from smollm3.data import readers
from smollm3.data.sources import plan
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer
from smollm3.units import count

# Held out at most: enough for an interval, and nearly all is trained on.
HELD_OUT = 200
SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet", ".txt": "text", ".md": "text"}
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
    spec = source_of(where)
    source = SOURCE.validate_python(spec)
    rows = sum(
        readers.count_rows(span) if spec["kind"] != "text" else 1
        for part in plan(source, 0).parts
        for span in part
    )
    if rows < 4:
        raise UserError(f"{where}: {rows} rows; training and holding out need at least 4")
    spec["holdout"] = round(min(0.2, max(0.1, 20 / rows), max(0.005, HELD_OUT / rows)), 4)
    source = SOURCE.validate_python(spec)
    shard = data.prepare(name, source, tokenizer, cache, seed=0)
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


def source_of(where: str) -> dict[str, Any]:
    """How a recipe says what lies there, told from names and the first row."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file() and _suffix(f) in SUFFIXES]
        kinds = sorted({_suffix(f) for f in files})
        if len(kinds) != 1:
            raise UserError(
                f"{where}: files of {', '.join(kinds) or 'no known kind'}; give one kind"
            )
        pattern, suffix = str(path / "**" / f"*{kinds[0]}*"), kinds[0]
    else:
        pattern, suffix = str(path), _suffix(path)
    if suffix not in SUFFIXES:
        raise UserError(f"{where}: not one of {', '.join(SUFFIXES)}")
    kind = SUFFIXES[suffix]
    spec = {"kind": kind, "files": [pattern], "format": "text"}
    if kind == "text":
        return spec
    columns = _first_row(spec)
    if "messages" in columns:
        return spec | {"format": "chat"}
    if {"chosen", "rejected"} <= columns:
        return spec | {"format": "preference"}
    if "text" in columns:
        return spec
    raise UserError(
        f"{where}: rows have {', '.join(sorted(columns)) or 'no columns'}; needed are messages, "
        "chosen and rejected, or text"
    )


def _suffix(path: Path) -> str:
    """The ending that says what a file is, without one that says how it is packed."""
    packed = path.suffix.lower() in readers.COMPRESSED
    return (Path(path.stem) if packed else path).suffix.lower()


def _first_row(spec: dict[str, Any]) -> set[str]:
    source = SOURCE.validate_python(spec)
    for part in plan(source, 0).parts:
        for span in part:
            for _, row in readers.rows(span, None, Counter(), text=False):
                return set(row) if isinstance(row, dict) else set()
    return set()
