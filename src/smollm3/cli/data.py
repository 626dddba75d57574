"""`smollm3 data`: what a recipe's sources need, and their preparation at any scale."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from smollm3.errors import UserError


@click.group()
def data() -> None:
    """Check, prepare and verify the data of a recipe."""


@data.command()
@click.argument("recipe", metavar="RECIPE")
@click.option("--source", "names", multiple=True, metavar="NAME", help="Only this; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/NAME].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value.")
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
    from smollm3.data.prepare import Executor, Here
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
        for reason, n in shard.meta["skipped"].items():
            click.echo(f"  {n} skipped: {reason}")
        for step, reasons in shard.meta["dropped"].items():
            for reason, lost in reasons.items():
                click.echo(f"  {lost['documents']} dropped by {step}: {reason}")


def _pair(option: str) -> tuple[str, Any]:
    key, equals, value = option.partition("=")
    if not equals:
        raise UserError(f"--option {option}: write it as key=value")
    return key, int(value) if value.isdigit() else value


@data.command()
@click.argument("folder", type=click.Path(path_type=Path))
def verify(folder: Path) -> None:
    """Compare prepared data with their checksums. FOLDER: a source's, or a run's for all of its."""
    from smollm3.data.shards import verify as problems

    folders = [f.parent for f in sorted(folder.glob("**/meta.json"))]
    if not folders:
        raise UserError(f"{folder}: no prepared data in it")
    found = [line for source in folders for line in problems(source)]
    for line in found:
        click.echo(line, err=True)
    if found:
        raise UserError(f"{len(found)} files are damaged; delete their source and prepare it again")
    click.echo(f"{len(folders)} sources are whole")
