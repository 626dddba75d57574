"""From a recipe's name or file to a checked Recipe; every mistake is one line with its place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from smollm3.checkpoint.export import check_format
from smollm3.errors import UserError
from smollm3.eval import check_claims
from smollm3.eval.spec import EvalStage
from smollm3.recipe import yaml
from smollm3.recipe.graph import makes_model, model_parents, tokenizer_of
from smollm3.recipe.schema import ExportStage, MergeStage, Recipe, TokenizerStage
from smollm3.train.spec import TrainStage

RESERVED = {"data"}  # a stage's folder lies beside these


def shipped_recipes() -> list[str]:
    folder = resources.files("smollm3") / "recipes"
    names = (file.name for file in folder.iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def load_recipe(target: str, overrides: Iterable[str] = ()) -> Recipe:
    """Read the shipped recipe or file `target`, apply `key.path=value` overrides, check it all."""
    name, text = _read(target)
    raw, lines = yaml.parse_yaml(text, name)
    if not isinstance(raw, dict):
        raise UserError(f"{name}: a recipe is a mapping with the keys name, sources and stages")
    for override in overrides:
        _apply(raw, override)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as e:
        raise UserError(_first_error(e, raw, lines, name)) from None
    for path, message in _problems(recipe):
        raise UserError(f"{_place(path, lines, name)}: {message}")
    return recipe


def _read(target: str) -> tuple[str, str]:
    path = Path(target)
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


def suggestion(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' where something known is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key.path=value")
    node: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if not isinstance(node, dict):
            raise UserError(f"--set {key}: '{part}' is inside a value, not a mapping")
        node = node.setdefault(part, {})
    if not isinstance(node, dict):
        raise UserError(f"--set {key}: '{last}' is inside a value, not a mapping")
    node[last] = yaml.parse_yaml(value or "null", f"--set {key}")[0]


def _place(path: yaml.Path, lines: dict[yaml.Path, int], name: str) -> str:
    """`file:line: dotted.path` of the nearest ancestor that the file holds."""
    known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), None)
    line = f":{lines[known]}" if known else ""
    return f"{name}{line}: {'.'.join(map(str, path))}"


def _first_error(
    error: ValidationError, raw: dict[str, Any], lines: dict[yaml.Path, int], name: str
) -> str:
    # A misspelt key is also a missing one; the spelling is what helps.
    errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path = _real_path(first["loc"], raw)
    where = _place(path, lines, name) if path else name
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            message = f"unknown key{suggestion(str(path[-1]), _known_keys(error, first['loc']))}"
        case "missing":
            message = "is required"
        case "union_tag_invalid":
            expected = context["expected_tags"].replace("'", "").split(", ")
            message = (
                f"unknown kind '{context['tag']}'{suggestion(str(context['tag']), expected)}; "
                f"known: {', '.join(expected)}"
            )
        case "union_tag_not_found":
            message = "has no `kind`"
        case "value_error":
            message = str(context["error"])
        case _:
            message = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{where}: {message}{more}"


def _real_path(loc: tuple[int | str, ...], raw: Any) -> yaml.Path:
    """pydantic's location without the union tags that it puts between keys."""
    path: list[str | int] = []
    node: Any = raw
    for i, part in enumerate(loc):
        if part in node if isinstance(node, dict) else isinstance(node, list):
            path.append(part)
            node = node[part]
        elif i == len(loc) - 1 and isinstance(node, dict) and node.get("kind") != part:
            path.append(part)  # the missing key itself
    return tuple(path)


def _known_keys(error: ValidationError, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the model at `loc` has."""
    spec: Any = Recipe
    for part in loc[:-1]:
        spec = _descend(spec, part)
    fields = getattr(spec, "model_fields", {})
    return [f.alias or n for n, f in fields.items()]


def _descend(spec: Any, part: int | str) -> Any:
    from typing import Annotated, get_args, get_origin

    if hasattr(spec, "model_fields"):
        for name, field in spec.model_fields.items():
            if part in (name, field.alias):
                return field.annotation
        return spec
    if get_origin(spec) is Annotated:
        return _descend(get_args(spec)[0], part)
    if get_origin(spec) is dict:
        return get_args(spec)[1]
    options = [a for a in get_args(spec) if hasattr(a, "model_fields")]
    for option in options:  # a discriminated union: `part` is the tag
        kind = option.model_fields.get("kind")
        if kind is not None and part in get_args(kind.annotation):
            return option
    for option in options:
        if part in option.model_fields:
            return _descend(option, part)
    return get_args(spec)[0] if get_args(spec) else spec


def _problems(recipe: Recipe) -> Iterable[tuple[yaml.Path, str]]:
    """What the shapes alone cannot say: names that must exist, stages that must come first."""
    parents = model_parents(recipe)
    earlier: list[str] = []
    for name, stage in recipe.stages.items():
        at: yaml.Path = ("stages", name)
        if name in RESERVED or not name.replace("_", "").replace("-", "").isalnum():
            yield at, "is not usable as a folder name; use letters, digits, - and _"
        yield from _parent_problems(recipe, at, parents[name], earlier)
        yield from _source_problems(recipe, at, stage)
        match stage:
            case TrainStage():
                yield from _train_problems(recipe, at, stage, parents[name])
            case ExportStage():
                yield from _export_problems(at, stage)
        earlier.append(name)


def _parent_problems(
    recipe: Recipe, at: yaml.Path, parents: list[str], earlier: list[str]
) -> Iterable[tuple[yaml.Path, str]]:
    name = str(at[-1])
    stage = recipe.stages[name]
    for parent in parents:
        if parent in earlier:
            if not makes_model(recipe.stages[parent]):
                yield at, f"starts from '{parent}', which makes no model"
        elif parent in recipe.stages:
            which = "itself" if parent == name else f"'{parent}', which comes later"
            yield at, f"starts from {which}; a parent comes before"
        elif isinstance(stage, EvalStage | MergeStage) and "/" not in parent:
            yield at, f"'{parent}' is not a stage above{suggestion(parent, earlier)}"
    if not parents and not isinstance(stage, TrainStage | TokenizerStage):
        yield at, "has no model to read; put a train stage above it"


def _source_problems(recipe: Recipe, at: yaml.Path, stage: Any) -> Iterable[tuple[yaml.Path, str]]:
    for source in getattr(stage, "mixture", {}):
        if source not in recipe.sources:
            hint = suggestion(source, recipe.sources)
            yield (*at, "mixture", source), f"unknown source{hint}"
    if isinstance(stage, EvalStage):
        try:
            formats = {name: source.format for name, source in recipe.sources.items()}
            check_claims(stage, list(recipe.stages), formats)
        except UserError as e:
            yield (*at, "claims"), str(e)


def _export_problems(at: yaml.Path, stage: ExportStage) -> Iterable[tuple[yaml.Path, str]]:
    for i, to in enumerate(stage.to):
        try:
            check_format(to)
        except UserError as e:
            yield (*at, "to", i), str(e)
        if to.startswith("hub:"):
            yield (*at, "to", i), "a run does not upload; use `smollm3 export RUN --to hub:...`"


def _train_problems(
    recipe: Recipe, at: yaml.Path, stage: TrainStage, parents: list[str]
) -> Iterable[tuple[yaml.Path, str]]:
    name = str(at[-1])
    if not parents:
        if recipe.model is None:
            yield at, "starts from nothing but the recipe has no `model`; add it, or `from`"
        if tokenizer_of(recipe, name) is None:
            yield at, "starts from nothing and no tokenizer stage is above it"
        if stage.is_preference:
            yield at, f"loss {stage.loss} needs a parent: its reference model"
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
