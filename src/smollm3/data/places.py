"""Where a source's files lie: paths, folders, patterns, URLs; and the spans they are read in."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal

from smollm3.data.remote import RemoteFile, again, in_one_line
from smollm3.errors import UserError

Kind = Literal["text", "jsonl", "csv", "parquet", "warc"]
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
_KINDS: dict[str, Kind] = {
    **dict.fromkeys((".jsonl", ".json", ".ndjson", ".jsonlines"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "text"),
}
BUFFER = 1 << 20


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


def named_kind(file: str) -> Kind | None:
    """What a file's name says it is, in whatever letters; None where it says nothing."""
    path = Path(file.lower())
    stem = path.stem if path.suffix in COMPRESSED else path.name
    return _KINDS.get(Path(stem).suffix)


def find(patterns: Sequence[str], *, every: bool = False) -> list[tuple[str, int]]:
    """(file, bytes) of what the patterns match, in order, each once.

    A path that is there is meant itself, whatever signs it holds. Of a folder, all files whose
    names say that they are data; `every`: all files.
    """
    found: dict[str, int] = {}
    for pattern in patterns:
        matches = _find_url(pattern) if "://" in pattern else _find_here(pattern, every)
        if not matches:
            raise UserError(f"{pattern}: no such file; check the path (or pattern) in the recipe")
        found |= matches
    return list(found.items())


def _find_here(pattern: str, every: bool) -> dict[str, int]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        names = (p for p in sorted(path.rglob("*")) if not _is_hidden(p.relative_to(path)))
        paths = [str(p) for p in names if every or named_kind(p.name)]
        if not any(Path(p).is_file() for p in paths):
            raise UserError(f"{pattern}: a folder without data files ({', '.join(_KINDS)})")
    elif path.exists():
        paths = [str(path)]
    else:
        paths = sorted(glob.glob(str(path), recursive=True))
    return {path: Path(path).stat().st_size for path in paths if Path(path).is_file()}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def left_out(folder: Path) -> list[str]:
    """The files of a folder that `find` passes over, as their names say nothing of data."""
    paths = (p for p in sorted(folder.rglob("*")) if p.is_file() and not named_kind(p.name))
    return [str(p) for p in paths]


def _find_url(pattern: str) -> dict[str, int]:
    with in_one_line(f"{pattern}: cannot be listed"):
        from fsspec.core import url_to_fs

        system, path = url_to_fs(pattern)
        names = sorted(again(lambda: system.glob(path)))
        sizes = [again(partial(system.info, name)) for name in names]
    return {
        system.unstrip_protocol(info["name"]): int(info.get("size") or 0)
        for info in sizes
        if info["type"] == "file"
    }


def open_file(file: str) -> BinaryIO:
    """The bytes of a file or URL as they are stored."""
    return BufferedReader(RemoteFile(file), BUFFER) if "://" in file else open(file, "rb", BUFFER)


def split(files: Sequence[tuple[str, int]], part_bytes: int) -> list[list[Span]]:
    """The spans of each part: about `part_bytes` of input, the same whoever asks.

    Small files go together; a Parquet file above that is cut between row groups. A compressed or
    plain text file is never cut.
    """
    parts: list[list[Span]] = []
    room = 0
    for number, (file, size) in enumerate(files):
        if named_kind(file) == "parquet" and size > part_bytes:
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
        rows = row_counts(file)
    except unreadable():
        yield Span(file, number)  # named where it is read
        return
    each = max(1, len(rows) * part_bytes // size)
    for first in range(0, len(rows), each):
        yield Span(file, number, first, min(first + each, len(rows)), sum(rows[:first]))


def row_counts(file: str) -> list[int]:
    """Rows of each row group, from the footer alone."""
    from pyarrow.parquet import ParquetFile

    with open_file(file) as f, ParquetFile(f) as parquet:  # type: ignore[no-untyped-call]
        footer = parquet.metadata
        return [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def unreadable() -> tuple[type[Exception], ...]:
    """What reading a damaged file raises."""
    from pyarrow.lib import ArrowException

    return (ArrowException, OSError, EOFError, ImportError)
