"""Runs the stages of a recipe into a folder; what is done is not done again.

A finished stage is a folder that appeared by one rename, with `stage.json` inside: its config,
its key (config + checksums of its inputs, recorded when those were made) and its own checksum.
An interrupted train stage resumes from its last training checkpoint under `.work/`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3 import checkpoint
from smollm3.errors import UserError
from smollm3.eval.spec import EvalStage
from smollm3.files import folder_lock, new_folder, read_json, sha256_file, sha256_json, write_json
from smollm3.recipe.environment import environment
from smollm3.recipe.graph import (
    downstream,
    final_model,
    makers,
    makes_model,
    model_parents,
    sources_of,
    tokenizer_of,
)
from smollm3.recipe.notices import telling
from smollm3.recipe.schema import KEPT, Recipe, Stage, TokenizerStage
from smollm3.recipe.scoring import check_benchmarks
from smollm3.recipe.stages import StageInputs, digests, file_revision, run_stage
from smollm3.recipe.trackers import Trackers
from smollm3.report import write_report
from smollm3.synth.spec import MANNER as ASKING
from smollm3.synth.spec import SynthStage
from smollm3.train import WorkerGroup
from smollm3.train.mirror import Mirror
from smollm3.train.spec import MANNER, TrainStage

BEGUN = "recipe.json"


@dataclass
class Events:
    """What a run tells its caller, for progress on a terminal or lines in a log."""

    stage_skipped: Callable[[str], None]
    stage_started: Callable[[str, Stage], None]
    progress: Callable[[str, float, float, str], None]  # what, done, of, detail
    stage_finished: Callable[[str, dict[str, Any]], None]
    warn: Callable[[str], None]


class Run:
    """A recipe and the folder that it fills."""

    def __init__(self, recipe: Recipe, out: Path, events: Events) -> None:
        self.recipe = recipe
        self.out = out
        self.events = events
        self.parents = model_parents(recipe)
        self.trackers: Trackers | None = None

    def execute(self, only: str | None = None, redo: Iterable[str] = ()) -> None:
        """Run what is not done. `only` one stage; `redo` these and all that is made from them."""
        recipe = self.recipe
        with telling(recipe.notify, recipe.name, self.out, self.events.warn):
            self._execute(only, redo)

    def _execute(self, only: str | None, redo: Iterable[str]) -> None:
        for name in [*([only] if only else []), *redo]:
            if name not in self.recipe.stages:
                raise UserError(f"no stage '{name}'; stages: {', '.join(self.recipe.stages)}")
        with folder_lock(self.out):
            again = downstream(self.recipe, set(redo))
            self._check_recipe(again)
            for name in again:
                self._forget(name)
            self._write_run_json()
            ranks = self.recipe.ranks(self.recipe.parallel)
            self._check_benchmarks(only)
            with self._tracked(), WorkerGroup(ranks, self.out) as workers:
                for name, stage in self.recipe.stages.items():
                    if only and name != only:
                        continue
                    self._stage(name, stage, workers)
            self._publish_results()

    def _check_benchmarks(self, only: str | None) -> None:
        for name, stage in self.recipe.stages.items():
            if not self._is_done(name) and only in (None, name):
                try:
                    check_benchmarks(stage)
                except UserError as e:
                    raise type(e)(f"stages.{name}: {e}") from e

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        if not self.recipe.track:
            yield
            return
        config = _plain(self.recipe)
        with closing(
            Trackers(self.recipe.track, self.recipe.name, self.out, config, self.events.warn)
        ) as self.trackers:
            yield

    # -- one stage ---------------------------------------------------------------------------

    def _stage(self, name: str, stage: Stage, workers: WorkerGroup) -> None:
        folder = self.out / name
        inputs = self._inputs(name, stage)
        if self._is_done(name):
            record = read_json(folder / "stage.json")
            known = record["inputs"]["sources"]
            sources = known | self._changed_data(stage, inputs, record)
            if record["key"] == self._key(name, stage, sources, inputs):
                if self._work(name).exists():
                    self._clear(name)
                self.events.stage_skipped(name)
                return
            new = [source for source in known if sources[source] != known[source]]
            which = f" (the data of {', '.join(new)} have changed)" if new else ""
            raise UserError(
                f"{folder}: made from other inputs than the recipe's now{which}; "
                f"--redo {name} makes it again, --out OTHER keeps it"
            )
        self._check_parents(inputs)
        self.events.stage_started(name, stage)
        started = time.time()
        write_json(inputs.work / BEGUN, self._config(name, stage))
        try:
            result = run_stage(stage, inputs, workers, self.events.progress, self.events.warn)
        except UserError as e:
            raise type(e)(f"stages.{name}: {e}") from e
        with new_folder(folder) as temporary:
            result.save(temporary)
            record = {
                "name": name,
                "kind": stage.kind,
                "key": self._key(name, stage, result.sources, inputs),
                "config": _plain(stage),
                "recipe": self._config(name, stage),
                "inputs": {
                    "parents": inputs.digests,
                    "sources": result.sources,
                    "revisions": result.revisions,
                },
                "digest": _digest(stage, temporary),
                "metrics": result.metrics,
                "tokens": result.tokens,
                "positions": result.positions,
                "lineage": inputs.lineage,
                "environment": environment(self.recipe),
                "seconds": time.time() - started,
                "started": started,
                "finished": time.time(),
            }
            write_json(temporary / "stage.json", record)
        self._clear(name)
        self._publish_results()
        self.events.stage_finished(name, record)

    def _changed_data(
        self, stage: Stage, inputs: StageInputs, record: dict[str, Any]
    ) -> dict[str, str]:
        """Checksums of the sources whose files are not those that the finished stage has read, by
        their sizes and times; files that are gone are not asked for again."""
        known = record["inputs"].get("revisions", {})
        changed = [
            source
            for source, revision in known.items()
            if file_revision(self.recipe.sources[source]) not in (None, revision)
        ]
        return digests(stage, inputs, changed, self.events.progress) if changed else {}

    def _inputs(self, name: str, stage: Stage) -> StageInputs:
        """Parents as folders, with their checksums and lineage as recorded when they were made."""
        parents: dict[str, Path] = {}
        digests: dict[str, str] = {}
        lineage: list[dict[str, Any]] = []
        for parent in self.parents[name]:
            if parent in self.recipe.stages:
                record = self._record_of(parent, name)
                folder, digest = self.out / parent, record["digest"]
                known = [*record["lineage"], {"stage": parent, "digest": digest}]
                lineage += [a for a in known if a not in lineage]
            else:
                folder = checkpoint.locate(parent)
                digest = checkpoint.digest(folder)
                lineage.append({"stage": parent, "digest": digest})
            parents[parent], digests[parent] = folder, digest
        tokenizer_stage = tokenizer_of(self.recipe, name) if not parents else None
        if isinstance(stage, TrainStage) and tokenizer_stage is not None:
            digests[tokenizer_stage] = self._record_of(tokenizer_stage, name)["digest"]
        for maker in makers(stage, self.recipe):
            digests[maker] = self._record_of(maker, name)["digest"]
        return StageInputs(
            name=name,
            recipe=self.recipe,
            parents=parents,
            digests=digests,
            lineage=lineage,
            tokenizer=self.out / tokenizer_stage if tokenizer_stage else None,
            data=self.out / "data",
            work=self._work(name),
            trackers=self.trackers,
        )

    def _check_parents(self, inputs: StageInputs) -> None:
        """Refuse a parent whose files are not those that were recorded when it was made."""
        for name, digest in inputs.digests.items():
            folder = inputs.parents.get(name, self.out / name)
            if _digest(self.recipe.stages.get(name), folder) != digest:
                raise UserError(
                    f"{folder}: damaged, its files do not match their checksum; "
                    f"--redo {name} makes it again"
                )

    def _record_of(self, parent: str, child: str) -> dict[str, Any]:
        if not self._is_done(parent):
            raise UserError(f"stage '{child}' needs '{parent}', which is not done; run it first")
        record: dict[str, Any] = read_json(self.out / parent / "stage.json")
        return record

    def _is_done(self, name: str) -> bool:
        return (self.out / name / "stage.json").exists()

    def _work(self, name: str) -> Path:
        return self.out / ".work" / name

    def _forget(self, name: str) -> None:
        """Set a stage to be made again. Its folder stays until the new one takes its place."""
        self._clear(name)
        (self.out / name / "stage.json").unlink(missing_ok=True)

    def _clear(self, name: str) -> None:
        """Delete what a stage needs only until it is done; copies elsewhere first, so that a kill
        here is made up for when the stage is next skipped."""
        states = self.recipe.states_of(name)
        if states is not None and isinstance(self.recipe.stages[name], TrainStage):
            try:
                Mirror(states, self.events.warn).forget()
            except OSError as e:
                self.events.warn(f"states: {states}: cannot be deleted ({e})")
        shutil.rmtree(self._work(name), ignore_errors=True)

    def _key(self, name: str, stage: Stage, sources: dict[str, str], inputs: StageInputs) -> str:
        return sha256_json(
            {
                "config": self._config(name, stage),
                "parents": inputs.digests,
                "sources": sources,
            }
        )

    def _config(self, name: str, stage: Stage) -> dict[str, Any]:
        """Everything in the recipe that this stage's result depends on: not how it is computed."""
        recipe = self.recipe
        own = _without(_plain(stage), ASKING if isinstance(stage, SynthStage) else MANNER)
        config: dict[str, Any] = {"stages": {name: own}, "seed": recipe.seed}
        used = sources_of(stage, recipe)
        config["sources"] = {s: _plain(recipe.sources[s]) for s in used}
        if isinstance(stage, TrainStage) and not self.parents[name]:
            config["model"] = _plain(recipe.model)
        told = isinstance(stage, TrainStage) and recipe.chat.model_fields_set
        if isinstance(stage, TokenizerStage) or told:
            config["chat"] = _plain(recipe.chat)
        return config

    # -- the folder and the recipe -----------------------------------------------------------

    def _check_recipe(self, again: set[str]) -> None:
        """Refuse a folder whose finished or begun stages were made by another recipe."""
        for name, stage in self.recipe.stages.items():
            made_by = None if name in again else self._made_by(name)
            if made_by is None:
                continue
            changes = [
                f"{key} was {_short(a)}, is {_short(b)}"
                for key, a, b in _differences(made_by, self._config(name, stage), "")
            ]
            if changes:
                raise UserError(
                    f"{self.out}: holds another recipe's '{name}': {'; '.join(changes)}; "
                    f"choose another folder with --out, or make it again with --redo {name}"
                )

    def _made_by(self, name: str) -> Any:
        """What the recipe said when this stage was made, or begun and left with steps that count;
        else None."""
        if self._is_done(name):
            return read_json(self.out / name / "stage.json")["recipe"]
        work = self._work(name)
        if not (work / BEGUN).exists() or not any(work.glob("checkpoints/step-*")):
            return None
        return read_json(work / BEGUN)

    def _write_run_json(self) -> None:
        write_json(
            self.out / "run.json",
            {
                "name": self.recipe.name,
                "recipe": _plain(self.recipe),
                "order": list(self.recipe.stages),
                "final": final_model(self.recipe),
            },
        )

    def _publish_results(self) -> None:
        """Keep the run's score card and report at the state of the last finished stage."""
        for name, stage in self.recipe.stages.items():
            if isinstance(stage, EvalStage) and self._is_done(name):
                card = read_json(self.out / name / "scorecard.json")
                write_json(self.out / "scorecard.json", card)
        write_report(self.out)


def _digest(stage: Stage | None, folder: Path) -> str | None:
    """Checksum of what other stages read of it; `stage` is None for a model from outside."""
    if isinstance(stage, SynthStage):
        return sha256_file(folder / KEPT)
    if stage is None or isinstance(stage, TokenizerStage) or makes_model(stage):
        return checkpoint.digest(folder)
    return None


def _plain(spec: Any) -> Any:
    return spec.model_dump(mode="json", by_alias=True) if spec is not None else None


def _without(value: Any, keys: frozenset[str]) -> Any:
    """A JSON value without these keys, however deep."""
    if not isinstance(value, dict):
        return value
    return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}


def _differences(a: Any, b: Any, path: str) -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) wherever two JSON values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in dict.fromkeys([*a, *b]):
            below = f"{path}.{key}" if path else key
            found += _differences(a.get(key), b.get(key), below)
        return found
    return [] if a == b else [(path, a, b)]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
