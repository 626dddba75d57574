"""The command line: thin, one verb per package, nothing heavy imported before it is needed."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3.errors import UserError

if TYPE_CHECKING:
    from smollm3.recipe import Recipe

MODEL = click.argument("model", metavar="MODEL")
MODEL_HELP = """
MODEL is a folder (a run's folder means its final model), a Hub id with an optional @revision,
or a short name (smollm3-3b).
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("smollm3"), prog_name="smollm3")
def cli() -> None:
    """Train, post-train, run and understand SmolLM3.

    \b
    smollm3 run nano                  a small SmolLM3 of your own in minutes
    smollm3 chat runs/nano            talk to it
    smollm3 run my-recipe.yaml        the same with your data
    """


@cli.command()
@click.argument("recipe", metavar="RECIPE")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/NAME].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one value.")
@click.option("--only", metavar="STAGE", help="Run just this stage.")
@click.option(
    "--redo", multiple=True, metavar="STAGE", help="Make it, and all made from it, again."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, its cost and time.")
def run(
    recipe: str,
    out: Path | None,
    overrides: tuple[str, ...],
    only: str | None,
    redo: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Run a recipe: a shipped name (smoke, nano, smollm3-3b) or a .yaml file.

    What is done is not done again; an interrupted run goes on where it stopped.

    \b
    smollm3 run nano
    smollm3 run nano --set stages.sft.lr.peak=1e-3 --redo sft
    smollm3 run smollm3-3b --dry-run
    """
    from smollm3.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if dry_run:
        _print_plan(loaded)
        return
    from smollm3.recipe.console import run_on_console

    run_on_console(loaded, out or Path("runs") / loaded.name, only, redo)


def _print_plan(recipe: Recipe) -> None:
    from smollm3 import plan
    from smollm3.recipe.console import wide_console

    wide_console().print(plan.render(plan.stage_costs(recipe)))


@cli.command(epilog=MODEL_HELP)
@MODEL
@click.option("--think/--no-think", default=True, help="Reason before answering.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=1024, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def chat(
    model: str,
    think: bool,
    system: str | None,
    temperature: float | None,
    max_tokens: int,
    seed: int,
) -> None:
    """Talk to a model. /think and /no_think switch modes, /exit ends.

    \b
    smollm3 chat runs/nano
    echo "Ana:3 Jan:5. Total?" | smollm3 chat runs/nano --no-think
    """
    from smollm3.infer import SamplingParams, load_engine
    from smollm3.infer.console import chat_on_console

    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    chat_on_console(load_engine(model), params, think, system)


@cli.command(epilog=MODEL_HELP)
@MODEL
@click.argument("prompt")
@click.option("--chat", "as_chat", is_flag=True, help="Put the prompt through the chat template.")
@click.option("--think/--no-think", default=True, help="With --chat: reason before answering.")
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def generate(
    model: str,
    prompt: str,
    as_chat: bool,
    think: bool,
    temperature: float | None,
    max_tokens: int,
    seed: int,
) -> None:
    """Continue PROMPT, or with --chat answer it.

    \b
    smollm3 generate runs/nano/stage1 "def read_file("
    smollm3 generate runs/nano/sft "Ana:3 Jan:5. Total?" --chat --no-think
    """
    from smollm3.infer import SamplingParams, load_engine

    engine = load_engine(model)
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
    message = {"role": "user", "content": prompt}
    pieces = (
        engine.chat_stream([message], enable_thinking=think, params=params)
        if as_chat
        else engine.stream(prompt, params)
    )
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


@cli.command()
@click.argument("run_folder", type=click.Path(path_type=Path))
def report(run_folder: Path) -> None:
    """Write RUN_FOLDER/report.html again from the files of a run."""
    from smollm3.report import write_report

    click.echo(write_report(run_folder))


def main() -> None:
    """Entry point: user errors become one line and exit code 2."""
    try:
        result: Any = cli.main(standalone_mode=False)
    except UserError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(2)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    sys.exit(result if isinstance(result, int) else 0)
