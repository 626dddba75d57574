"""`smollm3 data`: what a recipe's sources need, and their preparation at any scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smollm3.cli.options import SET
from smollm3.errors import UserError


@click.group()
def data() -> None:
    """Check, prepare and verify the data of a recipe."""


@data.command()
@click.argument("recipe", metavar="RECIPE")
@click.option("--source", "names", multiple=True, metavar="NAME", help="Only this; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/NAME].")
@SET
@click.option(
    "--executor", type=click.Choice(["local", "slurm", "ray"]), default="local", show_default=True
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Of the executor, e.g. partition=cpu or time=20:00:00 of Slurm.",
)
def prepare(
    recipe: str,
    names: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    executor: str,
    workers: int,
    options: tuple[str, ...],
) -> None:
    """Read, filter, tokenise and shard the sources of RECIPE, where `smollm3 run` then finds them.

    What is done is not done again; whatever is killed, all finished parts are kept.

    \b
    smollm3 data prepare nano --workers 2
    smollm3 data prepare smollm3-3b --source fineweb-edu --executor slurm --workers 200 \\
        --option partition=cpu --option time=24:00:00
    """
    from smollm3.data.ledger import notes
    from smollm3.data.preparation import Executor, Here
    from smollm3.recipe import load_recipe
    from smollm3.recipe.data import prepare_sources
    from smollm3.units import count

    loaded = load_recipe(recipe, overrides)
    folder = out or Path("runs") / loaded.name
    execute: Executor = Here()
    if executor != "local" or workers > 1:
        from smollm3.data.distribute import Distributed

        given = dict(_pair(option) for option in options)
        execute = Distributed(executor, workers, folder.absolute() / "data" / ".logs", given)
    for name, shard in prepare_sources(loaded, folder, names, execute):
        if shard is None:
            click.echo(f"{name}: submitted")
            continue
        made = f"{count(shard.documents)} documents, {count(shard.n_tokens)} tokens"
        click.echo(f"{name}: {made} in {len(shard.meta['parts'])} parts ({shard.folder})")
        for line in notes(shard.meta):
            click.echo(f"  {line}")
        for step, reasons in shard.meta["dropped"].items():
            for reason, lost in reasons.items():
                click.echo(f"  {lost['documents']} dropped by {step}: {reason}")


def _pair(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not equals:
        raise UserError(f"{option}: write it as key=value")
    return key, int(value) if value.isdigit() else value


@data.command()
@click.argument("path", metavar="FILE")
@click.option("--model", metavar="MODEL", help="Whose tokenizer and template are used.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "chat", "preference"]),
    help="What a row is. [default: found by looking]",
)
@click.option("--text", metavar="COLUMN", help="The column of the text, or a template of columns.")
@click.option(
    "--column", "columns", multiple=True, metavar="OURS=THEIRS",
    help="A column's name in the file, e.g. prompt=frage; repeatable.",
)  # fmt: skip
@click.option(
    "--thinking",
    type=click.Choice(["think", "no_think"]),
    help="The mode of conversations that say nothing about it. [default: by their answers]",
)
@click.option(
    "--context", type=click.IntRange(8), metavar="TOKENS",
    help="Tokens of a training row. [default: the model's context]",
)  # fmt: skip
@click.option(
    "--against", multiple=True, type=click.Path(path_type=Path, exists=True), metavar="FILE",
    help="Evaluation items that must not be in the data; repeatable.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object a row instead.")
def look(
    path: str,
    model: str | None,
    form: str | None,
    text: str | None,
    columns: tuple[str, ...],
    thinking: str | None,
    context: int | None,
    against: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Say what is in FILE before anything is trained on it.

    FILE is a file, a folder, a pattern, a URL or the id of a data set on the Hub: JSON lines or
    arrays, CSV, Parquet or texts, plain or compressed. Every row is read and rendered as training
    would, and what would be left out is named by its line, with the reason.

    With --json each row is an object: its line, the rendered text, the trained texts, and what is
    odd about it; or why it is left out.

    \b
    smollm3 data look talks.jsonl --model smollm3-3b
    smollm3 data look pairs.parquet --json | jq 'select(.left_out)'
    """
    from smollm3.cli.look import show

    pairs = dict(_pair(column) for column in columns)
    settings = {"format": form, "text": text, "thinking": thinking, "columns": pairs or None}
    given = {key: value for key, value in settings.items() if value is not None}
    show(path, given, model, context, against, as_json)


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Compare prepared data with their checksums. FOLDER: a source's, or a run's for all of its."""
    from smollm3.data.shards import verify as problems

    folders = _prepared(folder)
    found = [line for source in folders for line in problems(source)]
    for line in found:
        click.echo(line, err=True)
    if found:
        raise UserError(f"{len(found)} files are damaged; delete their source and prepare it again")
    click.echo(f"{len(folders)} sources are whole")


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("url", metavar="URL")
@click.option(
    "--cache", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True,
    metavar="GB", help="What a machine may keep of what it has read.",
)  # fmt: skip
def move(folder: Path, url: str, cache: float) -> None:
    """Move prepared data to URL, an object store or another disk that fsspec knows (s3://, gs://).

    FOLDER: a source's, or a run's for all of its. What says which parts there are stays here; runs
    fetch parts as they read them, the next one ahead.
    """
    from smollm3.data.shards import move as moved

    for source in _prepared(folder):
        moved(source, url, int(cache * 1e9))
        click.echo(f"{source}: moved to {url}")


def _prepared(folder: Path) -> list[Path]:
    folders = [f.parent for f in sorted(folder.glob("**/meta.json"))]
    if not folders:
        raise UserError(f"{folder}: no prepared data in it")
    return folders


@data.command()
@click.argument("recipe", metavar="RECIPE")
@SET
def check(recipe: str, overrides: tuple[str, ...]) -> None:
    """Say what of RECIPE's data can be had, what needs consent, what is missing, and its size.

    The table knows without the network what the recipe says; files and bytes are what the Hub, or
    its cache, answers now.
    """
    from rich.table import Table

    from smollm3.data.registry import check as look
    from smollm3.recipe import load_recipe
    from smollm3.recipe.console import wide_console
    from smollm3.recipe.data import tokens_needed
    from smollm3.recipe.schema import SynthSource
    from smollm3.units import count, size

    loaded = load_recipe(recipe, overrides)
    given = {n: s for n, s in loaded.sources.items() if not isinstance(s, SynthSource)}
    table = Table("source", "status", "license", "where", "files", "size", "published", "needed")
    table.add_column("times", justify="right")
    found = list(look(given, tokens_needed(loaded)))
    for f in found:
        published = getattr(f.source, "published_tokens", None)
        table.add_row(
            f.name,
            f.status,
            getattr(f.source, "license", None) or "?",
            f.where,
            "?" if f.files is None else f"{f.files:,}",
            size(f.bytes),
            count(published),
            count(f.needed),
            "" if f.repeats is None else f"{f.repeats:.2f}",
        )
    console = wide_console()
    console.print(table)
    for f in found:
        if note := getattr(f.source, "note", None):
            console.print(f"{f.name}: {note}", highlight=False)
    problems: dict[str, list[str]] = {}
    for f in found:
        if f.problem:
            problems.setdefault(f.problem, []).append(f.name)
    for problem, names in problems.items():
        console.print(f"{', '.join(names)}: {problem}", highlight=False, soft_wrap=True)
    states = {status: sum(f.status == status for f in found) for status in _STATES}
    counts = ", ".join(f"{n} {status}" for status, n in states.items() if n)
    lacking = sum(bool(f.problem) for f in found)
    console.print(f"{len(found)} sources: {counts}; {lacking} cannot be had now")


_STATES = ("public", "gated", "substitute", "unpublished")
