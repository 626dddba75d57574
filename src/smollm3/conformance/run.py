"""From the name of a target to its report."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

from smollm3.conformance.kit import Kit, make_kit
from smollm3.conformance.local import Mlx, Ours, Transformers
from smollm3.conformance.probes import run_probes
from smollm3.conformance.reference import Reference
from smollm3.conformance.result import Report, ResultRow
from smollm3.conformance.server import HttpTarget, LlamaCpp
from smollm3.conformance.target import Target
from smollm3.errors import UserError

# Each is made with the folder that Kit.write left.
TARGETS: dict[str, Callable[[Path], Target]] = {
    "ours": Ours,
    "transformers": Transformers,
    "folder": Transformers,
    "mlx": Mlx,
    "llama.cpp": LlamaCpp,
    "gguf": LlamaCpp,
}


def run(
    target: str, keep: Path | None = None, on_row: Callable[[ResultRow], None] | None = None
) -> Report:
    """Check a target: one of TARGETS, or the URL of an OpenAI-compatible server of the kit.

    keep: folder in which the kit's files stay; otherwise they are temporary.
    Raises UserError for an unknown target, a missing package, a server that does not answer.
    """
    is_url = target.startswith(("http://", "https://"))
    if not is_url and target not in TARGETS:
        raise UserError(f"{target}: not a target; give one of {', '.join(TARGETS)} or a URL")
    kit = make_kit()
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary) / "kit"
        if keep or not is_url:
            write_kit(kit, folder, gguf=TARGETS.get(target) is LlamaCpp)
        implementation = HttpTarget(target, kit.tokenizer) if is_url else TARGETS[target](folder)
        return check(implementation, kit, on_row)


def write_kit(kit: Kit, folder: Path, gguf: bool) -> None:
    """`Kit.write`, but never over a folder that holds anything else."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder")
    ours = {"plain", "yarn", "plain.gguf", "yarn.gguf"}
    if folder.exists() and {path.name for path in folder.iterdir()} - ours:
        raise UserError(f"{folder}: holds other files; give a new or empty folder")
    kit.write(folder, gguf)


def make(folder: Path) -> None:
    """Write the kit for a server that is to be checked: serve `folder`/plain, or plain.gguf (where
    the package gguf is installed), and run the kit on its URL."""
    write_kit(make_kit(), folder, gguf=importlib.util.find_spec("gguf") is not None)


def check(
    target: Target, kit: Kit | None = None, on_row: Callable[[ResultRow], None] | None = None
) -> Report:
    """Run all probes on a target, which is closed at the end; `on_row` sees each row at once."""
    rows = []
    try:
        for row in run_probes(target, Reference(kit or make_kit())):
            rows.append(row)
            if on_row:
                on_row(row)
    finally:
        target.close()
    return Report(target.name, rows)
