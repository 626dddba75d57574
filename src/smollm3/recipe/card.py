"""The card of an exported model, from what its run knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollm3 import checkpoint
from smollm3.data.spec import Source
from smollm3.eval.panel import panels_in
from smollm3.eval.results import RESULTS, rows_in
from smollm3.eval.spec import BenchmarkStage
from smollm3.files import read_json
from smollm3.recipe.graph import model_parents
from smollm3.report import model_card
from smollm3.train.spec import TrainStage

if TYPE_CHECKING:
    from smollm3.recipe.stages import StageInputs


def card_of(inputs: StageInputs, license: str | None) -> str:
    """Markdown. license: of the model, as the stage that exports it names it."""
    return model_card(
        inputs.recipe.name,
        inputs.lineage,
        license=license,
        base=_base_of(inputs),
        sources=_trained_on(inputs),
        claims=_claims(inputs),
        panels=panels_in(inputs.data.parent, inputs.recipe.stages),
        benchmarks=_benchmarks(inputs),
    )


def _base_of(inputs: StageInputs) -> str | None:
    """The model on the Hub that the first ancestor is."""
    first = inputs.lineage[0]["stage"] if inputs.lineage else ""
    if first in inputs.recipe.stages or Path(first).exists():
        return None
    return checkpoint.SHORT_NAMES.get(first, first)


def _trained_on(inputs: StageInputs) -> dict[str, Source]:
    """The sources of the ancestors that are train stages."""
    ancestors = {step["stage"] for step in inputs.lineage}
    return {
        source: inputs.source(source)
        for name, stage in inputs.recipe.stages.items()
        if isinstance(stage, TrainStage) and name in ancestors
        for source in stage.mixture
    }


def _claims(inputs: StageInputs) -> list[dict[str, Any]]:
    """What the run's finished eval stages have found."""
    folders = [inputs.data.parent / name for name in inputs.recipe.stages]
    cards = [f / "scorecard.json" for f in folders if (f / "scorecard.json").exists()]
    return [claim for card in cards for claim in read_json(card)["claims"]]


def _benchmarks(inputs: StageInputs) -> list[tuple[str, ...]]:
    """Rows of the scores of this model, from the run's benchmark stages."""
    parents = model_parents(inputs.recipe)
    mine = parents[inputs.name]
    return [
        row
        for name, stage in inputs.recipe.stages.items()
        if isinstance(stage, BenchmarkStage) and parents[name][:1] == mine
        if (file := inputs.data.parent / name / RESULTS).exists()
        for row in rows_in(read_json(file))
    ]
