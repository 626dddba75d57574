"""`smollm3 export`, `tokenizer`, `conformance`: to and from other programs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from smollm3.cli.options import MODEL, MODEL_HELP
from smollm3.errors import UserError


@click.command(epilog=MODEL_HELP)
@MODEL
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    help="Format to write: hf, gguf:q4_k_m, mlx:4bit, hub:ME/IT, ...",
)
@click.option("--private", is_flag=True, help="Make a new repository on the Hub private.")
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


@click.group()
def tokenizer() -> None:
    """Make a tokenizer."""


@tokenizer.command()
@click.argument("out", type=click.Path(path_type=Path))
def build(out: Path) -> None:
    """Rebuild the exact SmolLM3 tokenizer.json in OUT, without the Hub.

    Reads the vocabulary from the package llama-models (pip install --no-deps llama-models).
    """
    from smollm3.tokenizer import build as tokenizer_build

    tokenizer_build.build(out)
    click.echo(f"{out / 'tokenizer.json'}: sha256 {tokenizer_build.SHA256}")


@click.command()
@click.argument("target", required=False)
@click.option(
    "--make",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Only write the checkpoint, for a server to load.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the results as JSON.",
)
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
