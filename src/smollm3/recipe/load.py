"""From a recipe's name or file to a checked Recipe; every mistake is one line with its place."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path as FilePath
from typing import Any

from smollm3 import checkpoint
from smollm3.checkpoint.export import check_format
from smollm3.config import Path, read_document, suggestion
from smollm3.data.steps import across
from smollm3.errors import UserError
from smollm3.eval import check_claims
from smollm3.eval.spec import BenchmarkStage, EvalStage
from smollm3.eval.suites import suite_of
from smollm3.recipe.graph import makes_model, model_parents, tokenizer_of
from smollm3.recipe.schema import ExportStage, MergeStage, Recipe, SynthSource, TokenizerStage
from smollm3.synth.spec import SynthStage
from smollm3.train.spec import TrainStage

RESERVED = {"data"}  # a stage's folder lies beside these


def shipped_recipes() -> list[str]:
    folder = resources.files("smollm3") / "recipes"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(target: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read the shipped recipe or file `target`, apply `key.path=value` overrides, check it all."""
    name, text = _read(target)
    return load_recipe_text(text, name, overrides)


def load_recipe_text(text: str, name: str, overrides: Iterable[str] = ()) -> Recipe:
    """As `load_recipe`, of a text; `name` is for errors."""
    what = "a recipe is a mapping with the keys name, sources and stages"
    document = read_document(text, name, what)
    for override in overrides:
        document.set(override)
    recipe = document.read(Recipe)
    for path, message in _problems(recipe):
        raise UserError(f"{document.place(path)}: {message}")
    return recipe


def _read(target: str) -> tuple[str, str]:
    path = FilePath(target)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        try:
            return str(path), path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: no such recipe file") from None
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: not UTF-8 (byte {e.start}); save it as UTF-8") from None
        except OSError as e:
            raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    if target not in (names := shipped_recipes()):
        raise UserError(
            f"no recipe '{target}'{suggestion(target, names)}; shipped: {', '.join(names)}; "
            "or give a .yaml file"
        )
    file = resources.files("smollm3") / "recipes" / f"{target}.yaml"
    return target, file.read_text(encoding="utf-8")


def _problems(recipe: Recipe) -> Iterable[tuple[Path, str]]:
    """What the shapes alone cannot say: names that must exist, stages that must come first."""
    yield from _order_problems(recipe)
    parents = model_parents(recipe)
    earlier: list[str] = []
    for name, stage in recipe.stages.items():
        at: Path = ("stages", name)
        if name in RESERVED or not name.replace("_", "").replace("-", "").isalnum():
            yield at, "is not usable as a folder name; use letters, digits, - and _"
        yield from _parent_problems(recipe, at, parents[name], earlier)
        yield from _source_problems(recipe, at, stage, earlier)
        match stage:
            case TrainStage():
                yield from _train_problems(recipe, at, stage, parents[name])
            case BenchmarkStage() if stage.suite is not None:
                try:
                    suite_of(stage.suite)
                except UserError as e:
                    yield (*at, "suite"), str(e).removeprefix("--suite: ")
            case ExportStage():
                yield from _export_problems(at, stage)
        earlier.append(name)


def _parent_problems(
    recipe: Recipe, at: Path, parents: list[str], earlier: list[str]
) -> Iterable[tuple[Path, str]]:
    name = str(at[-1])
    stage = recipe.stages[name]
    for parent in parents:
        if parent in earlier:
            if not makes_model(recipe.stages[parent]):
                yield at, f"starts from '{parent}', which makes no model"
        elif parent in recipe.stages:
            which = "itself" if parent == name else f"'{parent}', which comes later"
            yield at, f"starts from {which}; a parent comes before"
        elif isinstance(stage, EvalStage | MergeStage | SynthStage) and not _is_outside(parent):
            yield at, f"'{parent}' is not a stage above{suggestion(parent, earlier)}"
    if not parents and not isinstance(stage, TrainStage | TokenizerStage | SynthStage):
        yield at, "has no model to read; put a train stage above it"


def _is_outside(model: str) -> bool:
    """Whether it is no misspelt stage: a folder, a Hub id, a short name."""
    return "/" in model or model in checkpoint.NAMES


def _source_problems(
    recipe: Recipe, at: Path, stage: Any, earlier: list[str]
) -> Iterable[tuple[Path, str]]:
    named: list[tuple[Path, str]] = [
        *(((*at, "mixture", source), source) for source in getattr(stage, "mixture", {})),
        *(((*at, "prompts", i), source) for i, source in enumerate(getattr(stage, "prompts", []))),
    ]
    for place, source in named:
        spec = recipe.sources.get(source)
        if spec is None:
            yield place, f"unknown source{suggestion(source, recipe.sources)}"
        elif isinstance(spec, SynthSource):
            yield from _synth_problems(recipe, source, spec, earlier)
    if isinstance(stage, EvalStage):
        try:
            formats = {name: source.format for name, source in recipe.sources.items()}
            outside = [m for m in model_parents(recipe)[str(at[-1])] if _is_outside(m)]
            check_claims(stage, [*recipe.stages, *outside], formats)
        except UserError as e:
            yield (*at, "claims"), str(e)


def _order_problems(recipe: Recipe) -> Iterable[tuple[Path, str]]:
    """A source drops what those above it have; of two that named each other nothing would stay."""
    above: list[str] = []
    for name, source in recipe.sources.items():
        if not isinstance(source, SynthSource):
            for other in across(source):
                if other not in above:
                    at: Path = ("sources", name, "steps")
                    yield (
                        at,
                        f"across: '{other}' is no source above '{name}'{suggestion(other, above)}",
                    )
        above.append(name)


def _synth_problems(
    recipe: Recipe, name: str, source: SynthSource, earlier: list[str]
) -> Iterable[tuple[Path, str]]:
    """Of a source that a stage makes, for a stage that reads it."""
    at: Path = ("sources", name)
    maker = recipe.stages.get(source.from_)
    if not isinstance(maker, SynthStage):
        yield (*at, "from"), f"'{source.from_}' is no synth stage of the recipe"
    elif source.from_ not in earlier:
        yield (*at, "from"), f"'{source.from_}' comes after a stage that reads its rows"
    elif (source.format == "preference") != (maker.pairs is not None):
        made = "conversations: format: chat" if maker.pairs is None else "pairs: format: preference"
        yield (*at, "format"), f"'{source.from_}' makes {made}"


def _export_problems(at: Path, stage: ExportStage) -> Iterable[tuple[Path, str]]:
    for i, to in enumerate(stage.to):
        try:
            check_format(to)
        except UserError as e:
            yield (*at, "to", i), str(e)
        if to.startswith("hub:"):
            yield (*at, "to", i), "a run does not upload; use `smollm3 export RUN --to hub:...`"


def _train_problems(
    recipe: Recipe, at: Path, stage: TrainStage, parents: list[str]
) -> Iterable[tuple[Path, str]]:
    name = str(at[-1])
    if not parents:
        if recipe.model is None:
            yield at, "starts from nothing but the recipe has no `model`; add it, or `from`"
        if tokenizer_of(recipe, name) is None:
            yield at, "starts from nothing and no tokenizer stage is above it"
        if stage.is_preference:
            yield at, f"loss {stage.loss} needs a parent: its reference model"
        if stage.validation and stage.validation.retain:
            yield (*at, "validation", "retain"), "needs a parent, whose weights it goes back to"
    parent = recipe.stages.get(parents[0]) if parents else None
    if stage.carry and not isinstance(parent, TrainStage):
        yield (*at, "carry"), "needs a parent that is a train stage of this recipe"
    for source in stage.mixture:
        wanted = recipe.sources[source].format == "preference"
        if wanted != stage.is_preference:
            yield (
                (*at, "mixture", source),
                f"has format {recipe.sources[source].format}, which loss {stage.loss} cannot use",
            )
    parallel = stage.parallel or recipe.parallel
    if problem := stage.problem_of(parallel):
        yield at, problem
    ranks = recipe.ranks(parallel)
    if ranks % parallel.processes:
        yield at, f"parallel is for {parallel.processes} processes, processes: {ranks}"
    groups = ranks // (parallel.tp * parallel.cp)
    rows = stage.batch // groups
    if stage.batch % groups:
        what = "processes" if groups == ranks else "groups of processes"
        yield (*at, "batch"), f"{stage.batch} cannot be split over {groups} {what}"
    if stage.micro_batch and rows % stage.micro_batch:
        yield (*at, "micro_batch"), f"does not divide the {rows} rows of each process"
