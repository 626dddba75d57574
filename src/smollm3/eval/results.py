"""What an evaluation leaves: results.json in the harness's form, samples, and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from smollm3.errors import UserError
from smollm3.eval.measure import Measure, Z, mean, share
from smollm3.files import read_json, sha256_json, write_atomic, write_json

if TYPE_CHECKING:
    from rich.table import Table

RESULTS = "results.json"
ITEMS = "items.jsonl"
RUN = "run.json"
_HARNESS = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
)


def json_of(value: Any) -> Any:
    """The same as plain JSON: what has no form there becomes its name, never an address."""
    match value:
        case Mapping():
            return {str(k): json_of(v) for k, v in value.items()}
        case str() | bool() | None | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Sequence() | set() | frozenset():
            return [json_of(v) for v in value]
    if hasattr(value, "tolist"):
        return json_of(value.tolist())
    return getattr(value, "__qualname__", type(value).__name__)


def measures(found: Mapping[str, Any]) -> dict[str, dict[str, Measure]]:
    """task -> "metric,filter" -> the value with its 95% interval, from the samples.

    Shares of right answers get Wilson's interval, other means of items the normal one. Metrics
    that are no mean of items, as BLEU, are left to the harness's own error.
    """
    out: dict[str, dict[str, Measure]] = {}
    for task, results in found["results"].items():
        samples = _samples_of(task, found)
        out[task] = {}
        for name, value in results.items():
            metric, _, filter_name = name.partition(",")
            if not filter_name or metric.endswith("_stderr") or not _is_number(value):
                continue
            items = [s for s in samples if s.get("filter") == filter_name]
            values = [float(s[metric]) for s in items if _is_number(s.get(metric))]
            measure = _mean(values) if values else None
            if measure is None or not math.isclose(measure.value, value, abs_tol=1e-9):
                error = results.get(f"{metric}_stderr,{filter_name}")
                half = Z * error if _is_number(error) else 0.0
                measure = Measure(float(value), value - half, value + half, len(items))
            out[task][name] = measure
    return out


def own_parts(
    name: str,
    metrics: Sequence[str],
    samples: Sequence[Mapping[str, Any]],
    total: int,
    version: float,
) -> dict[str, Any]:
    """The parts of the harness's results that a task of ours adds which it does not run.

    metrics: of which each is the mean of the samples that have it. total: items there are.
    """
    results: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(samples)}
    for metric in metrics:
        values = [sample[metric] for sample in samples if metric in sample]
        if values:
            measure = mean(values)
            results[f"{metric},none"] = measure.value
            results[f"{metric}_stderr,none"] = (measure.high - measure.value) / Z
    return {
        "results": {name: results},
        "samples": {name: list(samples)},
        "versions": {name: version},
        "n-shot": {name: 0},
        "higher_is_better": {name: {metric: metric != "unrated" for metric in metrics}},
        "n-samples": {name: {"original": total, "effective": len(samples)}},
        "configs": {name: {"task": name, "metadata": {"version": version}}},
    }


def _samples_of(task: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a task, of a group those of all its tasks."""
    samples = found["samples"]
    if task in samples:
        return list(samples[task])
    children = found.get("group_subtasks", {}).get(task, [])
    return [s for child in children for s in _samples_of(child, found)]


def _mean(values: Sequence[float]) -> Measure:
    if set(values) <= {0.0, 1.0}:
        return share([value == 1.0 for value in values])
    return mean(values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def write_results(
    folder: Path, found: Mapping[str, Any], config: Mapping[str, Any], run: Mapping[str, Any]
) -> Path:
    """results.json and samples_TASK.jsonl, which depend on nothing but model, tasks and settings;
    run.json has what differs from run to run: time, machine."""
    plain: dict[str, Any] = {name: json_of(found[name]) for name in _HARNESS if name in found}
    for settings in plain.get("configs", {}).values():
        metadata = settings.get("metadata")
        if isinstance(metadata, dict):
            metadata.pop("config_source", None)  # where packages lie changes no score
    plain["config"] = json_of(config)
    for task, samples in found["samples"].items():
        lines = (json.dumps(json_of(s), ensure_ascii=False) for s in samples)
        text = "".join(f"{line}\n" for line in lines)
        write_atomic(folder / f"samples_{task}.jsonl", text.encode("utf-8", "surrogatepass"))
    plain["smollm3"] = {
        "prompts": {task: _prompts(samples) for task, samples in found["samples"].items()},
        **json_of(found.get("smollm3", {})),
        "intervals": {
            task: {name: m.numbers() for name, m in by_name.items()}
            for task, by_name in measures(found).items()
        },
    }
    write_json(folder / RUN, dict(run))
    write_json(folder / RESULTS, plain)
    return folder / RESULTS


def _prompts(samples: Sequence[Mapping[str, Any]]) -> str:
    """A checksum of all prompts of a task: equal where two runs asked the same."""
    return sha256_json([s.get("prompt_hash") for s in samples])[:16]


@dataclass(frozen=True)
class Evaluated:
    """A results.json, ours or the harness's own."""

    path: Path
    model: str
    results: dict[str, Any]

    def measure(self, task: str, metric: str) -> Measure | None:
        """Of a task and a "metric,filter" (or a metric alone, with any filter)."""
        values = self.results["results"].get(task)
        if values is None:
            return None
        name = metric if metric in values else _with_filter(metric, values)
        if name is None or not _is_number(values[name]):
            return None
        ours = self.results.get("smollm3", {}).get("intervals", {}).get(task, {}).get(name)
        if ours:
            return Measure(**ours)
        base, _, filter_name = name.partition(",")
        error = values.get(f"{base}_stderr,{filter_name}")
        half = Z * error if _is_number(error) else 0.0
        counted = self.results.get("n-samples", {}).get(task, {}).get("effective", 0)
        return Measure(values[name], values[name] - half, values[name] + half, counted)


def _with_filter(metric: str, values: Mapping[str, Any]) -> str | None:
    return next((name for name in values if name.partition(",")[0] == metric), None)


class _Numbers(BaseModel):
    value: float
    low: float
    high: float
    n: int


class _Ours(BaseModel):
    intervals: dict[str, dict[str, _Numbers]] = Field(default_factory=dict)


class _Form(BaseModel):
    """What is read of a results.json, which others write too."""

    results: dict[str, dict[str, Any]]
    config: dict[str, Any] = Field(default_factory=dict)
    counted: dict[str, dict[str, int]] = Field(default_factory=dict, alias="n-samples")
    smollm3: _Ours = _Ours()


def read_results(path: Path) -> Evaluated:
    """From a results.json or the folder that holds one. UserError for a file of another form."""
    file = path / RESULTS if path.is_dir() else path
    value = read_json(file)
    try:
        _Form.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise UserError(f"{file}: no results of an evaluation ({said})") from None
    model = value.get("config", {}).get("model") or value.get("model_name") or file.parent.name
    return Evaluated(file, str(model), value)


def table(found: Mapping[str, Any], names: Iterable[str] = ()) -> Table:
    """task, metric, value in percent, interval, items. names: only these tasks; all without."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for title, justify in (
        ("task", "left"),
        ("metric", "left"),
        ("score", "right"),
        ("95% interval", "right"),
        ("items", "right"),
    ):
        grid.add_column(title, justify=justify)  # type: ignore[arg-type]
    wanted = set(names)
    for task, *cells in rows_of(measures(found)):
        if not wanted or task in wanted:
            grid.add_row(task, *cells)
    return grid


def rows_of(measured: Mapping[str, Mapping[str, Measure]]) -> Iterator[tuple[str, ...]]:
    """(task, metric, score in percent, its 95% interval, items), as people read them."""
    for task, by_name in measured.items():
        for name, m in by_name.items():
            metric, _, filter_name = name.partition(",")
            label = metric if filter_name == "none" else f"{metric} ({filter_name})"
            interval = f"{100 * m.low:.1f} to {100 * m.high:.1f}" if m.high > m.low else ""
            yield task, label, f"{100 * m.value:.1f}", interval, f"{m.n:,}"


def rows_in(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """`rows_of` a results.json of ours."""
    measured = {
        task: {name: Measure(**numbers) for name, numbers in by_name.items()}
        for task, by_name in results["smollm3"]["intervals"].items()
    }
    return list(rows_of(measured))
