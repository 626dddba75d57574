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
@click.option(
    "--imatrix",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Importance matrix for a GGUF of 4 bits, from smollm3 imatrix or llama-imatrix.",
)
@click.argument("out", required=False, type=click.Path(path_type=Path))
def export(model: str, to: str, private: bool, imatrix: Path | None, out: Path | None) -> None:
    """Write a model in the format of another program, or upload it.

    \b
    smollm3 export runs/nano --to gguf:f16 nano.gguf
    smollm3 export runs/nano --to gguf:q4_0 nano.gguf --imatrix nano.imatrix.gguf
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
    written = write(folder, to, out or folder, card=card, private=private, importance=imatrix)
    click.echo(written)


@click.command(epilog=MODEL_HELP)
@MODEL
@click.argument(
    "texts", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TEXT..."
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File to write, which llama-quantize reads, too.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1),
    default=100_000,
    show_default=True,
    metavar="N",
    help="Tokens to read at most.",
)
@click.option(
    "--chunk",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens that are read together.",
)
def imatrix(model: str, texts: tuple[Path, ...], out: Path, tokens: int, chunk: int) -> None:
    """Measure an importance matrix: which columns of the weights a text needs most.

    TEXT is plain text of the kind that the model is for, in its languages. A 4-bit GGUF made with
    the matrix (smollm3 export --imatrix) rounds these columns best.

    \b
    smollm3 imatrix runs/nano book.txt code.py --out nano.imatrix.gguf
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from smollm3.checkpoint import load_model, load_tokenizer
    from smollm3.checkpoint.gguf import imatrix as matrix
    from smollm3.files import read_text

    if out.suffix != ".gguf":
        raise UserError(f"{out}: give it a name that ends in .gguf")
    encode = load_tokenizer(model).encode
    ids = [i for path in texts for i in encode(read_text(path))][:tokens]
    rows = [ids[at : at + chunk] for at in range(0, len(ids) - chunk + 1, chunk)]
    if not rows:
        raise UserError(f"{texts[0]}: {len(ids)} tokens in all; give at least --chunk, {chunk}")
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    bar = track(rows, "reading", console=Console(stderr=True), transient=True)
    sums, count = matrix.measure(load_model(model, dtype, device), bar)
    matrix.write(out, sums, count, map(str, texts), chunk)
    click.echo(f"{out}: {len(sums)} matrices over {count:,} tokens")


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
