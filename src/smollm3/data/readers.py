"""Rows out of files: texts, JSON lines and arrays, CSV, Parquet and web archives, plain or
compressed, on this machine or behind a URL that fsspec knows (s3://, gs://, hf://, https://).

A source is read in spans: some files, or some row groups of one Parquet file. A row, a block or a
file that cannot be read is a `Read` with the fault, and the rest goes on.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
import string
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader, RawIOBase, TextIOWrapper
from itertools import chain, count
from typing import Any, NamedTuple

from smollm3.data.places import BUFFER, Kind, Span, named_kind, open_file, row_counts, unreadable
from smollm3.errors import UserError, first_line

Row = dict[str, Any]
MAX_ROW = 1 << 26  # bytes of a line or a value; what is longer is no row of a data set
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
_BLANK, _BETWEEN = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Read(NamedTuple):
    """A row, or why there is none.

    number: in its file, from 0. line: where it begins, from 1; None where a file has no lines.
    """

    number: int
    line: int | None
    row: Any = None
    fault: str | None = None


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


# Bytes


def open_text(file: str) -> BufferedReader:
    """The text of a file in UTF-8, uncompressed and without a byte order mark; what it is is seen
    in its first bytes."""
    from pyarrow.lib import CompressedInputStream, PythonFile

    stream = _peekable(open_file(file))
    compression = next((c for m, c in _MAGIC.items() if stream.peek(4).startswith(m)), None)
    if compression is not None:
        stream = _peekable(CompressedInputStream(PythonFile(stream, "r"), compression))
    head = stream.peek(3)[:3]
    if head.startswith(_UTF16):
        return _peekable(_Recoded(stream))
    if head == codecs.BOM_UTF8:
        stream.read(3)
    return stream


def _peekable(stream: Any) -> BufferedReader:
    return stream if isinstance(stream, BufferedReader) else BufferedReader(stream, BUFFER)


class _Recoded(RawIOBase):
    """A UTF-16 stream as UTF-8."""

    def __init__(self, stream: BufferedReader) -> None:
        self._stream, self._left = stream, b""
        self._decode = codecs.getincrementaldecoder("utf-16")()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            data = self._stream.read(len(buffer))
            try:
                self._left = self._decode.decode(data, not data).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as e:
                raise OSError(f"not UTF-16: {e.reason}") from None
            if not data:
                break
        n = min(len(buffer), len(self._left))
        buffer[:n], self._left = self._left[:n], self._left[n:]
        return n

    def close(self) -> None:
        self._stream.close()
        super().close()


def kind_of(file: str) -> Kind:
    """What a file holds, by its name; where that says nothing, by its first bytes."""
    if kind := named_kind(file):
        return kind
    try:
        with open_file(file) as f:
            if f.read(4) == b"PAR1":
                return "parquet"
        with open_text(file) as text:
            return "jsonl" if text.peek(64).lstrip()[:1] in (b"{", b"[") else "text"
    except unreadable():
        return "jsonl"  # named where it is read


# Rows


def rows(
    span: Span, columns: Collection[str] | None = None, kind: Kind | None = None
) -> Iterator[Read]:
    """The rows of a span. columns: of a Parquet file that are read if they are there, in whatever
    letters; None for all. kind: of the file, where its name is not to be asked."""
    kind = kind or kind_of(span.file)
    if kind == "parquet":
        return _parquet_rows(span, columns)
    if kind == "warc":
        from smollm3.data.warc import warc_rows  # which reads with what is here

        return warc_rows(span.file)
    return {"text": _text_row, "csv": _csv_rows, "jsonl": _json_rows}[kind](span.file)


def count_rows(span: Span, kind: Kind | None = None) -> int:
    """How many rows and faults `rows` gives; 0 where a file cannot be read."""
    kind = kind or kind_of(span.file)
    try:
        if kind == "parquet":
            return sum(row_counts(span.file)[span.first : span.last])
        if kind == "text":
            return 1
    except unreadable():
        return 0
    return sum(1 for _ in rows(span, (), kind))


def _text_row(file: str) -> Iterator[Read]:
    try:
        with open_text(file) as f:
            data = f.read(MAX_ROW + 1)
        if len(data) > MAX_ROW:  # perhaps a kilobyte that unpacks to gigabytes
            yield Read(0, 1, fault=f"a text above {MAX_ROW >> 20} MiB")
            return
        yield Read(0, 1, {"text": data.decode("utf-8").replace("\r\n", "\n")})
    except UnicodeDecodeError:
        yield Read(0, None, fault="not UTF-8")
    except unreadable() as e:
        yield Read(0, None, fault=f"{file}: cannot be read ({reason(e)})")


def _csv_rows(file: str) -> Iterator[Read]:
    csv.field_size_limit(MAX_ROW)
    number = line = 0
    try:
        with TextIOWrapper(open_text(file), "utf-8", errors="surrogateescape", newline="") as text:
            first = text.readline(MAX_ROW)
            separator = max("\t;,", key=first.count)
            table = csv.reader(chain([first], text), delimiter=separator)
            names = [name.strip() for name in next(table, [])]
            if len(set(names)) < len(names):
                yield Read(0, 1, fault=f"{file}: two columns of one name")
                return
            line = table.line_num
            for number, cells in enumerate(cells for cells in table if cells):
                at, line = line + 1, table.line_num
                if len(cells) > len(names):
                    yield Read(number, at, fault="more cells than the table has columns")
                else:
                    yield Read(number, at, dict(zip(names, cells, strict=False)))
    except csv.Error as e:
        yield Read(number + 1, line + 1, fault=f"damaged CSV, and what follows it ({e})")
    except unreadable() as e:
        yield Read(number + 1, None, fault=f"{file}: cannot be read to its end ({reason(e)})")


# JSON


def _json_rows(file: str) -> Iterator[Read]:
    number = -1
    try:
        with open_text(file) as stream:
            head = stream.peek(BUFFER).lstrip()
            if head.startswith(b"["):
                made = _first_array(stream, head)
            elif head.split(b"\n", 1)[0].strip() == b"{":  # spread over lines
                made = _spread(stream.read(MAX_ROW + 1))
            else:
                made = _json_lines(stream)
            for read in made:
                number = read.number
                yield read
    except unreadable() as e:
        fault = f"{file}: cannot be read to its end ({reason(e)})"
        yield Read(number + 1, None, fault=fault)


def _lines(stream: Any) -> Iterator[bytes]:
    """The lines of a stream; of one that is too long, MAX_ROW + 1 bytes."""
    while line := stream.readline(MAX_ROW + 1):
        yield line
        rest = line if len(line) > MAX_ROW else b"\n"
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW)


def _json_lines(stream: Any) -> Iterator[Read]:
    for number, line in enumerate(_lines(stream)):
        if line.isspace():
            continue
        if len(line) > MAX_ROW:
            yield Read(number, number + 1, fault=f"a line above {MAX_ROW >> 20} MiB")
            continue
        try:
            yield Read(number, number + 1, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            yield Read(number, number + 1, fault="not UTF-8")
        except (ValueError, RecursionError):
            yield Read(number, number + 1, fault="damaged JSON")


def _first_array(stream: BufferedReader, head: bytes) -> Iterator[Read]:
    """An array of rows; or lines, if the first line is a whole value and there are more."""
    first, more, rest = head.partition(b"\n")
    if more and rest.strip():
        try:
            json.loads(first)
        except ValueError:
            pass
        else:
            return _json_lines(stream)
    return _array(stream)


class _Window:
    """A stretch of a stream's text; what lies before `at` is forgotten when more is read.

    line: the one that `at` lies in.
    """

    def __init__(self, stream: BufferedReader) -> None:
        self._stream, self._text = stream, codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.line = "", 0, 1

    def more(self) -> bool:
        """Read on; False at the end."""
        kept = self.text[self.at :]
        data = self._stream.read(max(BUFFER, len(kept)))
        self.text, self.at = kept + self._text.decode(data, not data), 0
        return bool(data)

    def go(self, at: int) -> None:
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def sign(self, between: re.Pattern[str] = _BLANK) -> str:
        """The next sign behind what stands between values; "" at the end."""
        while True:
            found = between.match(self.text, self.at)
            self.go(found.end() if found else self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""


def _array(stream: BufferedReader) -> Iterator[Read]:
    """The values of an array, read a piece at a time. After a damaged one, goes on where a line
    begins as the first value's does."""
    window, decode = _Window(stream), json.JSONDecoder().raw_decode
    window.sign()
    window.go(window.at + 1)  # the bracket
    before = window.at
    window.sign()
    indent = window.text[before : window.at] if window.at >= before else ""
    resume = f"\n{indent.rpartition(chr(10))[2]}{{" if "\n" in indent else None
    for number in count():
        if (sign := window.sign(_BETWEEN)) in ("]", ""):
            if not sign:
                yield Read(number, window.line, fault="an array that is cut off")
            return
        line = window.line
        while True:
            try:
                value, end = decode(window.text, window.at)
            except (ValueError, RecursionError):
                if len(window.text) - window.at <= MAX_ROW and window.more():
                    continue
                end = window.text.find(resume, window.at + 1) if resume else -1
                what = "damaged JSON" if end > 0 else "damaged JSON, and what follows it"
                yield Read(number, line, fault=what)
                if end < 0:
                    return
            else:
                yield Read(number, line, value)
            window.go(end)
            break


def _spread(data: bytes) -> Iterator[Read]:
    """One object over many lines: a row, or what holds the only list of rows."""
    if len(data) > MAX_ROW:
        yield Read(0, 1, fault=f"a value above {MAX_ROW >> 20} MiB")
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        yield from _json_lines(_Lines(data))
        return
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) == 1 and not {"messages", "conversations"} & value.keys():
        yield from (Read(number, None, row) for number, row in enumerate(lists[0]))
    else:
        yield Read(0, 1, value)


class _Lines:
    def __init__(self, data: bytes) -> None:
        self._lines = iter(data.splitlines(keepends=True))

    def readline(self, size: int) -> bytes:
        return next(self._lines, b"")


# Parquet


def _parquet_rows(span: Span, columns: Collection[str] | None) -> Iterator[Read]:
    from pyarrow.parquet import ParquetFile

    number = span.row
    try:
        with open_file(span.file) as f, ParquetFile(f) as plain:  # type: ignore[no-untyped-call]
            here = plain.schema_arrow.names
            # As they are stored: a text of which every row is a copy is not copied.
            texts = [c.name for c in plain.schema_arrow if str(c.type).endswith("string")]
            stored: Any = {"metadata": plain.metadata, "read_dictionary": texts}
            parquet = ParquetFile(f, **stored)  # type: ignore[no-untyped-call]
            wanted = None if columns is None else [c for c in here if c in columns]
            if columns and not wanted:
                wanted = [c for c in here if c.lower() in columns]
            groups = range(span.first, span.last or parquet.metadata.num_row_groups)
            for group in groups:
                yield from _group_rows(parquet, group, number, wanted, span.file)
                number += parquet.metadata.row_group(group).num_rows
    except unreadable() as e:
        yield Read(number, None, fault=f"{span.file}: not a whole Parquet file ({reason(e)})")


def _group_rows(
    parquet: Any, group: int, number: int, columns: list[str] | None, file: str
) -> Iterator[Read]:
    try:
        for batch in parquet.iter_batches(256, row_groups=[group], columns=columns):
            yield from _batch_rows(batch, number)
            number += len(batch)
    except unreadable() as e:
        fault = f"{file}: row group {group} cannot be read ({reason(e)})"
        yield Read(number, None, fault=fault)


def _batch_rows(batch: Any, number: int) -> Iterator[Read]:
    """Row by row where a value is none of Python's: a time to the nanosecond, say; and where rows
    that repeat what is stored once would be too long together."""
    longest = sum(map(_longest, batch.columns))
    if len(batch) > 1 and longest * len(batch) > MAX_ROW:
        half = len(batch) // 2
        yield from _batch_rows(batch.slice(0, half), number)
        yield from _batch_rows(batch.slice(half), number + half)
        return
    try:
        for row in batch.to_pylist(maps_as_pydicts="strict"):
            yield Read(number, None, row)
            number += 1
    except (ValueError, KeyError, OverflowError, TypeError) as e:
        if len(batch) == 1:
            yield Read(number, None, fault=f"a value that cannot be read ({reason(e)})")
            return
        for i in range(len(batch)):
            yield from _batch_rows(batch.slice(i, 1), number + i)


def _longest(column: Any) -> int:
    """Bytes of the longest text of a column whose texts are stored once."""
    from pyarrow import compute

    words, of = getattr(column, "dictionary", None), vars(compute)
    return (of["max"](of["binary_length"](words)).as_py() or 0) if words is not None else 0


def reason(error: Exception) -> str:
    """The beginning of what an error says."""
    return first_line(error)[:200]
