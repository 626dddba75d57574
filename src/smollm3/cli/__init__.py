"""The command line: thin, one module per part of a model's life, nothing heavy imported before it
is needed."""

from __future__ import annotations

import gc
import importlib.metadata
import sys
from typing import Any

import click

from smollm3.cli.data import data
from smollm3.cli.eval import evaluation
from smollm3.cli.exchange import conformance, export, imatrix, tokenizer
from smollm3.cli.finetune import finetune, merge
from smollm3.cli.inference import bench, chat, generate
from smollm3.cli.recipes import recipe_group, report, run
from smollm3.cli.serving import serve
from smollm3.cli.synth import synth
from smollm3.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(importlib.metadata.version("smollm3"), prog_name="smollm3")
def cli() -> None:
    """Train, post-train, run and understand SmolLM3.

    \b
    smollm3 run nano                  a small SmolLM3 of your own in minutes
    smollm3 chat runs/nano            talk to it
    smollm3 serve runs/nano           let other programs and your browser talk to it
    smollm3 run my-recipe.yaml        the same with your data
    smollm3 finetune MODEL talks.jsonl   a model made your own
    """


for command in (
    run,
    finetune,
    recipe_group,
    data,
    synth,
    report,
    chat,
    generate,
    serve,
    bench,
    evaluation,
    export,
    imatrix,
    merge,
    tokenizer,
    conformance,
):
    cli.add_command(command)


def main() -> None:
    """Entry point: user errors become one line and their exit code."""
    gc.set_threshold(50_000)  # imports and vocabularies are no garbage; looking took 0.2 s
    try:
        result: Any = cli.main(standalone_mode=False)
    except UserError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(e.exit_code)
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(e.exit_code)
    except click.ClickException as e:
        context = getattr(e, "ctx", None)
        hint = f"; see {context.command_path} --help" if context else ""
        click.echo(f"error: {UserError(e.format_message().rstrip('.'))}{hint}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    sys.exit(result if isinstance(result, int) else 0)
