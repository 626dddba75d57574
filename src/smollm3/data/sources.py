"""Documents from the places a recipe names: files, the Hub, the standard library, generators."""

from __future__ import annotations

import ast
import fnmatch
import glob
import hashlib
import inspect
import json
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from io import BufferedReader
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from smollm3.data import procedural, synthetic, words
from smollm3.data.order import permutation
from smollm3.data.spec import HubSource, ProceduralSource, Source, StdlibSource, TextSource
from smollm3.errors import UserError

Messages = list[dict[str, Any]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Document:
    """One text, one conversation, or one preference pair.

    id: place in its source, the same wherever the files lie.
    messages: the conversation; of a pair, the prompt, which chosen and rejected go on from.
    options: what the renderer is told (enable_thinking, tools, python_tools, ...).
    """

    id: str
    text: str | None = None
    messages: Messages = field(default_factory=list)
    chosen: Messages = field(default_factory=list)
    rejected: Messages = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

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
        value = [self.text, self.messages, self.chosen, self.rejected, self.options]
        return hash64(json.dumps(value, sort_keys=True, ensure_ascii=False))


def hash64(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


class _Damaged(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


def documents(source: Source, seed: int, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Every document of a source, in an order that depends on the source and the seed alone.

    What cannot be used is left out and counted in `skipped` by reason. A missing file, a pattern
    without a match, and a source in which nothing is left are UserErrors.
    """
    skipped = Counter() if skipped is None else skipped
    found = 0
    if source.rows is None:
        chosen = _documents(source, seed, skipped)
    elif isinstance(source.rows, int) and isinstance(source, StdlibSource | ProceduralSource):
        chosen = islice(_documents(source, seed, skipped), source.rows)  # shuffled as they come
    else:
        n = sum(1 for _ in _documents(source, seed, Counter()))
        n_kept = source.rows if isinstance(source.rows, int) else int(n * source.rows)
        kept = np.zeros(n, dtype=bool)
        kept[permutation(n, f"{seed}/rows")[:n_kept]] = True
        every = _documents(source, seed, skipped)
        chosen = (document for document, keep in zip(every, kept, strict=True) if keep)
    for document in chosen:
        found += 1
        yield document
    if not found:
        reasons = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        where = getattr(source, "files", None) or source.kind
        raise UserError(f"{where}: no usable documents in it ({reasons or 'it is empty'})")


def fingerprint(source: Source) -> Any:
    """A JSON value that changes when the data may have changed, found without reading them."""
    match source:
        case StdlibSource():
            return sys.version
        case ProceduralSource():
            modules = (procedural, synthetic, words)
            return [hash64(Path(str(module.__file__)).read_text()) for module in modules]
        case HubSource():
            return str(_snapshot(source))  # the folder is named by the commit
        case _:
            stats = [(file, Path(file).stat()) for file in _files(source.files)]
            return [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _documents(source: Source, seed: int, skipped: Counter[str]) -> Iterator[Document]:
    match source:
        case TextSource():
            rows = _text_rows(_files(source.files), skipped)
        case StdlibSource():
            rows = _stdlib_rows(source.part, seed)
        case ProceduralSource():
            made = procedural.rows(
                source.generator, source.format, source.documents, seed, source.options
            )
            rows = ((str(i), row) for i, row in enumerate(made))
        case HubSource():
            folder = _snapshot(source)
            files = [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
            matching = [f for f in files if _matches(f, str(folder), source.files)]
            rows = _file_rows(matching, skipped)
        case _:
            rows = _file_rows(_files(source.files), skipped)
    column = getattr(source, "text", "text")
    for identity, row in rows:
        try:
            yield _document(identity, row, source.format, column)
        except _Damaged as e:
            skipped[str(e)] += 1


# Rows to documents


def _document(identity: str, row: Any, form: str, column: str) -> Document:
    if not isinstance(row, dict):
        raise _Damaged("not an object")
    if form == "text":
        text = row.get(column)
        if not isinstance(text, str):
            raise _Damaged(f"without the field {column!r}")
        if not text.strip():
            raise _Damaged("empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Damaged("a lone surrogate, which is no character") from None
        return Document(identity, text=text)
    options = _render_options(row.get("chat_template_kwargs") or {})
    if form == "chat":
        messages = _messages(row.get("messages"))
        if not any(message["role"] == "assistant" for message in messages):
            raise _Damaged("without an answer")
        return Document(identity, messages=messages, options=options)
    return _pair(identity, row, options)


def _render_options(kwargs: Any) -> dict[str, Any]:
    """SmolTalk2's `chat_template_kwargs` as arguments of Tokenizer.render."""
    if not isinstance(kwargs, dict):
        raise _Damaged("chat_template_kwargs is not an object")
    options = {
        "tools": kwargs.get("xml_tools") or kwargs.get("tools"),
        "python_tools": kwargs.get("python_tools"),
        "custom_instructions": kwargs.get("custom_instructions"),
        "enable_thinking": kwargs.get("enable_thinking"),
    }
    return {key: value for key, value in options.items() if value not in (None, [], "")}


def _messages(value: Any) -> Messages:
    if not isinstance(value, list) or not value:
        raise _Damaged("without messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _Damaged("a message without a role")
    # Parquet spells what a message does not have as None.
    return [{k: v for k, v in message.items() if v is not None} for message in value]


def _pair(identity: str, row: Row, options: dict[str, Any]) -> Document:
    """chosen and rejected are answers (texts or messages) or whole conversations."""
    chosen, rejected = (_answer(row.get(key)) for key in ("chosen", "rejected"))
    prompt = row.get("prompt")
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == min(len(chosen), len(rejected)):
        raise _Damaged("both answers are the same")
    if any(message["role"] == "user" for message in chosen[:shared]):
        before = chosen[:shared]
    else:
        before = _messages(prompt) + chosen[:shared]
    return Document(
        identity,
        messages=before,
        chosen=chosen[shared:],
        rejected=rejected[shared:],
        options=options,
    )


def _answer(value: Any) -> Messages:
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return _messages(value)


# Files


def _files(patterns: list[str]) -> list[str]:
    """The files that the patterns match, in order, each once."""
    found: dict[str, None] = {}
    for pattern in patterns:
        paths = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        matches = [path for path in paths if Path(path).is_file()]
        if not matches:
            raise UserError(f"{pattern}: no such file; check the path (or pattern) in the recipe")
        found |= dict.fromkeys(matches)
    return list(found)


def _text_rows(files: list[str], skipped: Counter[str]) -> Iterator[tuple[str, Row]]:
    for number, file in enumerate(files):
        try:
            yield str(number), {"text": Path(file).read_text(encoding="utf-8")}
        except UnicodeDecodeError:
            skipped["not UTF-8"] += 1


def _file_rows(files: list[str], skipped: Counter[str]) -> Iterator[tuple[str, Row]]:
    for number, file in enumerate(files):
        rows = _parquet_rows(file) if file.endswith(".parquet") else _json_rows(file, skipped)
        for line, row in rows:
            yield f"{number}:{line}", row


def _json_rows(file: str, skipped: Counter[str]) -> Iterator[tuple[int, Any]]:
    """Rows of JSON lines, plain or compressed as the name says (.gz, .zst, .bz2)."""
    from pyarrow import input_stream  # type: ignore[attr-defined]

    try:
        with BufferedReader(input_stream(file, compression="detect")) as lines:
            for number, line in enumerate(lines):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line.decode("utf-8"))
                except UnicodeDecodeError:
                    skipped["not UTF-8"] += 1
                except (ValueError, RecursionError):
                    skipped["damaged JSON"] += 1
    except OSError as e:
        raise UserError(f"{file}: cannot be read to its end ({e}); get it again") from None


def _parquet_rows(file: str) -> Iterator[tuple[int, Any]]:
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file) as parquet:  # type: ignore[no-untyped-call]
            for batch in parquet.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    yield number, row
                    number += 1
    except (ArrowException, OSError) as e:
        raise UserError(f"{file}: not a whole Parquet file ({e}); get it again") from None


def _snapshot(source: HubSource) -> Path:
    """The source's files of a Hub data set, downloaded once; offline, what is in the cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            source.repo,
            repo_type="dataset",
            revision=source.revision,
            allow_patterns=[*source.files, *(f.removeprefix("**/") for f in source.files)],
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as e:
        reason = str(e).strip().splitlines()[0]
        raise UserError(
            f"{source.repo}@{source.revision}: cannot be had from the Hub ({reason}); "
            "check the name, the revision and the connection"
        ) from None
    return Path(folder)


def _matches(file: str, folder: str, patterns: list[str]) -> bool:
    """As the Hub matches: `*` crosses `/`; `**/` may also be nothing."""
    name = Path(file).relative_to(folder).as_posix()
    return any(
        fnmatch.fnmatch(name, p) or fnmatch.fnmatch(name, p.removeprefix("**/")) for p in patterns
    )


# The standard library

_LINES = 60  # a document of code is a function or class, or about this much of it
_LEFT_OUT = {  # tests, other people's packages, tables
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data", "entities.py", "lib2to3", "turtledemo"),
}


@cache
def _stdlib_files() -> tuple[Path, ...]:
    found = []
    for folder, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return tuple(
        sorted(p for p in found if p.name not in _LEFT_OUT and "_sysconfigdata" not in p.name)
    )


def _stdlib_rows(part: str, seed: int) -> Iterator[tuple[str, Row]]:
    """Files in a seeded order, so that the first documents are a sample of all."""
    files = _stdlib_files()
    for number in permutation(len(files), f"{seed}/stdlib"):
        try:
            code = files[number].read_text(encoding="utf-8")
            tree = ast.parse(code)
        except (UnicodeDecodeError, SyntaxError):
            continue  # kept by Python as examples of just that
        pieces = _code(code, tree) if part == "code" else _docstrings(tree)
        for place, text in enumerate(pieces):
            yield f"{number}:{place}", {"text": text}


def _code(code: str, tree: ast.Module) -> Iterator[str]:
    """A file cut before each top-level function and class, and then every 60 lines."""
    lines = code.splitlines(keepends=True)
    starts = {0, len(lines)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            starts |= {first - 1, node.end_lineno or first}
    for start, end in pairwise(sorted(starts)):
        for cut in range(start, end, _LINES):
            text = "".join(lines[cut : min(cut + _LINES, end)]).strip("\n")
            if len(text) >= 80:
                yield text + "\n"


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = inspect.cleandoc(ast.get_docstring(node, clean=False) or "")
            if len(text) >= 80:
                yield text + "\n"
