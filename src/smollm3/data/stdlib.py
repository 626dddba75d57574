"""The Python standard library on this machine: its code, or its docstrings as prose."""

from __future__ import annotations

import ast
import inspect
import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from smollm3.data.order import permutation
from smollm3.data.readers import Row

_LINES = 60  # a document of code is a function or class, or about this much of it
_LEFT_OUT = {  # tests, other people's packages, tables
    *("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"),
    *("encodings", "pydoc_data", "entities.py", "lib2to3", "turtledemo"),
}


@cache
def _files() -> tuple[Path, ...]:
    found = []
    for folder, folders, files in os.walk(sysconfig.get_paths()["stdlib"]):
        folders[:] = [name for name in folders if name not in _LEFT_OUT]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return tuple(
        sorted(p for p in found if p.name not in _LEFT_OUT and "_sysconfigdata" not in p.name)
    )


def rows(part: str, seed: int) -> Iterator[tuple[str, Row]]:
    """Files in a seeded order, so that the first documents are a sample of all."""
    files = _files()
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
