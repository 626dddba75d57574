"""`smollm3 run`, `smollm3 report`: recipes and what they leave."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smollm3.cli.options import SET, WATCH

if TYPE_CHECKING:
    from smollm3.recipe import Recipe


@click.command()
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the run. [default: runs/NAME]",
)
@SET
@click.option("--only", metavar="STAGE", help="Run only this stage.")
@click.option(
    "--redo",
    multiple=True,
    metavar="STAGE",
    help="Make this stage, and every stage made from it, again; repeatable.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the stages with their estimated cost and time, and do nothing.",
)
@WATCH
@click.option(
    "--slurm",
    metavar="KEY=VALUE,...",
    help="Submit Slurm jobs instead: nodes, gpus (of each), time, partition, account, qos, "
    "reservation, constraint, cpus, tasks.",
)
def run(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    only: str | None,
    redo: tuple[str, ...],
    dry_run: bool,
    watch: bool,
    slurm: str | None,
) -> None:
    """Run a recipe: a shipped name (smoke, nano, smollm3-3b) or a .yaml file.

    A stage that is done is not done again; an interrupted run resumes where it stopped.

    \b
    smollm3 run nano
    smollm3 run nano --watch
    smollm3 run nano --set stages.sft.lr.peak=1e-3 --redo sft
    smollm3 run smollm3-3b --dry-run
    smollm3 run smollm3-3b --slurm nodes=48,gpus=8,time=24h
    """
    from smollm3.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        _print_plan(loaded)
        return
    folder = out or Path("runs") / loaded.name
    if slurm:
        _submit(loaded, recipe, folder, overrides, slurm)
        return
    from smollm3.recipe.console import run_on_console
    from smollm3.train import ProcessGroup, run_worker
    from smollm3.train.launch import adopt_slurm, check_launch

    adopt_slurm()
    check_launch(loaded.ranks(loaded.parallel))

    if int(os.environ.get("RANK", "0")):  # under torchrun: rank 0 is the main process
        run_worker(ProcessGroup.from_environment())
        return
    run_on_console(loaded, folder, only, redo, watch)


def _submit(
    recipe: Recipe, target: str, out: Path, overrides: tuple[str, ...], options: str
) -> None:
    from smollm3.recipe.slurm import parse_options, submit

    for job, number in submit(recipe, target, out, overrides, parse_options(options)):
        click.echo(f"{number}  {job.name}  {out / 'slurm' / job.name}.log")


def _print_plan(recipe: Recipe) -> None:
    from smollm3 import plan
    from smollm3.recipe.console import wide_console

    wide_console().print(plan.render(plan.stage_costs(recipe)))


@click.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
@click.option(
    "--watch", is_flag=True, help="Show it in a browser as the run goes on, until Ctrl-C."
)
def report(run_folder: Path, watch: bool) -> None:
    """Write RUN_FOLDER/report.html again from the files of a run."""
    from smollm3.report import write_report

    if watch:
        from smollm3.report.watch import Watch

        with Watch(run_folder) as server:
            click.echo(server.url)
            server.serve_forever()
    click.echo(write_report(run_folder))


@click.group("recipe")
def recipe_group() -> None:
    """Recipes made from other programs' configurations."""


@recipe_group.command("import")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE..."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The recipe to write. [default: NAME.yaml]",
)
@click.option("--name", default="imported", show_default=True, help="Name of the recipe.")
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    help="GPUs of a training whose file gives only the rows on each.",
)
@click.option(
    "--compare",
    metavar="RECIPE",
    help="Print how RECIPE differs, field by field, and write nothing.",
)
def import_(
    files: tuple[Path, ...], out: Path | None, name: str, gpus: int | None, compare: str | None
) -> None:
    """Make a recipe of nanotron's or alignment-handbook's configurations, one after another.

    \b
    smollm3 recipe import stage1_8T.yaml stage2_8T_9T.yaml stage3_9T_11T.yaml --name mine
    smollm3 recipe import mid.yaml sft.yaml apo.yaml --compare smollm3-3b
    """
    from smollm3.errors import UserError
    from smollm3.files import write_atomic
    from smollm3.recipe import load_recipe
    from smollm3.recipe.imported import differences, import_recipe, recipe_text

    imported = import_recipe(files, name, gpus)
    for note in imported.notes:
        click.echo(f"note: {note}", err=True)
    if compare:
        found = differences(imported.recipe, load_recipe(compare))
        for each in found:
            why = f"  # {each.reason}" if each.reason else ""
            click.echo(f"{each.field}: {each.imported} -> {each.other}{why}")
        click.echo(f"{len(found)} fields differ")
        return
    path = out or Path(f"{name}.yaml")
    if path.exists():
        raise UserError(f"{path}: exists; give another --out")
    write_atomic(path, recipe_text(imported, files))
    click.echo(f"{path}: {len(imported.recipe.stages)} stages; smollm3 run {path} --dry-run")
