"""`smollm3 finetune`, `smollm3 merge`: a model made one's own."""

from __future__ import annotations

from pathlib import Path

import click

from smollm3.cli.options import MODEL, MODEL_HELP, SET, SUITE, WATCH, RunGroup


@click.command(epilog=MODEL_HELP)
@MODEL
@click.argument("data", metavar="DATA")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of the run. [default: runs/NAME, by the name of DATA]",
)
@click.option(
    "--preferences",
    metavar="PAIRS",
    help="Pairs of chosen and rejected answers to train on after DATA.",
)
@click.option("--context", type=click.IntRange(8), metavar="TOKENS", help="Tokens in a row.")
@click.option(
    "--adapter",
    default="auto",
    show_default=True,
    metavar="KIND",
    help="What is trained: lora, rslora, dora, qlora, full (the model itself), or auto.",
)
@WATCH
@click.option("--dry-run", is_flag=True, help="Print the plan and the recipe; train nothing.")
@SET
def finetune(
    model: str,
    data: str,
    out: Path | None,
    preferences: str | None,
    context: int | None,
    adapter: str,
    watch: bool,
    dry_run: bool,
    overrides: tuple[str, ...],
) -> None:
    """Make MODEL your own with DATA: conversations, documents or preference pairs.

    Looks at the data, chooses a plan that fits this machine and says why, trains with a held-out
    part, compares before and after, exports. All of it is written to FOLDER/finetune.yaml first:
    change a line and give the same command to go on with that.

    \b
    smollm3 finetune smollm3-3b talks.jsonl
    smollm3 finetune smollm2-135m talks.jsonl --out mine
    smollm3 finetune smollm3-3b talks.jsonl --preferences pairs.jsonl --adapter dora --dry-run
    """
    from smollm3.recipe.finetune import Wish
    from smollm3.recipe.finetune_console import finetune_on_console

    wish = Wish(model, data, preferences, context, adapter, overrides)
    finetune_on_console(wish, out, dry_run, watch)


@click.command("run", epilog=MODEL_HELP)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--base", metavar="MODEL", help="Its base. [default: the one that it names]")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the written weights. [default: the base's]",
)
def merge_adapter(adapter: Path, out: Path, base: str | None, dtype: str | None) -> None:
    """Write the model that an adapter (a folder in PEFT's format) makes of its base to OUT.

    \b
    smollm3 merge mine/sft/adapter merged
    smollm3 merge adapter merged --base smollm3-3b --dtype bfloat16
    """
    from smollm3.checkpoint.adapter import read_adapter
    from smollm3.errors import UserError
    from smollm3.files import new_folder
    from smollm3.merge import merge_adapter as merge_into

    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: exists already; choose another folder")
    found = base or read_adapter(adapter).base
    if found is None:
        raise UserError(f"{adapter}: names no base; say it with --base")
    with new_folder(out) as folder:
        merge_into(found, adapter, folder, dtype)
    click.echo(out)


@click.command(epilog=MODEL_HELP)
@MODEL
@click.argument("other")
@click.option(
    "--shares", default="0,0.25,0.5,0.75,1", show_default=True, help="Of MODEL in the merge."
)
@click.option("--tasks", metavar="NAMES", help="As of `smollm3 eval`, by commas.")
@SUITE
@click.option("--data", type=click.Path(), help="A folder of data sets [the Hub].")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Items of each task.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("sweep"), show_default=True)
def sweep(
    model: str,
    other: str,
    shares: str,
    tasks: str | None,
    suite: str | None,
    data: str | None,
    limit: int | None,
    seed: int,
    out: Path,
) -> None:
    """Score merges of MODEL and OTHER on a grid of shares, and draw the curve.

    Choose tasks whose items you do not report. Stopped and started again, it goes on.

    \b
    smollm3 merge sweep runs/mine/soup runs/mine/long --suite long --limit 50
    """
    from smollm3.eval.launch import names_of
    from smollm3.eval.spec import BenchmarkStage
    from smollm3.eval.sweep import sweep as score_merges

    if (tasks is None) == (suite is None):
        raise click.UsageError("give either --tasks or --suite")
    try:
        grid = [float(share) for share in shares.split(",")]
    except ValueError:
        raise click.UsageError(f"--shares: numbers by commas, not {shares!r}") from None
    names = names_of(tasks) if tasks else []
    stage = BenchmarkStage(kind="benchmark", suite=suite, tasks=names, data=data, limit=limit)
    score_merges(model, other, grid, stage, seed, out)


@click.group("merge", cls=RunGroup, context_settings={"ignore_unknown_options": True})
def merge() -> None:
    """Merge an adapter into its base: smollm3 merge ADAPTER OUT; or score merges of two models.

    \b
    smollm3 merge run --help      all options of smollm3 merge ADAPTER OUT
    smollm3 merge sweep MODEL OTHER --tasks piqa
    """


merge.add_command(merge_adapter)
merge.add_command(sweep)
