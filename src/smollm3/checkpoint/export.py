"""A model in the format that another program reads."""

from __future__ import annotations

from pathlib import Path

from smollm3.checkpoint.gguf import imatrix
from smollm3.checkpoint.gguf.write import KINDS, export_gguf
from smollm3.checkpoint.hf import EMBEDDING, load_model, load_tokenizer, save_model
from smollm3.checkpoint.hub import CARD, push
from smollm3.checkpoint.locate import locate
from smollm3.checkpoint.mlx import export_mlx
from smollm3.checkpoint.weights import Weights
from smollm3.config import suggestion
from smollm3.errors import UserError
from smollm3.files import new_folder, write_atomic

HUB = "hub:USER/NAME"
# `hf` and `mlx` keep the dtype of the model's files.
FORMATS = (
    *("hf", "hf:float32", "hf:bfloat16", "hf:float16"),
    *(f"gguf:{kind}" for kind in KINDS),
    *("mlx", "mlx:4bit"),
)
WEIGHTED = ("gguf:q4_0", "gguf:q4_k_m")  # whose errors an importance matrix can weigh


def check_format(to: str) -> str:
    """`to` as FORMATS spells it, or `hub:USER/NAME`; a UserError with the nearest for others."""
    if to.startswith("hub:"):
        return to
    if to.lower() not in FORMATS:
        hint = suggestion(to.lower(), FORMATS) or f"; take {', '.join(FORMATS)} or {HUB}"
        raise UserError(f"{to!r} is not a format to export to{hint}")
    return to.lower()


def export(
    target: str | Path,
    to: str,
    out: Path,
    *,
    card: str | None = None,
    private: bool = False,
    importance: Path | None = None,
) -> str:
    """Write the model `target` to `out` and say where it is: the path, or the Hub's address.

    to: one of FORMATS, or `hub:USER/NAME`, which uploads the folder of `target` as it is and
        leaves `out` alone.
    out: a new folder, or for GGUF a file that ends in .gguf. It appears whole or not at all.
    card: the README.md of a folder, the model card of an upload. private: of a new repository.
    importance: the file of an importance matrix, for a GGUF below 8 bits.
    """
    to = check_format(to)
    if importance is not None and to not in WEIGHTED:
        raise UserError(f"--imatrix: {to} is not made with one; only {', '.join(WEIGHTED)} are")
    source = locate(target)
    if to.startswith("hub:"):
        return push(source, to.removeprefix("hub:"), card=card, private=private)
    kind, _, variant = to.partition(":")
    _check_out(out, kind)
    matrix = imatrix.read(importance) if importance is not None else None
    dtype = variant if kind == "hf" and variant else _stored_dtype(source)
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    if kind == "gguf":
        export_gguf(model, tokenizer, out, variant, matrix)
        return str(out)
    with new_folder(out) as folder:
        if kind == "mlx":
            export_mlx(model, tokenizer, folder, bits=4 if variant == "4bit" else None)
        else:
            save_model(model, tokenizer, folder, parent=source)
        if card is not None:
            write_atomic(folder / CARD, card)
    return str(out)


def _check_out(out: Path, kind: str) -> None:
    """Before the model is loaded: that takes a while."""
    if kind == "gguf":
        if out.suffix != ".gguf":
            raise UserError(f"{out}: a GGUF is one file; give it a name that ends in .gguf")
    elif out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose another folder")


def _stored_dtype(source: Path) -> str:
    """A GGUF's blocks are exact in float32 only."""
    return "float32" if source.is_file() else Weights(source).dtypes.get(EMBEDDING, "float32")
