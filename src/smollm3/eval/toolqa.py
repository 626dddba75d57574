"""ToolQA: questions that only data outside of the model can answer, which it asks by SQL.

Data: the authors' questions, and the files that they are about; each of these becomes a table.
Which tools a model gets is left to who evaluates: here one, a query that only reads. Answers are
compared by SQuAD's rules.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.bfcl import tool_messages
from smollm3.eval.local import rows_of_file
from smollm3.eval.questions import exact, f1
from smollm3.eval.target import Answered, Prompt, Settings, ask_by

LEVELS = ("easy", "hard")
NAMES = ("toolqa", *(f"toolqa_{level}" for level in LEVELS))
METRICS = ("exact_match", "f1")
SOURCE = "https://github.com/night-chen/ToolQA"
STEPS = 10  # queries of a question
ANSWER_TOKENS = 4096  # of each step
ROWS, CHARACTERS = 20, 4000  # of a result that the model is shown
# Of a query: bytes of a text, columns, and instructions of SQLite's (some 10^7 are a second).
LONGEST, COLUMNS, INSTRUCTIONS = 1 << 18, 200, 100_000_000
_BETWEEN = 100_000  # instructions between two looks
_READING = frozenset(
    (
        sqlite3.SQLITE_SELECT,
        sqlite3.SQLITE_READ,
        sqlite3.SQLITE_FUNCTION,
        sqlite3.SQLITE_RECURSIVE,
    )
)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_END = "Give the answer alone, in as few words as can be, within \\boxed{}."


@dataclass(frozen=True)
class Question:
    id: str
    question: str
    answer: str


def read(data: Path | None, level: str) -> list[Question]:
    """UserError for a file that is not there or not ToolQA's."""
    if data is None:
        raise UserError(f"toolqa: add --data FOLDER with toolqa/{level}.jsonl, from {SOURCE}")
    named = [data / "toolqa" / f"{level}.jsonl{end}" for end in ("", ".gz")]
    file = next((file for file in named if file.is_file()), None)
    if file is None:
        raise UserError(f"{named[0]}: no such file; its questions are in {SOURCE}")
    try:
        return [
            Question(str(row["qid"]), str(row["question"]), str(row["answer"]))
            for row in rows_of_file(file)
        ]
    except KeyError as e:
        raise UserError(f"{file}: not the questions of {SOURCE}: {e} is missing") from None


def tables(data: Path) -> list[Path]:
    """The files that the questions are about. UserError where there is none."""
    folder = data / "toolqa" / "corpora"
    found = sorted(f for f in folder.glob("*") if f.suffix in (".csv", ".jsonl"))
    if not found:
        raise UserError(
            f"{folder}: holds no .csv or .jsonl file that the questions could be about; {SOURCE} "
            "names them"
        )
    return found


class Database:
    """Tables of a folder's files in a file of SQLite's, for queries that only read."""

    def __init__(self, files: Sequence[Path], place: Path) -> None:
        with closing(sqlite3.connect(place)) as writing, writing:
            for file in files:
                _fill(writing, file)
        self._reading = sqlite3.connect(f"{place.as_uri()}?mode=ro", uri=True)
        self._reading.execute("PRAGMA temp_store = FILE")
        self.schema = "\n".join(_described(self._reading))
        self._reading.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
        self._reading.setlimit(sqlite3.SQLITE_LIMIT_COLUMN, COLUMNS)
        self._reading.set_authorizer(_only_reading)

    def close(self) -> None:
        self._reading.close()

    def ask(self, query: str) -> str:
        """What the model is told: rows as JSON lines, or why there are none. As much work for a
        query is done on every computer, so that it is told the same."""
        left = INSTRUCTIONS // _BETWEEN

        def look() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        self._reading.set_progress_handler(look, _BETWEEN)
        try:
            rows = self._reading.execute(query)  # one at a time is in memory
            lines = [_shown(row) for row in islice(rows, ROWS + 1)]
        except (sqlite3.Error, sqlite3.Warning, ValueError) as e:
            return f"Error: {e}"
        if not lines:
            return "No rows."
        text = "\n".join(lines[:ROWS])[:CHARACTERS]
        return f"{text}\n..." if len(lines) > ROWS else text


def _shown(row: Sequence[Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=repr)[:CHARACTERS]


def _only_reading(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY


def _fill(database: sqlite3.Connection, file: Path) -> None:
    table = _quoted(re.sub(r"\W", "_", file.stem))
    try:
        columns, rows = _table(file)
        names = ", ".join(f"{_quoted(column)} NUMERIC" for column in columns)
        database.execute(f"CREATE TABLE {table} ({names})")
        places = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO {table} VALUES ({places})", rows)
    except (sqlite3.Error, csv.Error, UnicodeDecodeError) as e:
        raise UserError(f"{file}: cannot be a table ({e})") from None


def _table(file: Path) -> tuple[list[str], Iterator[Sequence[Any]]]:
    """Columns and rows, all of the same length."""
    if file.suffix == ".jsonl":
        found = list(rows_of_file(file))
        columns = list(dict.fromkeys(key for row in found for key in row))
        return columns, ([_cell(row.get(column)) for column in columns] for row in found)
    rows = _csv(file)
    columns = next(rows, [])
    if not columns:
        raise UserError(f"{file}: has no line of columns")
    width = len(columns)
    return columns, (([*row, *[None] * width])[:width] for row in rows)


def _csv(file: Path) -> Iterator[list[Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.reader(lines)


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, str | int | float)
    return value if plain else json.dumps(value, ensure_ascii=False)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _described(database: sqlite3.Connection) -> Iterator[str]:
    """Each table with its columns and its first row."""
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
        cursor = database.execute(f"SELECT * FROM {_quoted(name)} LIMIT 1")
        first = cursor.fetchone()
        columns = ", ".join(_quoted(column[0]) for column in cursor.description)
        shown = json.dumps(first, ensure_ascii=False)[:300]
        yield f"{_quoted(name)} ({columns}), first row: {shown}"


def tool(schema: str) -> dict[str, Any]:
    """As it is shown to the model."""
    query = {"type": "string", "description": "One SELECT of SQLite's SQL."}
    return {
        "type": "function",
        "function": {
            "name": "sql",
            "description": f"Rows of these tables, at most {ROWS}:\n{schema}",
            "parameters": {
                "type": "object",
                "properties": {"query": query},
                "required": ["query"],
            },
        },
    }


@dataclass
class _Dialogue:
    question: Question
    messages: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    answer: str | None = None

    def take(self, written: Mapping[str, Any], database: Database) -> None:
        calls = [(c["name"], c["arguments"]) for c in written["calls"]]
        if not calls or self.steps == STEPS:
            self.answer = written["text"]
            return
        self.steps += 1
        results = [_result(name, arguments, database) for name, arguments in calls]
        self.messages += tool_messages(written["text"], calls, results, self.steps)


def _result(name: str, arguments: Any, database: Database) -> str:
    if name != "sql":
        return f"Error: there is no tool {name}"
    query = arguments.get("query") if isinstance(arguments, dict) else None
    return database.ask(query) if isinstance(query, str) else "Error: query must be a text"


def samples(
    asked: Sequence[Question],
    files: Sequence[Path],
    settings: Settings,
    max_tokens: int,
    answer: Answered,
) -> list[dict[str, Any]]:
    """Ask, a step of each question at a time, and compare: samples in the harness's form."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(files, Path(folder).resolve() / "tables.sqlite")
        with closing(database):
            return list(_samples(asked, database, settings, max_tokens, answer))


def _samples(
    asked: Iterable[Question],
    database: Database,
    settings: Settings,
    max_tokens: int,
    answer: Answered,
) -> Iterator[dict[str, Any]]:
    tools = (tool(database.schema),)
    dialogues = [
        _Dialogue(q, [{"role": "user", "content": f"{q.question}\n\n{_END}"}]) for q in asked
    ]
    while running := [each for each in dialogues if each.answer is None]:
        asks = [
            ask_by(settings, Prompt(messages=tuple(each.messages), tools=tools), max_tokens)
            for each in running
        ]
        for each, written in zip(running, answer(asks), strict=True):
            each.take(written, database)
    for each in dialogues:
        text = each.answer or ""
        given = (_BOXED.findall(text) or [text])[-1]
        yield {
            "doc_id": each.question.id,
            "doc": {"question": each.question.question},
            "target": each.question.answer,
            "resps": [[each.messages]],
            "filtered_resps": [given],
            "filter": "none",
            "exact_match": exact(given, each.question.answer),
            "f1": f1(given, each.question.answer),
        }
