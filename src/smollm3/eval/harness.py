"""Runs tasks of lm-evaluation-harness, and ours in its form, on a target."""

from __future__ import annotations

import difflib
import logging
import os
import platform
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

# Read when these are first imported: its bars and warnings would stand between ours.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

from smollm3.errors import UserError
from smollm3.eval.journal import Journal
from smollm3.eval.local import data_sets
from smollm3.eval.target import Settings, Target

EXTRA = "evaluating on benchmarks needs {}: pip install 'smollm3[eval]'"
BOOTSTRAP = 1000  # resamples for the error of what is no mean; the harness's 100,000 take minutes


@dataclass(frozen=True)
class Wanted:
    """What to run. few_shot: examples instead of the task's number. limit: items of each task.
    data: a folder of data sets. options: handed to tasks that read them, as RULER's lengths."""

    tasks: Sequence[str]
    few_shot: int | None = None
    limit: int | None = None
    data: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


def own_tasks() -> Path:
    """The folder of our own tasks."""
    return Path(str(resources.files("smollm3.eval").joinpath("tasks")))


def run_tasks(
    target: Target, wanted: Wanted, settings: Settings, journal: Journal, view: Any
) -> dict[str, Any]:
    """The harness's results, samples included; plain JSON but for what `json_of` makes plain.

    Raises UserError for unknown tasks, for data that is not there, and for tasks that would run a
    model's code outside the sandbox.
    """
    with _quiet():
        try:
            from lm_eval.evaluator import simple_evaluate

            from smollm3.eval.adapter import Adapter
        except ModuleNotFoundError as e:
            raise UserError(EXTRA.format(e.name)) from None
        with data_sets(wanted.data):
            options = {**wanted.options, "data": str(wanted.data) if wanted.data else None}
            manager = task_manager(wanted.tasks, options)
            adapter = Adapter(target, journal, settings, view)
            tasks = loaded(manager, wanted.tasks)
            found: dict[str, Any] = simple_evaluate(
                adapter,
                tasks=tasks,
                num_fewshot=wanted.few_shot,
                limit=wanted.limit,
                bootstrap_iters=BOOTSTRAP,
                task_manager=manager,
                apply_chat_template=settings.chat,
                fewshot_as_multiturn=settings.chat,
                log_samples=True,
            )
    found["smollm3"] = {"answers": adapter.answers, "answers_at_limit": adapter.at_limit}
    return found


def task_manager(names: Sequence[str], options: dict[str, Any]) -> Any:
    """The harness's index of the folders that have these tasks: of all it takes ten seconds."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.tasks.__file__).parent
    folders = [own_tasks()]
    folders += sorted({root / file.relative_to(root).parts[0] for file in _files(root, names)})
    return TaskManager(include_path=folders, include_defaults=False, metadata=options)


def loaded(manager: Any, names: Sequence[str]) -> list[str]:
    """The names, if all of them exist and may run here. UserError with the nearest otherwise."""
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, all_names(), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{name}: no such task{hint}")
        config = (manager.task_index[name].cfg or {}) if name in manager.task_index else {}
        if config.get("unsafe_code"):
            raise UserError(
                f"{name}: would run the model's code on this computer, not isolated; take "
                "humaneval_plus_sandbox or mbpp_plus_sandbox, which run it in the sandbox"
            )
    return list(names)


def all_names() -> list[str]:
    """Every task, group and tag, by a look at the files alone."""
    import lm_eval.tasks

    found = set()
    for root in (Path(lm_eval.tasks.__file__).parent, own_tasks()):
        for file in root.rglob("*.yaml"):
            found.update(_NAMES.findall(file.read_text(encoding="utf-8", errors="replace")))
    return sorted(found)


_NAMES = re.compile(r"""^["']?(?:task|group|tag)["']?:\s*["']?([\w-]+)["']?\s*$""", re.MULTILINE)
_TAGS = re.compile(r"""^\s*-\s*["']?([\w-]+)["']?\s*$""", re.MULTILINE)


def _files(root: Path, names: Sequence[str]) -> Iterator[Path]:
    wanted = set(names)
    for file in root.rglob("*.yaml"):
        text = file.read_text(encoding="utf-8", errors="replace")
        if wanted & {*_NAMES.findall(text), *_TAGS.findall(text)}:
            yield file


def versions() -> dict[str, str]:
    """Of what a score depends on."""
    names = ("lm_eval", "datasets", "torch", "smollm3")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and its libraries' warnings: what matters we say ourselves."""
    levels = {}
    for name in ("lm_eval", "datasets", "transformers", "absl", "evaluate", "rouge_score"):
        logger = logging.getLogger(name)
        levels[name] = logger.level
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
