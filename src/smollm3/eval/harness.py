"""Runs tasks of lm-evaluation-harness, and ours in its form, on a target."""

from __future__ import annotations

import difflib
import logging
import platform
import random
import re
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partialmethod
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np

from smollm3.errors import UserError
from smollm3.eval import apart, code
from smollm3.eval.journal import Journal
from smollm3.eval.local import data_sets
from smollm3.eval.results import own_parts
from smollm3.eval.ruler import Files
from smollm3.eval.ruler import harness as ruler
from smollm3.eval.target import Settings, Target

EXTRA = "evaluating on benchmarks needs {}: pip install 'smollm3[eval]'"
RANDOM_SEED, FEW_SHOT_SEED = 0, 1234  # the harness's own, so that its examples are ours
BOOTSTRAP = 1000  # resamples for the error of what is no mean; the harness's 100,000 take minutes


@dataclass(frozen=True)
class Wanted:
    """What to run. few_shot: examples instead of the task's number. limit: items of each task.
    judge: who rates answers, where a task wants that.
    data: a folder of data sets. lengths, files: of RULER's prompts. skip: leave out, and name, what
    cannot be had, as a suite does; else that is an error."""

    tasks: Sequence[str]
    few_shot: int | None = None
    limit: int | None = None
    data: Path | None = None
    lengths: Sequence[int] = (4096,)
    files: Files = field(default_factory=Files)
    skip: bool = False
    judge: Target | None = None


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
        with _needing_extra():
            from lm_eval.evaluator import evaluate

            from smollm3.eval.adapter import Adapter
        adapter = Adapter(target, journal, settings, view)
        found: dict[str, Any] = {"results": {}, "samples": {}}
        skipped: dict[str, str] = {}
        of_harness = [name for name in wanted.tasks if name not in apart.NAMES]
        own = apart.apart_of(wanted, settings, skipped)
        with data_sets(wanted.data) as missing:
            asked = replace(wanted, tasks=of_harness)
            tasks = load_tasks(asked, target, settings, missing, skipped) if of_harness else {}
            if not own and not tasks.get("tasks"):
                raise UserError("nothing left to evaluate: " + "; ".join(skipped.values()))
            if tasks.get("tasks"):
                found = evaluate(
                    adapter,
                    tasks,
                    limit=wanted.limit,
                    bootstrap_iters=BOOTSTRAP,
                    apply_chat_template=settings.chat,
                    fewshot_as_multiturn=settings.chat,
                    log_samples=True,
                )
        for task in own:
            samples = task.samples(adapter)
            _add(found, own_parts(task.name, task.metrics, samples, task.total, task.version))
    found["smollm3"] = {
        "skipped": skipped,
        "answers": adapter.answers,
        "answers_at_limit": adapter.at_limit,
    }
    return found


def check_tasks(wanted: Wanted, settings: Settings) -> None:
    """That `run_tasks` would begin, but for RULER's prompts, which need a model."""
    with _quiet():
        with _needing_extra():
            import lm_eval.evaluator  # noqa: F401
        apart.apart_of(wanted, settings, {})
        names = [n for n in wanted.tasks if n not in apart.NAMES and not ruler.is_ruler(n)]
        with data_sets(wanted.data) as missing:
            if names:
                load_tasks(replace(wanted, tasks=names), None, settings, missing, {})


def _add(found: dict[str, Any], parts: dict[str, Any]) -> None:
    for part, value in parts.items():
        found.setdefault(part, {}).update(value)


def load_tasks(
    wanted: Wanted,
    target: Target | None,
    settings: Settings,
    missing: Collection[tuple[str, str | None, str]],
    skipped: dict[str, str],
) -> Any:
    """What the harness's TaskManager makes of the names, with the seeds and examples that its own
    command line sets. target: only RULER, whose prompts it measures, needs one. missing: splits
    that were asked for and are not there. skipped: gets the tasks that are left out, with why."""
    named = [name for name in wanted.tasks if not ruler.is_ruler(name)]
    manager = task_manager(named)
    random.seed(RANDOM_SEED)
    np.random.seed(FEW_SHOT_SEED)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in wanted.tasks:
        try:
            if not ruler.is_ruler(name):
                check_name(manager, name)
            loaded = _load(manager, name, _specs(name, wanted, target, settings))
            for task_name, task in loaded["tasks"].items():
                _set_examples(task_name, task, wanted, missing)
                if "ifeval" in task_name:  # also of a group
                    _need_words(task_name)
        except UserError as e:
            if not wanted.skip:
                raise
            skipped[name] = str(e)
            continue
        for part, entries in found.items():
            entries.update(loaded.get(part, {}))
    return found


def _load(manager: Any, name: str, specs: list[Any]) -> Any:
    """A task's own code runs when it is loaded: what that needs and has not is told in one line."""
    try:
        return manager.load(specs)
    except UserError:
        raise
    except Exception as e:
        said = " ".join(str(e).split())[:300]
        raise UserError(f"{name}: cannot be loaded ({type(e).__name__}: {said})") from None


def _need_words(name: str) -> None:
    """IFEval cuts answers into words by a file of nltk, which the task fetches when it is loaded,
    if it can; without it the answers would be written and the scores then fail."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        raise UserError(
            f"{name}: needs punkt_tab of nltk; where there is a network: python -m nltk.downloader "
            "punkt_tab, and NLTK_DATA names its folder elsewhere"
        ) from None


def _specs(name: str, wanted: Wanted, target: Target | None, settings: Settings) -> list[Any]:
    """What the TaskManager is to load for a name."""
    if not ruler.is_ruler(name):
        return [name]
    assert target is not None
    ruler.need_known(wanted.lengths, target.context)
    return list(
        ruler.configs(name, wanted.lengths, wanted.limit, target.count, wanted.files, settings.chat)
    )


def _set_examples(
    name: str, task: Any, wanted: Wanted, missing: Collection[tuple[str, str | None, str]]
) -> None:
    shots = task.get_config("num_fewshot")
    if wanted.few_shot is not None and shots != 0:  # a task's 0 is meant
        shots = wanted.few_shot
    task.set_config(key="num_fewshot", value=shots or 0)
    task.set_fewshot_seed(seed=FEW_SHOT_SEED)
    split = task.config.fewshot_split or task.config.training_split
    gone = (task.DATASET_PATH, task.DATASET_NAME, split)
    if shots and gone in missing:
        raise UserError(
            f"{wanted.data}: has not the {split} split of {gone[0]}, from which {name} takes its "
            f"{shots} examples; add it, or give --few-shot 0"
        )


def task_manager(names: Sequence[str]) -> Any:
    """The harness's index of the folders that have these tasks: of all it takes ten seconds."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    root, wanted = Path(lm_eval.tasks.__file__).parent, set(names)
    files = [file for file, names_in in _names_by_file(root).items() if wanted & names_in]
    folders = [own_tasks()]
    folders += sorted({root / file.relative_to(root).parts[0] for file in files})
    return TaskManager(include_path=folders, include_defaults=False)


def check_name(manager: Any, name: str) -> None:
    """That a task exists and may run here. UserError with the nearest name otherwise."""
    if name not in manager.all_tasks:
        near = difflib.get_close_matches(name, [*all_names(), *apart.NAMES], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{name}: no such task{hint}")
    config = (manager.task_index[name].cfg or {}) if name in manager.task_index else {}
    if (config.get("metadata") or {}).get("sandbox"):
        code.need_sandbox(name)
    if config.get("unsafe_code"):
        raise UserError(
            f"{name}: would run the model's code on this computer, not isolated; take "
            "humaneval_plus_sandbox or mbpp_plus_sandbox, which run it in the sandbox"
        )


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


@cache
def _names_by_file(root: Path) -> dict[Path, set[str]]:
    """Whatever a file may be asked for by; there are some 14,000 files."""
    texts = ((f, f.read_text(encoding="utf-8", errors="replace")) for f in root.rglob("*.yaml"))
    return {file: {*_NAMES.findall(text), *_TAGS.findall(text)} for file, text in texts}


def versions() -> dict[str, str]:
    """Of what a score depends on."""
    names = ("lm_eval", "datasets", "torch", "smollm3")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


@contextmanager
def _needing_extra() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as e:
        raise UserError(EXTRA.format(e.name)) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log, its libraries' warnings and their bars, which would stand between
    ours: what matters we say ourselves."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    bar, tqdm.__init__ = tqdm.__init__, partialmethod(tqdm.__init__, disable=True)
    levels = {}
    for name in ("lm_eval", "datasets", "transformers", "absl", "evaluate", "rouge_score"):
        logger = logging.getLogger(name)
        levels[name] = logger.level
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = bar
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
