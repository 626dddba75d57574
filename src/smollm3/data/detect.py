"""What a file, a folder or a data set on the Hub holds, found by looking at its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from smollm3.data import formats, places, readers
from smollm3.data.formats import Format
from smollm3.data.hub import hub_files
from smollm3.data.messages import KEYS
from smollm3.data.places import Span
from smollm3.data.readers import Text
from smollm3.data.spec import FileSource, HubSource
from smollm3.errors import UserError

ROWS = 200  # that are looked at, of each of FILES files
FILES = 20


@dataclass(frozen=True)
class Detected:
    """What a path holds.

    source: how a recipe says it. rows: looked at. fits: of them, those in this format. spellings:
    how many say it how. faults: why others could not be read. columns: that rows have; read: of
    those, the ones that are used.
    """

    source: FileSource | HubSource
    rows: int
    fits: int
    spellings: dict[str, int]
    faults: dict[str, int] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)

    @property
    def read(self) -> list[str]:
        if self.format == "text":
            return Text(self.source.text).columns
        theirs = self.source.columns.values()
        return [c for c in self.columns if c.lower() in formats.COLUMNS or c in theirs]

    @property
    def format(self) -> Format:
        return self.source.format

    @property
    def spec(self) -> dict[str, Any]:
        """The source as a recipe writes it."""
        return {**self.source.model_dump(mode="json", exclude_defaults=True), "format": self.format}

    def __str__(self) -> str:
        words = {"text": "texts", "chat": "conversations", "preference": "preference pairs"}
        how = ", ".join(self.spellings)
        return f"{words[self.format]} ({how}) in {self.fits} of the first {self.rows} rows"


def detect(path: str | Path, **settings: Any) -> Detected:
    """Look at the first rows of a file, folder, pattern, URL or id on the Hub.

    settings: of the source (`format`, `text`, `columns`, `files`, ...); they overrule what is
    found. A path that is not there, and one in which no row is a text, a conversation or a pair,
    is a UserError that names it.
    """
    source = source_of(path, **({"format": "chat"} if "thinking" in settings else {}) | settings)
    files = hub_files(source)[1] if isinstance(source, HubSource) else places.find(source.files)
    spelled: Counter[tuple[Format, str]] = Counter()
    faults: Counter[str] = Counter()
    columns: dict[str, None] = {}
    rows = 0
    for read in _first_reads([file for file, _ in files], source):
        rows += 1
        found = None
        if isinstance(read.row, dict):
            columns |= dict.fromkeys(_names(read.row))
            found = formats.spelling(formats.named(read.row, source.columns))
        if found is None:
            faults[read.fault or "neither a text nor a conversation"] += 1
        else:
            spelled[found] += 1
    by_format: Counter[Format] = Counter()
    for (form, _), n in spelled.items():
        by_format[form] += n
    if not rows:
        raise UserError(f"{path}: it is empty")
    if not by_format and "format" not in settings:
        reasons = ", ".join(f"{n} {reason}" for reason, n in faults.items())
        raise UserError(
            f"{path}: no texts, conversations or pairs in its first {rows} rows ({reasons}); "
            "name the columns, or say the format"
        )
    form = settings.get("format") or by_format.most_common(1)[0][0]
    ways = {how: n for (f, how), n in spelled.most_common() if f == form}
    update: dict[str, Any] = {"format": form}
    if form == "text" and "text" not in settings and ways:
        update["text"] = next(iter(ways))
    source = type(source).model_validate({**source.model_dump(), **update})
    return Detected(source, rows, by_format[form], ways, dict(faults), list(columns))


def _names(row: dict[str, Any]) -> Iterator[str]:
    """The row's columns, and the keys of its messages that nobody reads: "messages.key"."""
    for column, value in row.items():
        yield str(column)
        messages = value if isinstance(value, list) else []
        if str(column).lower() in formats.OF_MESSAGES:
            keys = [key for m in messages if isinstance(m, dict) for key in m if m[key] is not None]
            yield from (f"{column}.{key}" for key in keys if key not in KEYS)


def source_of(path: str | Path, **settings: Any) -> FileSource | HubSource:
    """The source of a path; what is not there and looks like OWNER/NAME is an id on the Hub."""
    name = str(path)
    owner, slash, rest = name.removeprefix("hub:").partition("/")
    is_id = bool(slash and owner and rest) and not set(name) & set("*?[]\\~") and "/" not in rest
    is_id = is_id and owner not in (".", "..") and not places.named_kind(rest)
    if name.startswith("hub:") or (is_id and not Path(name).exists()):
        repo, at, revision = name.removeprefix("hub:").partition("@")
        more = {"revision": revision} if at else {}
        return HubSource(kind="hub", repo=repo, **more, **settings)
    return FileSource(**{"kind": "files", "files": [name], **settings})


def _first_reads(files: list[str], source: FileSource | HubSource) -> Iterator[readers.Read]:
    for number, file in enumerate(files[:FILES]):
        yield from islice(readers.rows(Span(file, number), None, source.read_as), ROWS)
