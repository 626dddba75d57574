"""One evaluation: every item asked once, and kept as it comes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smollm3.errors import UserError
from smollm3.eval.compare import scores_of
from smollm3.eval.harness import Wanted, check_tasks, run_tasks, versions
from smollm3.eval.journal import Journal
from smollm3.eval.results import ITEMS, Evaluated, write_results
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
        "threads": getattr(target, "threads", None),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    return Outcome(found, config, machine)


def evaluated(model: str | Path, **options: Any) -> Engine:
    """The engine that an evaluation asks. Without draft tokens: it runs many answers at once, where
    these cost more than they save."""
    return load_engine(model, **{"speculation": False, **options})


def asked_for(stage: BenchmarkStage, seed: int) -> tuple[Settings, Wanted]:
    """What a recipe's stage asks for, and how. UserError for a suite or a folder that is not."""
    if stage.data is not None and not Path(stage.data).is_dir():
        raise UserError(f"data: {stage.data}: no such folder of data sets")
    settings, names, skip = plan(stage.suite, stage.tasks, {"think": stage.think, "seed": seed})
    data = Path(stage.data) if stage.data is not None else None
    return settings, Wanted(names, stage.few_shot, stage.limit, data, skip=skip)


def check(stage: BenchmarkStage) -> None:
    """That its tasks exist and their data can be had: hours before they are asked."""
    settings, wanted = asked_for(stage, 0)
    check_tasks(wanted, settings)


def benchmark(
    stage: BenchmarkStage, model: Path, name: str, seed: int, items: Path, view: View
) -> Outcome:
    """What a recipe's stage asks for, of the model at a place. name: of the model, for people.
    view: as of `run`."""
    settings, wanted = asked_for(stage, seed)
    # Beside another a GGUF's blocks in float32, as what is trained from it: else rounding is a
    # difference.
    exact = {"dtype": "float32"} if stage.beside and model.is_file() else {}
    with evaluated(model, **exact) as engine:
        return run(EngineTarget(engine, name, settings), wanted, settings, items, stage.suite, view)


class LeftOff(Exception):
    """Whoever watches an evaluation wants it no longer; what is finished is kept."""


def quick_scores(
    stage: BenchmarkStage, model: Path, seed: int, view: View, stopping: Callable[[], bool]
) -> dict[str, float] | None:
    """task -> its leading score, of a model's folder while it is trained; parts of a group are not
    told one by one. None: left off, since `stopping` says so. Items are kept beside the folder.

    Nothing of this process that training could depend on is another afterwards: its threads, and
    the states of the generators that the harness seeds.
    """

    class Watched:
        def progress(self, what: str, done: int, total: int, fresh: int) -> None:
            if stopping():
                raise LeftOff
            view.progress(what, done, total, fresh)

    items = model.with_name(f"{model.name}-{ITEMS}")
    with _undisturbed():
        try:
            found = benchmark(stage, model, model.name, seed, items, Watched()).found
        except LeftOff:
            return None
    scores = scores_of(Evaluated(model, model.name, found))
    parts = {part for group in found.get("group_subtasks", {}).values() for part in group}
    return {task: score for task, score in scores.items() if task not in parts}


@contextmanager
def _undisturbed() -> Iterator[None]:
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
