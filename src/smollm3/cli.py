"""The command line: thin, one verb per package, nothing heavy imported before it is needed."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from smollm3.errors import UserError

if TYPE_CHECKING:
    from smollm3.recipe import Recipe

MODEL = click.argument("model", metavar="MODEL")
MODEL_HELP = """
MODEL is a folder (a run's folder means its final model), a .gguf file, a Hub id with an optional
@revision, or a short name (smollm3-3b, smollm2-135m).
"""
CONTEXT = click.option(
    "--context", type=int, metavar="TOKENS", help="Longer than trained: turns on YaRN."
)


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
    from smollm3.train import World, follow

    if int(os.environ.get("RANK", "0")):  # under torchrun: the first process leads
        follow(World.from_environment())
        return
    run_on_console(loaded, out or Path("runs") / loaded.name, only, redo)


def _print_plan(recipe: Recipe) -> None:
    from smollm3 import plan
    from smollm3.recipe.console import wide_console

    wide_console().print(plan.render(plan.stage_costs(recipe)))


@cli.command(epilog=MODEL_HELP)
@MODEL
@click.option("--think/--no-think", default=True, help="Reason before answering.")
@click.option("--system", help="System prompt.")
@CONTEXT
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=1024, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def chat(
    model: str,
    think: bool,
    system: str | None,
    context: int | None,
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
    chat_on_console(load_engine(model, context=context), params, think, system)


@cli.command(epilog=MODEL_HELP)
@MODEL
@click.argument("prompt")
@click.option("--chat", "as_chat", is_flag=True, help="Put the prompt through the chat template.")
@click.option("--think/--no-think", default=True, help="With --chat: reason before answering.")
@CONTEXT
@click.option("--temperature", type=float, help="0 is greedy [the model's own].")
@click.option("--max-tokens", type=int, default=256, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def generate(
    model: str,
    prompt: str,
    as_chat: bool,
    think: bool,
    context: int | None,
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

    engine = load_engine(model, context=context)
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


@cli.command(epilog=MODEL_HELP)
@MODEL
@click.option("--to", required=True, metavar="FORMAT", help="hf, gguf:q4_k_m, mlx:4bit, hub:ME/IT")
@click.option("--private", is_flag=True, help="Of a new repository on the Hub.")
@click.argument("out", required=False, type=click.Path(path_type=Path))
def export(model: str, to: str, private: bool, out: Path | None) -> None:
    """Write a model in the format of another program, or upload it.

    \b
    smollm3 export runs/nano --to gguf:f16 nano.gguf
    smollm3 export runs/nano --to mlx nano-mlx
    smollm3 export smollm3-3b --to hf:bfloat16 smollm3
    smollm3 export runs/nano --to hub:me/nano
    """
    from smollm3.checkpoint import locate
    from smollm3.checkpoint.export import export as write
    from smollm3.files import read_json
    from smollm3.report import model_card

    if out is None and not to.startswith("hub:"):
        raise UserError(f"--to {to} needs OUT, where to write")
    folder = locate(model)
    record = folder / "stage.json"
    lineage = read_json(record)["lineage"] if record.exists() else []
    card = model_card(Path(model).name, lineage)
    click.echo(write(folder, to, out or folder, card=card, private=private))


@cli.group()
def tokenizer() -> None:
    """Tokenizers."""


@tokenizer.command()
@click.argument("out", type=click.Path(path_type=Path))
def build(out: Path) -> None:
    """Rebuild the exact SmolLM3 tokenizer.json in OUT, without the Hub.

    Reads the vocabulary from the package llama-models (pip install --no-deps llama-models).
    """
    from smollm3 import tokenizer_build

    tokenizer_build.build(out)
    click.echo(f"{out / 'tokenizer.json'}: sha256 {tokenizer_build.SHA256}")


@cli.command()
@click.argument("target", required=False)
@click.option("--make", type=click.Path(path_type=Path), help="Only write the kit's checkpoint.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the rows here.")
def conformance(target: str | None, make: Path | None, json_file: Path | None) -> None:
    """Check another implementation of SmolLM3 on a tiny checkpoint made for it.

    TARGET is ours, transformers, llama.cpp, mlx, or the URL of an OpenAI-compatible server that
    serves the folder written by --make. Ends with 0 if everything passes, else with 1.

    \b
    smollm3 conformance transformers
    smollm3 conformance --make kit && vllm serve kit/plain
    smollm3 conformance http://localhost:8000/v1
    """
    from smollm3 import conformance as kit
    from smollm3.files import write_json
    from smollm3.recipe.console import wide_console

    if make is not None:
        kit.make(make)
        click.echo(f"{make / 'plain'}: serve this, then check its URL")
        return
    if target is None:
        raise UserError(f"give a TARGET: {', '.join(kit.TARGETS)} or a URL")
    found = kit.run(target)
    if json_file is not None:
        write_json(json_file, found.to_json())
    wide_console().print(found.table())
    sys.exit(found.exit_code)


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
