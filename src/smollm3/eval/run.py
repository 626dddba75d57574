"""One evaluation: every item asked once, and kept as it comes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smollm3.errors import UserError
from smollm3.eval.harness import Wanted, run_tasks, versions
from smollm3.eval.journal import Journal
from smollm3.eval.results import write_results
from smollm3.eval.spec import BenchmarkStage
from smollm3.eval.suites import suite_of
from smollm3.eval.target import EngineTarget, Settings, Target
from smollm3.infer import Engine, load_engine

if TYPE_CHECKING:
    from smollm3.eval.adapter import View  # which needs the harness

ALIASES = {"arc": ("arc_easy", "arc_challenge")}  # pairs that tables print as one


@dataclass(frozen=True)
class Outcome:
    """found: as the harness gives it. config: what decides it; run: what differs between two runs,
    time and machine."""

    found: dict[str, Any]
    config: dict[str, Any]
    run: dict[str, Any]

    def write(self, folder: Path) -> None:
        write_results(folder, self.found, self.config, self.run)


def plan(
    suite: str | None, tasks: list[str], asked: dict[str, Any]
) -> tuple[Settings, list[str], bool]:
    """How a model is asked, in which tasks, and whether one that cannot be had is left out, as a
    suite does. asked: those of `Settings` that were given."""
    chosen = suite_of(suite) if suite else None
    settings = chosen.settings if chosen else Settings()
    # Reasoning is of chats: think alone means both.
    if asked.get("think") and asked.get("chat") is None:
        asked = {**asked, "chat": True}
    given = {key: value for key, value in asked.items() if value is not None}
    if given.get("chat") is False:
        settings = replace(settings, chat=False, think=False)
    names = chosen.tasks if chosen else [e for name in tasks for e in ALIASES.get(name, (name,))]
    return replace(settings, **given), names, chosen is not None


def run(
    target: Target, wanted: Wanted, settings: Settings, items: Path, suite: str | None, view: View
) -> Outcome:
    """Evaluate; `items` keeps what is finished, and a second run goes on from there, or with more.

    view: its `progress(what, done, total, fresh)` is told of every item.
    """
    began = time.monotonic()
    with Journal(items, {"model": target.origin(), "settings": settings.to_dict()}) as journal:
        before = len(journal)
        found = run_tasks(target, wanted, settings, journal, view)
        made = len(journal) - before
    config = {
        "model": target.name,
        "model_source": "smollm3",
        "suite": suite,
        "tasks": list(wanted.tasks),
        "few_shot": wanted.few_shot,
        "limit": wanted.limit,
        "settings": settings.to_dict(),
        "versions": versions(),
        "prompts_cut": getattr(target, "cut", 0),
    }
    machine = {
        "seconds": round(time.monotonic() - began, 3),
        "items_made": made,
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    return Outcome(found, config, machine)


def evaluated(model: str | Path, **options: Any) -> Engine:
    """The engine that an evaluation asks. Without draft tokens: it runs many answers at once, where
    these cost more than they save."""
    return load_engine(model, **{"speculation": False, **options})


def benchmark(
    stage: BenchmarkStage, model: Path, name: str, seed: int, items: Path, view: View
) -> Outcome:
    """What a recipe's stage asks for, of the model at a place. name: of the model, for people.
    view: as of `run`."""
    if stage.data is not None and not Path(stage.data).is_dir():
        raise UserError(f"data: {stage.data}: no such folder of data sets")
    asked = {"think": stage.think, "seed": seed}
    settings, names, skip = plan(stage.suite, stage.tasks, asked)
    data = Path(stage.data) if stage.data is not None else None
    wanted = Wanted(names, stage.few_shot, stage.limit, data, skip=skip)
    # Beside another a GGUF's blocks in float32, as what is trained from it: else rounding is a
    # difference.
    exact = {"dtype": "float32"} if stage.beside and model.is_file() else {}
    with evaluated(model, **exact) as engine:
        return run(EngineTarget(engine, name, settings), wanted, settings, items, stage.suite, view)
