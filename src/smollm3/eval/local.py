"""Data sets from a folder instead of the Hub: what the harness loads is looked up in a table."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from smollm3.errors import UserError
from smollm3.files import MAX_JSON_BYTES

Row = dict[str, Any]
_KEYWORDS = ("where", "columns", "reader")


def _lines(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut at U+2028 too
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as e:
                raise UserError(f"{path}:{number}: not valid JSON ({e})") from None
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: must be a JSON object")
            yield row


def _mgsm(text: str, path: Path) -> Iterator[Row]:
    """Question and number; the Hub's copy has them under these names, and no worked answer."""
    for row in csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE):
        if len(row) != 2:
            raise UserError(f"{path}: must have a question and an answer in each line")
        number = int(row[1].replace(",", ""))
        yield {
            "question": row[0],
            "answer": None,
            "answer_number": number,
            "equation_solution": None,
        }


def _squad(text: str, path: Path) -> Iterator[Row]:
    try:
        for article in json.loads(text)["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    answers = asked["answers"]
                    yield {
                        "id": asked["id"],
                        "context": paragraph["context"],
                        "question": asked["question"],
                        "answers": {
                            "text": [a["text"] for a in answers],
                            "answer_start": [a["answer_start"] for a in answers],
                        },
                    }
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a file in SQuAD's form") from None


_READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {
    "jsonl": _lines,
    "mgsm": _mgsm,
    "squad": _squad,
}


@cache
def table() -> dict[str, dict[str, Any]]:
    """Data set (with its configuration) -> where it lies; data/hub.yaml."""
    text = resources.files("smollm3.eval").joinpath("data/hub.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return found


def read_text(path: Path) -> str:
    """A text that may be compressed, at most so large that it is a data set and no bomb."""
    most = 16 * MAX_JSON_BYTES
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, EOFError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None
    if len(data) > most:
        raise UserError(f"{path}: more than {most >> 20} MiB")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 ({e.reason})") from None


def rows_of_file(path: Path) -> Iterator[Row]:
    """Of JSON lines, one that may be compressed."""
    return _lines(read_text(path), path)


@lru_cache(4)  # MMLU's 57 subjects are asked for one by one, of the same files
def _rows(reader: str, file: Path) -> list[Row]:
    return list(_READERS[reader](read_text(file), file))


@dataclass(frozen=True)
class DataFolder:
    """A folder of data-set folders."""

    folder: Path

    def files(self, path: str, name: str | None) -> dict[str, Path] | None:
        """split -> file of a data set of the Hub; None for one that the table does not know."""
        entry = self._entry(path, name)
        if entry is None:
            return None
        return {
            split: self.folder / file.format(name=name)
            for split, file in entry.items()
            if split not in _KEYWORDS
        }

    def load(self, path: str, name: str | None) -> dict[str, list[Row]] | None:
        """split -> rows, with the columns of the Hub. UserError where not one file is there."""
        entry, files = self._entry(path, name), self.files(path, name)
        if entry is None or files is None:
            return None
        there = {split: file for split, file in files.items() if file.is_file()}
        if not there:
            wanted = next(iter(files.values()))
            raise UserError(
                f"{wanted}: no such file; it is {path} {name or ''}".rstrip()
                + f" of the Hub: get it at https://huggingface.co/datasets/{path}, or leave --data "
                "out to have it fetched"
            )
        reader = entry.get("reader", "jsonl")
        return {
            split: [
                _renamed(row, entry.get("columns", {}))
                for row in _rows(reader, file)
                if "where" not in entry or name in (None, "all") or row.get(entry["where"]) == name
            ]
            for split, file in there.items()
        }

    def _entry(self, path: str, name: str | None) -> dict[str, Any] | None:
        return table().get(f"{path}:{name}") or table().get(path)


def is_here(path: str) -> bool:
    """Whether the cache of the library `datasets` has a data set of the Hub."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets")
    return (cache / path.replace("/", "___")).is_dir()


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    return {**row, **{new: row[old] for new, old in columns.items()}}


def _filled(rows: list[Row]) -> list[Row]:
    """With the same columns in all: what a row has not is null, as on the Hub."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [{column: row.get(column) for column in columns} for row in rows]


@contextmanager
def data_sets(folder: Path | None) -> Iterator[Set[tuple[str, str | None, str]]]:
    """Within, the harness finds data sets in the folder; without one, or for those that the table
    does not know, on the Hub or in its cache. Why it cannot have one is a UserError.

    Yields the splits (data set, configuration, split) that were asked for and are not there; they
    are empty, since the harness asks for those with examples also where it wants none.
    """
    import datasets

    original = datasets.load_dataset
    missing: set[tuple[str, str | None, str]] = set()

    class Splits(dict[str, Any]):
        def __init__(self, path: str, name: str | None, rows: dict[str, list[Row]]) -> None:
            super().__init__({s: datasets.Dataset.from_list(_filled(r)) for s, r in rows.items()})
            self.key = path, name

        def __missing__(self, split: str) -> Any:
            missing.add((*self.key, split))
            some = next(iter(self.values()))
            return some.select([])

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        rows = DataFolder(folder).load(path, name) if folder else None
        if rows is not None:
            return Splits(path, name, rows)
        try:
            return original(path=path, name=name, **options)
        except UserError:
            raise
        except Exception as e:
            place = f"https://huggingface.co/datasets/{path}"
            there = f"{folder}: holds no file for" if folder else "cannot be had from the Hub:"
            raise UserError(
                f"{there} {path} {name or ''}".rstrip()
                + f" ({type(e).__name__}); get it at {place}"
            ) from None

    datasets.load_dataset = load
    try:
        yield missing
    finally:
        datasets.load_dataset = original
