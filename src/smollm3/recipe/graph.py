"""Which stage starts from which: the one place that reads parents out of a recipe."""

from __future__ import annotations

from smollm3.eval.spec import BenchmarkStage, EvalStage
from smollm3.recipe.schema import (
    ExportStage,
    MergeStage,
    Recipe,
    Stage,
    SynthSource,
    TokenizerStage,
)
from smollm3.synth.spec import SynthStage
from smollm3.train.spec import TrainStage


def makes_model(stage: Stage) -> bool:
    return isinstance(stage, TrainStage | MergeStage)


def model_parents(recipe: Recipe) -> dict[str, list[str]]:
    """For each stage the models it reads: stage names, folders, Hub ids; in order.

    A train stage without any starts from `recipe.model`. Absent `from` means the nearest stage
    above that makes a model.
    """
    parents: dict[str, list[str]] = {}
    above: str | None = None
    for name, stage in recipe.stages.items():
        match stage:
            case MergeStage():
                parents[name] = list(stage.from_)
            case EvalStage():
                named = [m for c in stage.claims for m in (c.model, c.baseline_model) if m]
                parents[name] = list(dict.fromkeys(named))
            case TrainStage() | BenchmarkStage() | ExportStage():
                start = stage.from_ or above
                parents[name] = [start] if start else []
                if start and isinstance(stage, BenchmarkStage) and stage.beside:
                    parents[name].append(stage.beside)
            case SynthStage():
                asked = stage.teachers().values()
                parents[name] = list(dict.fromkeys(t.model for t in asked if t.url is None))
            case TokenizerStage():
                parents[name] = []
        if makes_model(stage):
            above = name
    return parents


def tokenizer_of(recipe: Recipe, stage: str) -> str | None:
    """The tokenizer stage above `stage` that a model trained from nothing uses."""
    found: str | None = None
    for name, spec in recipe.stages.items():
        if name == stage:
            break
        if isinstance(spec, TokenizerStage):
            found = name
    return found


def sources_of(stage: Stage, recipe: Recipe) -> list[str]:
    """The sources that a stage reads; an eval reads the held-out parts its metrics name."""
    match stage:
        case TokenizerStage() | TrainStage():
            return list(stage.mixture)
        case SynthStage():
            return stage.prompts
        case EvalStage():
            metrics = stage.metrics
            named = [m.removeprefix("loss/") for m in metrics if m.startswith("loss/")]
            pairs = [
                s
                for s, spec in recipe.sources.items()
                if spec.format == "preference" and any(m.startswith("preference") for m in metrics)
            ]
            return list(dict.fromkeys([*named, *pairs]))
        case _:
            return []


def makers(stage: Stage, recipe: Recipe) -> list[str]:
    """The synth stages whose rows a stage reads."""
    read = [recipe.sources[name] for name in sources_of(stage, recipe)]
    return list(dict.fromkeys(s.from_ for s in read if isinstance(s, SynthSource)))


def downstream(recipe: Recipe, names: set[str]) -> set[str]:
    """`names` and every stage that is made from one of them."""
    parents = model_parents(recipe)
    found = set(names)
    for name, spec in recipe.stages.items():
        reads = {*parents[name], *makers(spec, recipe)}
        if isinstance(spec, TrainStage) and not parents[name]:
            reads.add(tokenizer_of(recipe, name) or "")
        if reads & found:
            found.add(name)
    return found


def final_model(recipe: Recipe) -> str | None:
    """The last stage that makes a model."""
    models = [name for name, stage in recipe.stages.items() if makes_model(stage)]
    return models[-1] if models else None
