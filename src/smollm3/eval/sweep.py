"""Which share of a merge is best: one evaluation for each, and a curve."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smollm3.checkpoint import locate
from smollm3.errors import UserError
from smollm3.eval.compare import leading
from smollm3.eval.console import EvalView
from smollm3.eval.measure import Measure
from smollm3.eval.plots import curves
from smollm3.eval.results import RESULTS, read_results
from smollm3.eval.run import benchmark
from smollm3.eval.spec import BenchmarkStage
from smollm3.files import folder_lock, new_folder, read_json, write_atomic, write_json
from smollm3.merge import merge

Curves = dict[str, list[tuple[float, Measure]]]


def sweep(
    first: str, second: str, shares: Sequence[float], stage: BenchmarkStage, seed: int, out: Path
) -> Curves:
    """Score share x first + (1 - share) x second for each share; sweep.json and sweep.svg in `out`.

    Killed and started again it goes on; a share that is done is read. One merged model at a time
    lies on the disk. Returns for each task its leading metric by share.
    """
    for share in shares:
        if not 0 <= share <= 1:
            raise UserError(f"--shares: {share:g} is not from 0 to 1")
    console = Console(highlight=False)
    asked = {"models": [first, second], "seed": seed, "stage": stage.model_dump(mode="json")}
    found: Curves = {}
    with folder_lock(out):
        _check_same(out / "asked.json", asked)
        for share in sorted(set(shares)):
            folder = out / f"share-{share:g}"
            if not (folder / RESULTS).exists():
                console.print(f"{share:g} x {first} + {1 - share:g} x {second}", soft_wrap=True)
                _score(first, second, share, stage, seed, out, folder, console)
            results = read_results(folder)
            for task in results.results["results"]:
                if (measure := leading(results, task)) is not None:
                    found.setdefault(task, []).append((share, measure))
        numbers = {t: [{"share": s, **m.numbers()} for s, m in row] for t, row in found.items()}
        write_json(out / "sweep.json", {**asked, "scores": numbers})
        title = f"Scores by the share of {first} beside {second}, 95% intervals"
        write_atomic(out / "sweep.svg", curves(found, title).encode())
    console.print(_table(found))
    console.print(out / "sweep.svg", soft_wrap=True)
    return found


def _score(
    first: str,
    second: str,
    share: float,
    stage: BenchmarkStage,
    seed: int,
    out: Path,
    folder: Path,
    console: Console,
) -> None:
    """Merge, evaluate into `folder`, and drop the merged model; its items stay for a second try."""
    merged, items = out / "merged" / f"{share:g}", out / "merged" / f"{share:g}.items.jsonl"
    if not merged.exists():
        weights = {locate(first): share, locate(second): 1 - share}
        with new_folder(merged) as temporary:
            merge({model: weight for model, weight in weights.items() if weight}, temporary)
    view = EvalView(console)
    with view.bar:
        outcome = benchmark(stage, merged, f"{share:g} x {first}", seed, items, view)
    with new_folder(folder) as temporary:
        outcome.write(temporary)
    shutil.rmtree(out / "merged")


def _check_same(file: Path, asked: dict[str, Any]) -> None:
    if not file.exists():
        write_json(file, asked)
    elif read_json(file) != asked:
        raise UserError(f"{file}: is of another sweep; choose another --out")


def _table(found: Curves) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("share", justify="right")
    for task in found:
        table.add_column(task, justify="right")
    for row in zip(*found.values(), strict=True):
        cells = [f"{100 * m.value:.1f} ({100 * m.low:.1f} to {100 * m.high:.1f})" for _, m in row]
        table.add_row(f"{row[0][0]:g}", *cells)
    return table
