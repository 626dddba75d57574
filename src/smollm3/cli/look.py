"""The view of `smollm3 data look`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from smollm3 import checkpoint
from smollm3.data import places
from smollm3.data.detect import Detected, detect
from smollm3.data.look import IsItem, Looked, Summary, bytes_tokenizer, look
from smollm3.data.spec import FileSource
from smollm3.errors import UserError
from smollm3.recipe.console import wide_console
from smollm3.units import count
from smollm3.visible import visible

MANY = 12  # of a kind that are listed
LONG = 1500  # characters of an example that are shown


def show(
    path: str,
    settings: dict[str, Any],
    model: str | None,
    context: int | None,
    against: Sequence[Path],
    as_json: bool,
) -> None:
    detected = detect(path, **settings)
    tokenizer = checkpoint.load_tokenizer(model) if model else bytes_tokenizer()
    if context is None and model:
        context = checkpoint.load_config(checkpoint.locate(model)).context
    rows = look(detected.source, tokenizer, context, _items(against))
    if as_json:
        for row in rows:
            click.echo(json.dumps(row.to_json(), ensure_ascii=False).encode("utf-8", "replace"))
        return
    summary = Summary()
    for row in rows:
        summary.add(row)
    _show(wide_console(), detected, summary, "tokens" if model else "bytes", context)
    if not summary.used:
        raise UserError(f"{path}: no row of it can be used")


def _items(files: Sequence[Path]) -> IsItem | None:
    if not files:
        return None
    from smollm3.eval.contamination import ItemIndex, documents

    index = ItemIndex(documents(files))
    return lambda text: bool(index.found_in(text))


def _show(
    console: Console, found: Detected, summary: Summary, unit: str, context: int | None
) -> None:
    def line(what: str, said: str) -> None:
        if said:
            text = Text(f"{what:<11}", "bold").append(visible(said), "not bold")
            console.print(text, soft_wrap=True)

    line("format", str(found))
    if isinstance(found.source, FileSource) and Path(found.source.files[0]).is_dir():
        others = places.left_out(Path(found.source.files[0]))
        line("files", f"{len(others)} are no data files by their names" if others else "")
    line("rows", f"{summary.rows:,}, of which {summary.used:,} can be used")
    lengths = summary.lengths()
    line(unit, ", ".join(f"{name} {count(n)}" for name, n in lengths.items()))
    if unit == "bytes":
        line("", "say --model MODEL for its tokens and its template")
    elif context is not None:
        line("context", f"{context:,} tokens")
    line("roles", _most(summary.roles))
    line("thinking", _most(summary.modes))
    line("languages", _most(summary.languages))
    line("tools", _most(summary.tools))
    unread = [c for c in found.columns if c not in found.read]
    line("not read", ", ".join(unread[:MANY]) + (", ..." if len(unread) > MANY else ""))
    for title, counts in (("left out", summary.left_out), ("odd", summary.odd)):
        for what, n in counts.most_common():
            at = ", ".join(summary.places[what])
            more = ", ..." if n > len(summary.places[what]) else ""
            line(title, f"{n:,} {what}: {at}{more}")
    for example in summary.examples:
        _example(console, example)


def _most(counts: Counter[str]) -> str:
    shown = [f"{name} {n:,}" for name, n in counts.most_common(MANY)]
    return ", ".join(shown) + (", ..." if len(counts) > MANY else "")


def _example(console: Console, row: Looked) -> None:
    """The rendered text; what is trained on in green, or between marks where there is no colour."""
    coloured = console.color_system is not None and not console.no_color
    names = [""] if len(row.sides) == 1 else [" chosen", " rejected"]
    for side, name in zip(row.sides, names, strict=False):
        console.print(Text(f"\n{row.entry.place}{name}", "bold"))
        shown, left = Text(), LONG
        for text, trained in side.pieces:
            if left <= 0:
                break
            piece = visible(text[:left])
            left -= len(piece)
            if trained:
                piece = piece if coloured else f"\u27e6{piece}\u27e7"
            shown.append(piece, "green" if trained else "dim")
        if len(side.text) > LONG:
            shown.append(" ...", "dim")
        console.print(shown, soft_wrap=True)
