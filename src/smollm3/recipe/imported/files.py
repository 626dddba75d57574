"""Files in, one recipe out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from smollm3.config import read_document
from smollm3.errors import UserError
from smollm3.files import read_text
from smollm3.recipe.imported import handbook, nanotron
from smollm3.recipe.imported.part import Part
from smollm3.recipe.load import load_recipe, load_recipe_text, shipped_recipes
from smollm3.recipe.schema import Recipe
from smollm3.train.spec import TrainStage


@dataclass
class Imported:
    """values: the recipe as YAML holds it. recipe: the same, checked. notes: what to know."""

    values: dict[str, Any]
    recipe: Recipe
    notes: list[str]


def import_recipe(paths: Sequence[Path], name: str, gpus: int | None = None) -> Imported:
    """The stages of nanotron's and alignment-handbook's files, in this order, as one recipe.

    Several nanotron files of one run, each with the stages up to its own, give those stages once.
    Sources of a shipped recipe are taken from it. gpus: of handbook files that do not tell.
    Raises UserError with file and line for keys whose values have no counterpart here.
    """
    parts: list[Part] = []
    runs: list[tuple[nanotron.Nanotron, Part]] = []
    for path in paths:
        text = read_text(path)
        what = "neither a configuration of nanotron nor one of alignment-handbook"
        document = read_document(text, str(path), what)
        if "data_stages" in document.values:
            runs.append(nanotron.part_of(document))
            continue
        parts += nanotron.together(runs)
        runs = []
        if "dataset_mixture" not in document.values:
            raise UserError(f"{path}: {what}: no data_stages, no dataset_mixture")
        parts.append(handbook.part_of(document, text, gpus))
    return _joined([*parts, *nanotron.together(runs)], name)


def _joined(parts: Sequence[Part], name: str) -> Imported:
    values: dict[str, Any] = {"name": name, "seed": parts[0].seed}
    notes = [note for part in parts for note in part.notes]
    stages: dict[str, dict[str, Any]] = {}
    joined: set[str] = set()
    theta = None
    model = parts[0].model
    if model:
        theta = model["rope_theta"]
        values["model"] = {key: value for key, value in model.items() if value is not None}
        stages["tokenizer"] = {"kind": "tokenizer", "from": "HuggingFaceTB/SmolLM3-3B"}
        notes.append("the tokenizer is SmolLM3-3B's, which has the ids of Llama 3's")
    sources: dict[str, dict[str, Any]] = {}
    for part in parts:
        sources |= part.sources
        for wanted, stage in part.stages:
            if stage.get("rope_theta") == theta:
                stage.pop("rope_theta", None)
            theta = stage.get("rope_theta", theta)
            if stages and "from" in stage:
                notes.append(f"{wanted}: from {stage.pop('from')} there, from the stage above here")
            number = sum(key.rstrip("_0123456789") == wanted for key in stages)
            key = f"{wanted}_{number + 1}" if number else wanted
            stages[key] = stage
            if part.joined:
                joined.add(key)
    shipped = [load_recipe(recipe) for recipe in shipped_recipes()]
    known = {name: source for recipe in shipped for name, source in recipe.sources.items()}
    renamed = {key: _known(key, source, known) for key, source in sources.items()}
    values["sources"] = {
        new: _plain(known[new]) if new in known else sources[old] for old, new in renamed.items()
    }
    for key, stage in stages.items():
        if "mixture" not in stage:
            continue
        mixture = {renamed[source]: weight for source, weight in stage["mixture"].items()}
        if key in joined:
            mixture, note = _sizes(mixture, shipped)
            notes.append(f"{key}: {note}")
        stage["mixture"] = mixture
    notes += [
        f"{name}: no such source is known here; say where its texts are"
        for name, source in values["sources"].items()
        if name not in known and source["kind"] == "jsonl"
    ]
    values["stages"] = stages
    return Imported(values, load_recipe_text(_yaml(values), name), notes)


def _known(name: str, source: dict[str, Any], known: dict[str, Any]) -> str:
    """What a shipped recipe calls this source: by its files on the Hub, or by its name."""
    same = ("repo", "files", "rows")
    for other, shipped in known.items():
        if source["kind"] == "hub" and all(
            source.get(key) == getattr(shipped, key, None) for key in same
        ):
            return other
    return name


def _sizes(mixture: dict[str, float], shipped: Sequence[Recipe]) -> tuple[dict[str, float], str]:
    """Weights of sets that are joined whole: their sizes, where a shipped recipe mixes the same."""
    for recipe in shipped:
        for stage in recipe.stages.values():
            if isinstance(stage, TrainStage) and stage.mixture.keys() == mixture.keys():
                return dict(stage.mixture), f"joins whole sets; sizes as in {recipe.name}"
    return mixture, "joins whole sets: make their weights their sizes, here they are equal"


def _plain(source: Any) -> dict[str, Any]:
    values: dict[str, Any] = source.model_dump(exclude_unset=True, by_alias=True)
    return values


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, width=100, default_flow_style=None)


def recipe_text(imported: Imported, paths: Iterable[Path]) -> str:
    """The recipe as a YAML file, with the notes at its head."""
    head = [
        f"# From {', '.join(path.name for path in paths)}.",
        *(f"# {n}" for n in imported.notes),
    ]
    return "\n".join(head) + "\n" + _yaml(imported.values)
