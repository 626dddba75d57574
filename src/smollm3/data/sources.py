"""Documents from the places a recipe names: files, the Hub, the standard library, generators."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import inspect
import json
import os
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from smollm3.data import procedural, readers, synthetic, words
from smollm3.data.blobs import with_texts
from smollm3.data.order import permutation
from smollm3.data.readers import Row, Span, Text
from smollm3.data.spec import (
    HubSource,
    ParquetSource,
    ProceduralSource,
    Source,
    StdlibSource,
    TextSource,
)
from smollm3.errors import UserError

Messages = list[dict[str, Any]]
_MADE_DOCUMENTS = 1_000_000  # a part of a source that is made up


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
        if self.text is not None:
            return hash64(self.text)
        value = [self.messages, self.chosen, self.rejected, self.options]
        return hash64(json.dumps(value, sort_keys=True, ensure_ascii=False))


def hash64(text: str) -> int:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


class _Damaged(Exception):
    """A row that cannot be used; the message is the reason it is counted under."""


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
            parts = readers.split(hub_files(source)[1], int(source.part * 2**20))
        case _:
            parts = readers.split(readers.find(source.files), int(source.part * 2**20))
    total = 0
    if source.rows is not None:
        for part in parts:
            for i, span in enumerate(part):
                part[i] = replace(span, offset=total)
                total += _count(source, span, seed)
    return Plan([parts[i] for i in permutation(len(parts), f"{seed}/parts")], total)


def _count(source: Source, span: Span, seed: int) -> int:
    if isinstance(source, TextSource):
        return 1
    if isinstance(source, ProceduralSource):
        return (span.last or source.documents) - span.first
    if isinstance(source, StdlibSource):
        if isinstance(source.rows, int):
            return source.rows  # these come shuffled: what is behind the last one is not read
        return sum(1 for _ in _rows(source, span, seed, Counter()))
    return readers.count_rows(span)


def documents(
    source: Source,
    seed: int,
    skipped: Counter[str] | None = None,
    planned: Plan | None = None,
    part: int | None = None,
) -> Iterator[Document]:
    """Every document of a source, or of one part of its plan, in an order that depends on the
    source and the seed alone.

    What cannot be used is left out and counted in `skipped` by reason. A missing file, a pattern
    without a match, and a source in which nothing is left are UserErrors.
    """
    skipped = Counter() if skipped is None else skipped
    planned = planned or plan(source, seed)
    spans = planned.parts[part] if part is not None else [s for p in planned.parts for s in p]
    kept = _kept(source, seed, planned.rows)
    found = 0
    for span in spans:
        for place, (identity, row) in enumerate(_rows(source, span, seed, skipped), span.offset):
            if kept is not None and place >= len(kept):
                break
            if kept is not None and not kept[place]:
                continue
            try:
                document = _document(identity, row, source)
            except _Damaged as e:
                skipped[str(e)] += 1
                continue
            found += 1
            yield document
    if not found and part is None:
        raise UserError(nothing_usable(source, skipped))


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
            stats = [(f, size, _modified(f)) for f, size in readers.find(source.files)]
            return [list(entry) for entry in stats]


def _modified(file: str) -> int:
    return 0 if "://" in file else Path(file).stat().st_mtime_ns


def _rows(
    source: Source, span: Span, seed: int, skipped: Counter[str]
) -> Iterator[tuple[str, Row]]:
    """(id in the source, row)."""
    match source:
        case StdlibSource():
            yield from _stdlib_rows(source.part, seed)
        case ProceduralSource():
            indices = range(span.first, span.last or source.documents)
            made = procedural.rows(
                source.generator, source.format, indices.stop, seed, source.options, indices.start
            )
            yield from ((str(i), row) for i, row in zip(indices, made, strict=True))
        case _:
            whole = isinstance(source, TextSource)
            blobs = source.blobs if isinstance(source, HubSource | ParquetSource) else None
            columns = Text(source.text).columns if source.format == "text" else None
            if blobs is not None:
                columns = [blobs.id, blobs.encoding]
            rows = readers.rows(span, columns, skipped, text=whole)
            for number, row in rows if blobs is None else with_texts(rows, blobs, skipped):
                yield f"{span.number}:{number}", row


# Rows to documents


def _document(identity: str, row: Any, source: Source) -> Document:
    if not isinstance(row, dict):
        raise _Damaged("not an object")
    if source.format == "text":
        spec = getattr(source, "text", "text")
        text = Text(spec).of(row)
        if text is None:
            raise _Damaged(f"without the field {spec!r}")
        if not text.strip():
            raise _Damaged("empty")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Damaged("a lone surrogate, which is no character") from None
        return Document(identity, text=text)
    options = _render_options(row.get("chat_template_kwargs") or {})
    if source.format == "chat":
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


# The Hub


def hub_files(source: HubSource) -> tuple[str, list[tuple[str, int]]]:
    """(commit, [(path or hf:// URL, bytes)]) of a Hub data set: what is in the cache is read there,
    the rest is streamed at that commit. Without the network, what the cache holds."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    try:
        info = HfApi().dataset_info(source.repo, revision=source.revision, files_metadata=True)
    except (HfHubHTTPError, OSError, ValueError) as e:
        reached = isinstance(e, HfHubHTTPError) and not isinstance(e, ConnectionError)
        reason = str(e).strip().splitlines()[0] if reached else "it cannot be reached"
        return _snapshot(source, reason)
    files = []
    for sibling in sorted(info.siblings or (), key=lambda s: s.rfilename):
        name = sibling.rfilename
        if not _matches(name, source.files):
            continue
        here = try_to_load_from_cache(
            source.repo, name, repo_type="dataset", revision=str(info.sha)
        )
        url = f"hf://datasets/{source.repo}@{info.sha}/{name}"
        files.append((here if isinstance(here, str) else url, sibling.size or 0))
    if not files:
        raise UserError(
            f"{source.repo}@{source.revision}: no file matches {', '.join(source.files)}"
        )
    return str(info.sha), files


def _snapshot(source: HubSource, reason: str) -> tuple[str, list[tuple[str, int]]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            source.repo, repo_type="dataset", revision=source.revision, local_files_only=True
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        raise UserError(
            f"{source.repo}@{source.revision}: cannot be had from the Hub ({reason}); "
            "check the name, the revision and the connection"
        ) from None
    folder = Path(found)
    files = [
        (str(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and _matches(path.relative_to(folder).as_posix(), source.files)
    ]
    return str(folder), files  # the folder is named by the commit


def _matches(name: str, patterns: list[str]) -> bool:
    """As the Hub matches: `*` crosses `/`; `**/` may also be nothing."""
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
