"""Documents from the places a recipe names: files, the Hub, the standard library, generators."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from smollm3.chat.tags import THINK
from smollm3.data import formats, places, procedural, readers, stdlib, synthetic, words
from smollm3.data.blobs import with_texts
from smollm3.data.hub import hub_files
from smollm3.data.messages import Damaged, Messages, without_nulls
from smollm3.data.order import permutation
from smollm3.data.places import Span
from smollm3.data.readers import Read, Row, Text
from smollm3.data.spec import FileSource, HubSource, ProceduralSource, Source, StdlibSource
from smollm3.errors import UserError

_MADE_DOCUMENTS = 1_000_000  # a part of a source that is made up


@dataclass(frozen=True)
class Document:
    """One text, one conversation, or one preference pair.

    id: place in its source, the same wherever the files lie.
    messages: the conversation; of a pair, the prompt, which chosen and rejected go on from.
    options: what the renderer is told (enable_thinking, tools, python_tools, ...).
    guessed: whether its mode was. place: file and line, for people.
    """

    id: str
    text: str | None = None
    messages: Messages = field(default_factory=list)
    chosen: Messages = field(default_factory=list)
    rejected: Messages = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    guessed: bool = False
    place: str = ""

    def texts(self) -> Iterator[str]:
        """All running text in it, e.g. to train a tokenizer on."""
        if self.text is not None:
            yield self.text
        for tool in self.options.get("tools", ()):
            yield tool if isinstance(tool, str) else json.dumps(tool, ensure_ascii=False)
        for message in (*self.messages, *self.chosen, *self.rejected):
            for key in ("reasoning_content", "content"):
                if isinstance(message.get(key), str) and message[key]:
                    yield message[key]
            for call in message.get("tool_calls", ()):
                yield json.dumps(call.get("function", call), ensure_ascii=False)

    def content_hash(self) -> int:
        """64 bits of the checksum of everything in it but its id."""
        if self.text is not None:
            return hash64(self.text)
        value = [self.messages, self.chosen, self.rejected, self.options]
        return hash64(json.dumps(value, sort_keys=True, ensure_ascii=False))


def hash64(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


class Skipped(Counter[str]):
    """What was left out, by reason, and the first few places of each."""

    PLACES, REASONS = 5, 100

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[str]] = {}

    def note(self, reason: str, place: str) -> None:
        if reason not in self and len(self) >= self.REASONS:
            reason = "other reasons"
        self[reason] += 1
        places = self.places.setdefault(reason, [])
        if place and len(places) < self.PLACES:
            places.append(place)


class Entry(NamedTuple):
    """A row's document, or why it has none.

    file: its name; "" for sources that are made up. row: its number in it, from 1. line: where it
    begins, where files have lines. place: file and line (or row), for people.
    """

    file: str
    row: int
    line: int | None
    place: str
    document: Document | None
    fault: str = ""


@dataclass(frozen=True)
class Plan:
    """How a source is cut into parts, in reading order; the same however many workers there are.

    rows: of the whole source, where it keeps a share of them (`rows:` in the recipe), else 0.
    """

    parts: list[list[Span]]
    rows: int = 0


def plan(source: Source, seed: int) -> Plan:
    """Cut a source into parts of about `part` MB and shuffle the parts."""
    match source:
        case StdlibSource():
            parts = [[Span("", 0)]]
        case ProceduralSource():
            ends = [*range(0, source.documents, _MADE_DOCUMENTS), source.documents]
            parts = [[Span("", 0, first, last, first)] for first, last in pairwise(ends)]
        case HubSource():
            parts = places.split(hub_files(source)[1], int(source.part * 2**20))
        case FileSource():
            parts = places.split(_found(source), int(source.part * 2**20))
    total = 0
    if source.rows is not None:
        for part in parts:
            for i, span in enumerate(part):
                part[i] = replace(span, offset=total)
                total += _count(source, span, seed)
    return Plan([parts[i] for i in permutation(len(parts), f"{seed}/parts")], total)


def _count(source: Source, span: Span, seed: int) -> int:
    if isinstance(source, ProceduralSource):
        return (span.last or source.documents) - span.first
    if isinstance(source, StdlibSource):
        if isinstance(source.rows, int):
            return source.rows  # these come shuffled: what is behind the last one is not read
        return sum(1 for _ in _reads(source, span, seed))
    return readers.count_rows(span, source.read_as)


def documents(
    source: Source,
    seed: int,
    skipped: Skipped | None = None,
    planned: Plan | None = None,
    part: int | None = None,
) -> Iterator[Document]:
    """Every document of a source, or of one part of its plan, in an order that depends on the
    source and the seed alone.

    What cannot be used is left out and counted in `skipped` by reason. A missing file, a pattern
    without a match, and a source in which nothing is left are UserErrors.
    """
    skipped = Skipped() if skipped is None else skipped
    found = 0
    for entry in entries(source, seed, planned, part):
        if entry.document is None:
            skipped.note(entry.fault, entry.place)
        else:
            found += 1
            yield entry.document
    if not found and part is None:
        raise UserError(nothing_usable(source, skipped))


def entries(
    source: Source, seed: int, planned: Plan | None = None, part: int | None = None
) -> Iterator[Entry]:
    """What `documents` reads, with the rows that cannot be used."""
    for span, identity, read in _kept_reads(source, seed, planned, part):
        yield from _entries(source, Path(span.file).name, identity, read)


def raw_rows(source: Source, seed: int) -> Iterator[Read]:
    """The rows that `documents` reads as they are stored: all columns, under the names that they
    have here."""
    for _, _, read in _kept_reads(source, seed, whole=True):
        named = isinstance(read.row, dict)
        yield read._replace(row=formats.named(read.row, _columns(source))) if named else read


def _columns(source: Source) -> dict[str, str]:
    return getattr(source, "columns", {})


def _kept_reads(
    source: Source,
    seed: int,
    planned: Plan | None = None,
    part: int | None = None,
    *,
    whole: bool = False,
) -> Iterator[tuple[Span, str, Read]]:
    """(where it lies, id in the source, row) of all rows that the source keeps. whole: with the
    columns that make no document, too."""
    planned = planned or plan(source, seed)
    spans = planned.parts[part] if part is not None else [s for p in planned.parts for s in p]
    kept = _kept(source, seed, planned.rows)
    for span in spans:
        for offset, (identity, read) in enumerate(_reads(source, span, seed, whole), span.offset):
            if kept is not None and offset >= len(kept):
                break
            if kept is None or kept[offset]:
                yield span, identity, read


def _entries(source: Source, file: str, identity: str, read: Read) -> Iterator[Entry]:
    row, line = read.number + 1, read.line
    place = f"{file} row {row}".strip() if line is None else f"{file}:{line}"
    fault = read.fault
    if fault is None:
        try:
            for document in _of_row(identity, place, read.row, source):
                yield Entry(file, row, line, place, document)
            return
        except Damaged as e:
            fault = str(e)
        except RecursionError:
            fault = "nested too deeply"
    yield Entry(file, row, line, place, None, fault)


def nothing_usable(source: Source, skipped: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    where = getattr(source, "files", None) or source.kind
    return f"{where}: no usable documents in it ({reasons or 'it is empty'})"


def _kept(source: Source, seed: int, n: int) -> Any:
    """Which of a source's n rows are kept; None for all."""
    if source.rows is None:
        return None
    n_kept = source.rows if isinstance(source.rows, int) else int(n * source.rows)
    kept = np.zeros(n, dtype=bool)
    if isinstance(source.rows, int) and isinstance(source, StdlibSource | ProceduralSource):
        kept[:n_kept] = True  # these come shuffled
    else:
        kept[permutation(n, f"{seed}/rows")[:n_kept]] = True
    return kept


def fingerprint(source: Source) -> Any:
    """A JSON value that changes when the data may have changed, found without reading them."""
    match source:
        case StdlibSource():
            return sys.version
        case ProceduralSource():
            modules = (procedural, synthetic, words)
            return [hash64(Path(str(module.__file__)).read_text()) for module in modules]
        case HubSource():
            return hub_files(source)[0]
        case _:
            stats = [(f, size, _modified(f)) for f, size in _found(source)]
            return [list(entry) for entry in stats]


def _found(source: FileSource) -> list[tuple[str, int]]:
    return places.find(source.files, every=source.kind == "text")


def _modified(file: str) -> int:
    return 0 if "://" in file else Path(file).stat().st_mtime_ns


def _reads(
    source: Source, span: Span, seed: int, whole: bool = False
) -> Iterator[tuple[str, Read]]:
    """(id in the source, row)."""
    match source:
        case StdlibSource():
            for number, (identity, row) in enumerate(stdlib.rows(source.part, seed)):
                yield identity, Read(number, None, row)
        case ProceduralSource():
            indices = range(span.first, span.last or source.documents)
            made = procedural.rows(
                source.generator, source.format, indices.stop, seed, source.options, indices.start
            )
            for i, row in zip(indices, made, strict=True):
                yield str(i), Read(i, None, row)
        case _:
            for read in _file_reads(source, span, whole):
                yield f"{span.number}:{read.number}", read


def _file_reads(source: FileSource | HubSource, span: Span, whole: bool) -> Iterator[Read]:
    kind = source.read_as or readers.kind_of(span.file)
    if source.blobs is not None:
        columns = [source.blobs.id, source.blobs.encoding]
        return with_texts(readers.rows(span, columns, kind), source.blobs)
    if source.format == "text" and not whole:
        return readers.rows(span, Text(source.text).columns, kind)
    wanted = None if whole else [*formats.COLUMNS, *source.columns.values()]
    reads = readers.rows(span, wanted, kind)
    if kind != "parquet":
        return reads
    return (read._replace(row=without_nulls(read.row)) for read in reads)


# Rows to documents


def _of_row(identity: str, place: str, row: Any, source: Source) -> Iterator[Document]:
    if not isinstance(row, dict):
        raise Damaged("not an object")
    if source.format == "text":
        yield Document(identity, text=_text(row, source), place=place)
        return
    talks = formats.talks(formats.named(row, _columns(source)))
    for number, talk in enumerate(talks):
        if (source.format == "preference") != bool(talk.chosen):
            what = "pair" if source.format == "preference" else "conversation"
            raise Damaged(f"not a {what}: {talk.spelling}")
        options, guessed = _thinking(talk, source)
        yield Document(
            f"{identity}.{number}" if number else identity,
            messages=talk.messages,
            chosen=talk.chosen,
            rejected=talk.rejected,
            options=options,
            guessed=guessed,
            place=place,
        )


def _text(row: Row, source: Source) -> str:
    spec = getattr(source, "text", "text")
    text = Text(spec).of(row)
    if text is None:
        raise Damaged(f"without the field {spec!r}")
    if not text.strip():
        raise Damaged("empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Damaged("a lone surrogate, which is no character") from None
    return text


def _thinking(talk: formats.Talk, source: Source) -> tuple[dict[str, Any], bool]:
    """The renderer's options with a mode, and whether that was guessed."""
    said = [m["content"] for m in talk.messages[:1] if m["role"] in ("system", "developer")]
    if "enable_thinking" in talk.options or any("/think" in t or "/no_think" in t for t in said):
        return talk.options, False
    thinks = any(m.get("reasoning_content") for m in (*talk.messages, *talk.chosen))
    thinks |= any(m["content"].lstrip().startswith(THINK) for m in (*talk.messages, *talk.chosen))
    mode = thinks if source.thinking is None else source.thinking == "think"
    return {**talk.options, "enable_thinking": mode}, source.thinking is None
