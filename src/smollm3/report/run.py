"""A run's folder as the report reads it; whatever is not there yet is simply absent."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smollm3 import checkpoint
from smollm3.data.spec import PREFERENCE_LOSSES
from smollm3.errors import UserError
from smollm3.eval.panel import Panel, read_panel
from smollm3.eval.results import RESULTS, rows_in
from smollm3.files import read_json
from smollm3.train.metrics import STEPS


@dataclass(frozen=True)
class StageRecord:
    """A stage of the recipe with what it left: stage.json and the rows of metrics.jsonl.

    benchmarks: (task, metric, score, interval, items) of each row of its table. state: "done",
    "begun" (it has metrics but no result yet) or "waiting". of: steps of a stage that has begun.
    """

    name: str
    config: dict[str, Any]
    state: str
    of: int | None = None
    record: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    scorecard: dict[str, Any] | None = None
    benchmarks: list[tuple[str, ...]] = field(default_factory=list)
    panel: Panel | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return str(self.config["kind"])

    @property
    def is_preference(self) -> bool:
        return self.config.get("loss") in PREFERENCE_LOSSES

    @property
    def tokens(self) -> int:
        """Tokens taken from all sources; 0 for a preference stage, which counts `pairs`."""
        return 0 if self.is_preference else self._taken

    @property
    def pairs(self) -> int:
        return self._taken if self.is_preference else 0

    @property
    def _taken(self) -> int:
        return sum(self.record.get("tokens", {}).values())

    @property
    def left(self) -> float | None:
        """Seconds until its last step, at the pace of the latest ones; None where the number of
        steps is not known."""
        if self.of is None or not self.steps:
            return None
        pace = statistics.median(row["seconds"] for row in self.steps[-20:])
        return float(pace * (self.of - self.steps[-1]["step"]))

    @property
    def skipped_steps(self) -> list[int]:
        return [row["step"] for row in self.steps if row.get("skipped")]


@dataclass(frozen=True)
class RunRecord:
    """skipped: (source, reason) -> documents left out when the data were prepared."""

    folder: Path
    name: str
    recipe: dict[str, Any]
    final: str | None
    stages: list[StageRecord]
    skipped: dict[tuple[str, str], int]
    parameters: int | None

    @property
    def done(self) -> list[StageRecord]:
        return [stage for stage in self.stages if stage.state == "done"]


def read_run(folder: Path) -> RunRecord:
    """Everything that a report shows; a folder that holds no run is a UserError."""
    if not (folder / "run.json").exists():
        raise UserError(f"{folder}: holds no run (no run.json); give the folder of `smollm3 run`")
    run = read_json(folder / "run.json")
    stages = [_read_stage(folder, name, run["recipe"]["stages"][name]) for name in run["order"]]
    models = [stage for stage in stages if (folder / stage.name / "config.json").exists()]
    return RunRecord(
        folder=folder,
        name=run["name"],
        recipe=run["recipe"],
        final=run["final"],
        stages=stages,
        skipped=_skipped_documents(folder / "data", stages),
        parameters=checkpoint.load_config(folder / models[-1].name).parameters if models else None,
    )


def _read_stage(folder: Path, name: str, config: dict[str, Any]) -> StageRecord:
    done = folder / name
    begun = folder / ".work" / name
    if not (done / "stage.json").exists():
        steps = _rows(begun / "metrics.jsonl")
        file = begun / STEPS
        of = read_json(file)["steps"] if steps and file.exists() else None
        return StageRecord(name, config, "begun" if steps else "waiting", of, steps=steps)
    scorecard, samples, answers = (
        done / f"{name}.json" for name in ("scorecard", "samples", "answers")
    )
    return StageRecord(
        name,
        config,
        "done",
        record=read_json(done / "stage.json"),
        steps=_rows(done / "metrics.jsonl"),
        scorecard=read_json(scorecard) if scorecard.exists() else None,
        benchmarks=rows_in(read_json(done / RESULTS)) if (done / RESULTS).exists() else [],
        panel=read_panel(done),
        samples=read_json(samples) if samples.exists() else [],
        answers=read_json(answers) if answers.exists() else [],
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON lines file; the last line of one that is being written may be a part."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _skipped_documents(data: Path, stages: list[StageRecord]) -> dict[tuple[str, str], int]:
    """Of the prepared sources that the stages read; others are left from before a change."""
    read = {
        digest
        for stage in stages
        for digest in stage.record.get("inputs", {}).get("sources", {}).values()
    }
    return {
        (content["name"], reason): documents
        for content in map(read_json, sorted(data.glob("*/meta.json")))
        if content["digest"] in read
        for reason, documents in content["skipped"].items()
    }
