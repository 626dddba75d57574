"""The sources of a recipe, prepared before a run needs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from smollm3 import data
from smollm3.data.preparation import Executor, make
from smollm3.errors import UserError
from smollm3.recipe.graph import model_parents, tokenizer_of
from smollm3.recipe.identity import load_tokenizer
from smollm3.recipe.runner import Events, Run
from smollm3.recipe.schema import Recipe
from smollm3.tokenizer import Tokenizer
from smollm3.train.spec import TrainStage


def prepare_sources(
    recipe: Recipe, out: Path, names: Sequence[str], execute: Executor
) -> Iterator[tuple[str, data.Shard | None]]:
    """(source, its shard) of the sources that train stages read, prepared into <out>/data, where a
    run finds them; no shard where the executor has only been given the work.

    names: of the sources, none for all. The tokenizer stage is run first if it was not.
    """
    if unknown := [name for name in names if name not in recipe.sources]:
        raise UserError(f"no source '{unknown[0]}'; sources: {', '.join(recipe.sources)}")
    users = {
        source: stage
        for stage, spec in reversed(recipe.stages.items())
        if isinstance(spec, TrainStage)
        for source in spec.mixture
    }
    tokenizers: dict[str, Tokenizer] = {}
    for name in names or [source for source in recipe.sources if source in users]:
        if name not in users:
            raise UserError(f"sources.{name}: no train stage reads it")
        root = _root(recipe, users[name])
        if root not in tokenizers:
            tokenizers[root] = _tokenizer(recipe, out, root)
        source = recipe.source(name, out)
        folder = make(
            name, source, tokenizers[root], out / "data", recipe.seed, execute,
            others=recipe.others(source, out),
        )  # fmt: skip
        yield name, data.Shard.open(folder) if execute.waits else None


def _root(recipe: Recipe, stage: str) -> str:
    """Where a stage's tokenizer comes from: a tokenizer stage, or a model from outside."""
    parents = model_parents(recipe)
    while stage in recipe.stages and parents[stage]:
        stage = parents[stage][0]
    return stage if stage not in recipe.stages else tokenizer_of(recipe, stage) or stage


def _tokenizer(recipe: Recipe, out: Path, root: str) -> Tokenizer:
    if root in recipe.stages:
        quiet = Events(*(lambda *_: None for _ in range(5)))
        Run(recipe, out, quiet).execute(only=root)
    return load_tokenizer(recipe, out / root if root in recipe.stages else root)


def tokens_needed(recipe: Recipe) -> dict[str, float]:
    """Tokens that all train stages together take from each source, padding included; of stages
    that count in epochs or pairs, none."""
    needed: dict[str, float] = {}
    for stage in recipe.stages.values():
        if not isinstance(stage, TrainStage) or stage.is_preference:
            continue
        tokens = stage.tokens or (stage.steps or 0) * stage.batch * stage.context
        total = sum(stage.mixture.values())
        for name, weight in stage.mixture.items():
            needed[name] = needed.get(name, 0.0) + tokens * weight / total
    return needed
