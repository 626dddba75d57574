"""Rows out of files: text, JSON lines and Parquet, plain or compressed, on this machine or behind a
URL that fsspec knows (s3://, gs://, hf://, https://).

A source is read in spans: some files, or some row groups of one Parquet file. A row, a block or a
file that cannot be read is counted by reason and left out; the rest goes on.
"""

from __future__ import annotations

import glob
import json
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from smollm3.errors import UserError

Row = dict[str, Any]
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
_BUFFER = 1 << 20


@dataclass(frozen=True)
class Span:
    """A stretch of a source: a file, or the row groups first..last-1 of a Parquet file.

    file: path or URL. number: of the file in its source. row: number in the file of the span's
    first row. offset: number in the source of that row, where a source keeps a share of its rows.
    A source that is made up has no files: there, first..last-1 are documents.
    """

    file: str
    number: int
    first: int = 0
    last: int | None = None
    row: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Text:
    """What a text is made of: a column, or a template such as "{problem}\\n\\n{answers.0.text}"
    whose names are columns and, after points, what lies in them."""

    spec: str

    @cached_property
    def _fields(self) -> list[tuple[str, str | None]]:
        if "{" not in self.spec:
            return [("", self.spec)]
        try:
            return [(before, name) for before, name, _, _ in string.Formatter().parse(self.spec)]
        except ValueError as e:
            raise UserError(f"text: {self.spec!r} is no template ({e})") from None

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys(name.split(".")[0] for _, name in self._fields if name))

    def of(self, row: Row) -> str | None:
        """The text of a row; None where a column is missing or holds no text."""
        pieces: list[str] = []
        for before, name in self._fields:
            pieces.append(before)
            if name is None:
                continue
            value: Any = row
            for step in name.split("."):
                if isinstance(value, dict):
                    value = value.get(step)
                elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
                    value = value[int(step)]
                else:
                    return None
            if not isinstance(value, str):
                return None
            pieces.append(value)
        return pieces[1] if len(pieces) == 2 and not pieces[0] else "".join(pieces)


# Files


def find(patterns: Sequence[str]) -> list[tuple[str, int]]:
    """(file, bytes) of what the patterns match, in order, each once."""
    found: dict[str, int] = {}
    for pattern in patterns:
        matches = _find_url(pattern) if "://" in pattern else _find_here(pattern)
        if not matches:
            raise UserError(f"{pattern}: no such file; check the path (or pattern) in the recipe")
        found |= matches
    return list(found.items())


def _find_here(pattern: str) -> dict[str, int]:
    paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
    return {path: Path(path).stat().st_size for path in paths if Path(path).is_file()}


def _find_url(pattern: str) -> dict[str, int]:
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(pattern)
        names = sorted(system.glob(path))
        sizes = [system.info(name) for name in names]
    except (OSError, ImportError, ValueError) as e:
        raise UserError(f"{pattern}: cannot be listed ({e})") from None
    return {
        system.unstrip_protocol(info["name"]): int(info.get("size") or 0)
        for info in sizes
        if info["type"] == "file"
    }


def open_file(file: str) -> BinaryIO:
    """The bytes of a file or URL as they are stored."""
    if "://" not in file:
        return open(file, "rb", _BUFFER)
    import fsspec

    opened: BinaryIO = fsspec.open(file, "rb").open()
    return opened


def _open_text(file: str) -> Any:
    """The bytes of a file, uncompressed as its name says."""
    from pyarrow.lib import CompressedInputStream, PythonFile

    compression = COMPRESSED.get(Path(file).suffix)
    if compression is None:
        return open_file(file)
    stream = CompressedInputStream(PythonFile(open_file(file), "r"), compression)
    return BufferedReader(stream, _BUFFER)


def is_parquet(file: str) -> bool:
    return file.endswith(".parquet")


def split(files: Sequence[tuple[str, int]], part_bytes: int) -> list[list[Span]]:
    """The spans of each part: about `part_bytes` of input, the same whoever asks.

    Small files go together; a Parquet file above that is cut between row groups. A compressed or
    plain text file is never cut.
    """
    parts: list[list[Span]] = []
    room = 0
    for number, (file, size) in enumerate(files):
        if is_parquet(file) and size > part_bytes:
            parts += [[span] for span in _row_groups(file, number, size, part_bytes)]
            room = 0
        elif parts and size <= room:
            parts[-1].append(Span(file, number))
            room -= size
        else:
            parts.append([Span(file, number)])
            room = part_bytes - size
    return parts


def _row_groups(file: str, number: int, size: int, part_bytes: int) -> Iterator[Span]:
    try:
        rows = _row_counts(file)
    except _unreadable():
        yield Span(file, number)  # named where it is read
        return
    each = max(1, len(rows) * part_bytes // size)
    for first in range(0, len(rows), each):
        yield Span(file, number, first, min(first + each, len(rows)), sum(rows[:first]))


def _row_counts(file: str) -> list[int]:
    """Rows of each row group, from the footer alone."""
    from pyarrow.parquet import ParquetFile

    with open_file(file) as f, ParquetFile(f) as parquet:  # type: ignore[no-untyped-call]
        footer = parquet.metadata
        return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def count_rows(span: Span) -> int:
    """Rows of a span; 0 where it cannot be read."""
    try:
        if is_parquet(span.file):
            return sum(_row_counts(span.file)[span.first : span.last])
        if not _is_json(span.file):
            return 1
        with _open_text(span.file) as lines:
            return sum(1 for line in lines if line.strip())
    except _unreadable():
        return 0


def _is_json(file: str) -> bool:
    name = Path(file)
    stem = name.stem if name.suffix in COMPRESSED else name.name
    return Path(stem).suffix != ".txt"


# Rows


def rows(
    span: Span, columns: list[str] | None, skipped: Counter[str], *, text: bool = False
) -> Iterator[tuple[int, Any]]:
    """(number in the file, row) of a span. columns: of a Parquet file that are read, None for all.
    text: the file is one document."""
    if text:
        return _text_row(span, skipped)
    if is_parquet(span.file):
        return _parquet_rows(span, columns, skipped)
    return _json_rows(span, skipped)


def _text_row(span: Span, skipped: Counter[str]) -> Iterator[tuple[int, Row]]:
    try:
        with _open_text(span.file) as f:
            yield 0, {"text": f.read().decode("utf-8").replace("\r\n", "\n")}
    except UnicodeDecodeError:
        skipped["not UTF-8"] += 1
    except _unreadable() as e:
        skipped[f"{span.file}: cannot be read ({_reason(e)})"] += 1


def _json_rows(span: Span, skipped: Counter[str]) -> Iterator[tuple[int, Any]]:
    try:
        with _open_text(span.file) as lines:
            for number, line in enumerate(lines):
                if line.isspace():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError:
                    skipped["not UTF-8"] += 1
                except (ValueError, RecursionError):
                    skipped["damaged JSON"] += 1
    except _unreadable() as e:
        skipped[f"{span.file}: cannot be read to its end ({_reason(e)})"] += 1


def _parquet_rows(
    span: Span, columns: list[str] | None, skipped: Counter[str]
) -> Iterator[tuple[int, Any]]:
    from pyarrow.parquet import ParquetFile

    number = span.row
    try:
        with open_file(span.file) as f, ParquetFile(f) as parquet:  # type: ignore[no-untyped-call]
            here = set(parquet.schema_arrow.names)
            wanted = None if columns is None else [c for c in columns if c in here]
            groups = range(span.first, span.last or parquet.metadata.num_row_groups)
            for group in groups:
                n = parquet.metadata.row_group(group).num_rows
                yield from _group_rows(parquet, group, number, wanted, skipped, span.file)
                number += n
    except _unreadable() as e:
        skipped[f"{span.file}: not a whole Parquet file ({_reason(e)})"] += 1


def _group_rows(
    parquet: Any, group: int, number: int, columns: list[str] | None, skipped: Counter[str],
    file: str,
) -> Iterator[tuple[int, Row]]:  # fmt: skip
    try:
        for batch in parquet.iter_batches(256, row_groups=[group], columns=columns):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except _unreadable() as e:
        skipped[f"{file}: row group {group} cannot be read ({_reason(e)})"] += 1


def _unreadable() -> tuple[type[Exception], ...]:
    from pyarrow.lib import ArrowException

    return (ArrowException, OSError, EOFError, ImportError)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
