"""Benchmarks in a recipe: looked at before its first stage, asked while a stage trains."""

from __future__ import annotations

from collections.abc import Callable

from smollm3.eval.spec import BenchmarkStage
from smollm3.recipe.schema import Stage
from smollm3.train.scores import Score
from smollm3.train.spec import Scores, TrainStage


def check_benchmarks(stage: Stage) -> None:
    """That what a stage is to be scored by exists: a run's first minute is the time to say so."""
    found = stage if isinstance(stage, BenchmarkStage) else None
    if isinstance(stage, TrainStage) and stage.scores is not None:
        found = _benchmark_of(stage.scores)
    if found is not None:
        from smollm3.eval.run import check  # PyTorch and the engine

        check(found)


def scorer(scores: Scores, seed: int, progress: Callable[[str, float, float, str], None]) -> Score:
    """Who scores the models of a train stage's steps."""
    from smollm3.eval.run import quick_scores  # PyTorch and the engine

    class View:
        def progress(self, what: str, done: int, total: int, fresh: int) -> None:
            progress("scoring", done, total, what)

    stage = _benchmark_of(scores)
    return lambda model, stopping: quick_scores(stage, model, seed, View(), stopping)


def _benchmark_of(scores: Scores) -> BenchmarkStage:
    asked = {"tasks": scores.tasks, "limit": scores.limit, "data": scores.data}
    return BenchmarkStage(kind="benchmark", **asked)
