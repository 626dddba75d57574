"""`smollm3 finetune` on a terminal: the plan and its reasons, then an ordinary run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from smollm3 import plan
from smollm3.data.detect import source_of
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.files import read_text, write_atomic
from smollm3.recipe.console import run_on_console, wide_console
from smollm3.recipe.finetune import FILE, Wish, planned
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.schema import SynthSource
from smollm3.train.spec import TrainStage


def finetune_on_console(wish: Wish, out: Path | None, dry_run: bool, watch: bool) -> None:
    """Plan, write the recipe, run it. A recipe that lies in the run's folder is taken as it is."""
    console = wide_console()
    if dry_run:
        with tempfile.TemporaryDirectory() as cache:
            text, said = planned(wish, Path(cache))
        recipe = load_recipe_text(text, FILE)
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(plan.render(plan.stage_costs(recipe)))
        console.print(text, highlight=False, markup=False, soft_wrap=True)
        return
    folder = out or Path("runs") / wish.name
    file = folder / FILE
    if file.exists():
        text = read_text(file)
        check_same(text, wish, file)
        console.print(f"{file}: taken as it is; delete it to plan anew", highlight=False)
    else:
        text, said = planned(wish, folder / "data")
        for line in said:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        write_atomic(file, text)
        console.print(f"{file}: every line of it can be changed", highlight=False)
    run_on_console(load_recipe_text(text, str(file)), folder, None, (), watch)


def check_same(text: str, wish: Wish, file: Path) -> None:
    """UserError where the recipe that lies there is for another model or other data."""
    recipe = load_recipe_text(text, str(file))
    wanted = [source_of(where) for where in (wish.data, wish.pairs) if where]
    stages = [s for s in recipe.stages.values() if isinstance(s, TrainStage)]
    if (
        sorted(map(_place, wanted)) != sorted(map(_place, recipe.sources.values()))
        or not stages
        or stages[0].from_ != wish.base
    ):
        raise UserError(f"{file}: is for another model or other data; take another --out")


def _place(source: Source | SynthSource) -> tuple[str, ...]:
    return getattr(source, "repo", ""), *getattr(source, "files", ())
