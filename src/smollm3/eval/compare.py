"""`smollm3 eval compare`: scores beside published ones and beside each other, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from smollm3.errors import UserError
from smollm3.eval.local import rows_of_file
from smollm3.eval.measure import Measure, difference, mean, share
from smollm3.eval.panel import Panel
from smollm3.eval.panel import Row as PanelRow
from smollm3.eval.plots import Bar, bars, heat_map
from smollm3.eval.published import Published, name_of, need_model, tables, win_rates
from smollm3.eval.results import Evaluated, read_results
from smollm3.eval.ruler import TASKS
from smollm3.eval.ruler.harness import by_length, depths, effective_length
from smollm3.eval.suites import Row, suite_of
from smollm3.files import write_atomic, write_json


@dataclass(frozen=True)
class Line:
    """Ours beside a published score, both in percent. why: what differs in the protocols."""

    benchmark: str
    model: str
    value: float
    low: float
    high: float
    n: int
    published: float | None
    table: str
    why: str

    @property
    def difference(self) -> float | None:
        return None if self.published is None else self.value - self.published


def compare_on_console(
    paths: Sequence[Path], json_file: Path | None, plot: Path | None, against: str | None = None
) -> None:
    """Print the tables; write them as JSON, and a plot as SVG, where wanted."""
    console = Console(highlight=False)
    found = [read_results(path) for path in paths]
    if against is not None:
        need_model(against)
    lines = [line for each in found for line in published_lines(each, against)]
    pairs = [paired(a, b) for i, a in enumerate(found) for b in found[i + 1 :]]
    rates = win_rates({_label(each, found): scores_of(each) for each in found})
    if lines:
        console.print(_published_table(lines))
    for pair in pairs:
        console.print(_paired_table(pair))
    if rates:
        console.print("win rate: " + ", ".join(f"{m} {100 * r:.0f}%" for m, r in rates.items()))
    for each in found:
        _print_ruler(console, each)
    if not lines and not pairs and not any(by_length(each.results["results"]) for each in found):
        console.print("nothing of these is published; give two evaluations to compare them")
    if json_file is not None:
        value = {
            "published": [{**asdict(line), "difference": line.difference} for line in lines],
            "paired": [asdict(pair) for pair in pairs],
            "win_rates": rates,
        }
        write_json(json_file, value)
    if plot is not None:
        write_atomic(plot, _plot(lines, found))


# with what is published


def published_lines(found: Evaluated, against: str | None = None) -> list[Line]:
    """For each published table that has this model, its benchmarks that were evaluated."""
    model = against or name_of(found.model)
    if model is None:
        return []
    return [
        line
        for table in tables()
        if model in table.scores
        for line in _lines(found, table, table.scores[model])
    ]


def _lines(found: Evaluated, table: Published, scores: Mapping[str, float]) -> list[Line]:
    by_name: dict[str, list[Row]] = {}
    for row in (row for suite in table.suites for row in suite_of(suite).rows):
        # A table may print the mean of all languages.
        whole = row.language == "en" or row.benchmark in scores
        name = row.benchmark if whole else f"{row.benchmark} {row.language}"
        by_name.setdefault(name, []).append(row)
    lines = []
    for name, rows in by_name.items():
        measured = [found.measure(row.task, row.metric) for row in rows]
        if any(m is None for m in measured) or name not in scores:
            continue
        of_one_task = len({row.task for row in rows}) == 1
        mean = mean_of([m for m in measured if m is not None], independent=not of_one_task)
        differs = [row.why for row in rows if not row.same]
        differs += _differences(found, table, rows)
        values = (100 * mean.value, 100 * mean.low, 100 * mean.high, mean.n)
        why = "; ".join(dict.fromkeys(differs))
        lines.append(Line(name, found.model, *values, scores[name], table.name, why))
    return lines + _ruler_lines(found, table, scores)


def _ruler_lines(found: Evaluated, table: Published, scores: Mapping[str, float]) -> list[Line]:
    """The mean of all thirteen tasks at each length that is published."""
    lines = []
    for length, tasks in by_length(found.results["results"]).items():
        name = f"RULER {length}"
        if name in scores and len(tasks) == len(TASKS):
            measured = [found.measure(f"ruler_{task}_{length}", "score") for task in tasks]
            mean = mean_of([m for m in measured if m is not None])
            values = (100 * mean.value, 100 * mean.low, 100 * mean.high, mean.n)
            lines.append(Line(name, found.model, *values, scores[name], table.name, ""))
    return lines


def _differences(found: Evaluated, table: Published, rows: Sequence[Row]) -> list[str]:
    """How this run was made otherwise than the suite says."""
    out = []
    config = found.results.get("config", {})
    settings = config.get("settings") or {}
    meant = suite_of(table.suites[0]).settings
    if settings and settings.get("chat") != meant.chat:
        out.append("without the chat template" if meant.chat else "in the chat template")
    elif settings.get("option_prefix", "") != meant.option_prefix:
        out.append("another blank before the options of a chat")
    if (
        table.name.endswith("-think")
        and settings
        and (bool(settings.get("think")) != (table.name == "smollm3-think"))
    ):
        out.append("the other mode of thinking")
    counted = found.results.get("n-samples", {})
    for row in rows:
        n = counted.get(row.task, {})
        if n and n.get("effective") != n.get("original"):
            out.append(f"{n['effective']:,} of {n['original']:,} items")
    return out


def mean_of(measures: Sequence[Measure], independent: bool = True) -> Measure:
    """The mean of scores, as tables print ARC's two sets; or, not independent, of metrics of the
    same answers, as IFEval's: these rise and fall together, so the widest interval holds for it."""
    k = len(measures)
    value = sum(m.value for m in measures) / k
    if not independent:
        half = max(max(m.value - m.low, m.high - m.value) for m in measures)
        return Measure(value, value - half, value + half, measures[0].n)
    low = math.sqrt(sum((m.value - m.low) ** 2 for m in measures)) / k
    high = math.sqrt(sum((m.high - m.value) ** 2 for m in measures)) / k
    return Measure(value, value - low, value + high, sum(m.n for m in measures))


# with each other


@dataclass(frozen=True)
class PairedLine:
    """b - a in percent points on the items that both have; wins: items where b is better."""

    task: str
    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    n: int


@dataclass(frozen=True)
class Pair:
    a: str
    b: str
    lines: list[PairedLine]


def paired(a: Evaluated, b: Evaluated) -> Pair:
    """Item by item, where both keep samples with equal prompts."""
    lines = []
    for task in a.results["results"]:
        ours, theirs = _samples(a, task), _samples(b, task)
        if not ours or not theirs:
            continue
        for metric in _metrics(a, task):
            left, right = _values(ours, metric), _values(theirs, metric)
            shared = sorted(left.keys() & right.keys(), key=str)
            if shared:
                pairs = [(left[key], right[key]) for key in shared]
                lines.append(_paired_line(task, ",".join(metric), pairs))
    return Pair(_label(a, [a, b]), _label(b, [a, b]), lines)


def panel_of(before: Evaluated, after: Evaluated) -> Panel:
    """A panel of tasks: of each the normalised accuracy, or else its first metric."""
    leading: dict[str, PanelRow] = {}
    for line in paired(before, after).lines:
        row = PanelRow(line.task, line.a, line.b, line.low, line.high, line.n)
        if line.task not in leading or line.metric.startswith("acc_norm,"):
            leading[line.task] = row
    return Panel(before.model, after.model, list(leading.values()))


def _paired_line(task: str, metric: str, pairs: Sequence[tuple[float, float]]) -> PairedLine:
    n = len(pairs)
    differences = [y - x for x, y in pairs]
    if {x for pair in pairs for x in pair} <= {0.0, 1.0}:
        measure = difference(share([y == 1 for _, y in pairs]), share([x == 1 for x, _ in pairs]))
    else:
        measure = mean(differences)
    return PairedLine(
        task,
        metric,
        100 * sum(x for x, _ in pairs) / n,
        100 * sum(y for _, y in pairs) / n,
        100 * measure.value,
        100 * measure.low,
        100 * measure.high,
        sum(d > 0 for d in differences),
        sum(d < 0 for d in differences),
        n,
    )


def _metrics(found: Evaluated, task: str) -> list[tuple[str, str]]:
    """(metric, filter) of a task."""
    names = [name.partition(",") for name in found.results["results"][task]]
    return [(m, f) for m, _, f in names if f and not m.endswith("_stderr")]


def _samples(found: Evaluated, task: str) -> list[dict[str, Any]]:
    file = found.path.parent / f"samples_{task}.jsonl"
    if not file.is_file():
        return []
    samples = list(rows_of_file(file))
    for number, sample in enumerate(samples, 1):
        if not isinstance(sample.get("doc_id"), int | str):
            raise UserError(f"{file}: sample {number}: has no doc_id")
    return samples


def _values(
    samples: Sequence[Mapping[str, Any]], metric: tuple[str, str]
) -> dict[tuple[Any, Any], float]:
    """(item, its prompt's checksum) -> the metric."""
    name, filter_name = metric
    return {
        (s["doc_id"], s.get("doc_hash")): float(s[name])
        for s in samples
        if s.get("filter") == filter_name and isinstance(s.get(name), int | float)
    }


def scores_of(found: Evaluated) -> dict[str, float]:
    """The first metric of each task, normalised accuracy before plain."""
    out = {}
    for task in found.results["results"]:
        metrics = _metrics(found, task)
        if metrics:
            best = next((m for m in metrics if m[0] == "acc_norm"), metrics[0])
            value = found.results["results"][task][",".join(best)]
            if isinstance(value, int | float):
                out[task] = float(value)
    return out


def _label(found: Evaluated, among: Sequence[Evaluated]) -> str:
    """The model, and where it was written if another has the same."""
    same = [each for each in among if each.model == found.model]
    return found.model if len(same) == 1 else f"{found.model} ({found.path.parent.name})"


# on a terminal


def _published_table(lines: Sequence[Line]) -> Table:
    grid = _grid(
        "benchmark", "ours", "95% interval", "items", "published", "difference", "protocol"
    )
    for line in lines:
        grid.add_row(
            line.benchmark,
            f"{line.value:.1f}",
            f"{line.low:.1f} to {line.high:.1f}",
            f"{line.n:,}",
            f"{line.published:.1f}",
            f"{line.difference:+.1f}",
            f"{line.table}: {line.why or 'the same'}",
        )
    return grid


def _paired_table(pair: Pair) -> Table:
    grid = _grid("task", "metric", "a", "b", "b - a", "95% interval", "better / worse", "items")
    grid.title = f"a: {pair.a}, b: {pair.b}"
    for line in pair.lines:
        grid.add_row(
            line.task,
            line.metric.removesuffix(",none"),
            f"{line.a:.1f}",
            f"{line.b:.1f}",
            f"{line.difference:+.1f}",
            f"{line.low:+.1f} to {line.high:+.1f}",
            f"{line.wins} / {line.losses}",
            f"{line.n:,}",
        )
    return grid


def _grid(*titles: str) -> Table:
    grid = Table(box=None, pad_edge=False, title_justify="left")
    for title in titles:
        words = title in ("benchmark", "task", "metric", "protocol")
        grid.add_column(title, justify="left" if words else "right")
    return grid


def _print_ruler(console: Console, found: Evaluated) -> None:
    lengths = by_length(found.results["results"])
    if not lengths:
        return
    means = {length: sum(tasks.values()) / len(tasks) for length, tasks in lengths.items()}
    shown = ", ".join(
        f"{length:,}: {100 * means[length]:.1f} ({len(tasks)} tasks)"
        for length, tasks in lengths.items()
    )
    console.print(f"RULER of {found.model}: {shown}")
    if all(len(tasks) == len(TASKS) for tasks in lengths.values()):
        longest = effective_length(means)
        text = f"{longest:,} tokens" if longest else f"shorter than {min(means):,} tokens"
        console.print(f"effective length: {text}")


def _plot(lines: Sequence[Line], found: Sequence[Evaluated]) -> str:
    """A heat map where RULER's single needles were asked; else scores with their intervals."""
    cells: dict[tuple[int, int], float] = {}
    for each in found:
        for task in each.results["results"]:
            if task.startswith("ruler_niah_single"):
                cells |= depths(_samples(each, task))
    if cells:
        return heat_map(cells, f"Needles found by {found[0].model}")
    if lines:
        shown = [Bar(x.benchmark, x.value, x.low, x.high, x.published) for x in lines]
        return bars(shown, f"{found[0].model}: ours and published")
    shown = [
        Bar(f"{task} ({_label(each, found)})", 100 * m.value, 100 * m.low, 100 * m.high, None)
        for each in found
        for task in scores_of(each)
        if (m := leading(each, task))
    ]
    return bars(shown, "Scores with 95% intervals")


def leading(found: Evaluated, task: str) -> Measure | None:
    """The metric that a plot shows: normalised accuracy where there is one, else the first."""
    return found.measure(task, "acc_norm") or found.measure(
        task, ",".join(_metrics(found, task)[0])
    )
