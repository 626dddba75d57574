"""The score card: every claim of an evaluation with the number that decides it."""

from __future__ import annotations

import difflib
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from smollm3.checkpoint import load_config
from smollm3.data.shards import Shard
from smollm3.errors import UserError
from smollm3.eval.measure import Measure, difference
from smollm3.eval.nano import Suite, known_metrics
from smollm3.eval.panel import Panel, of_measures
from smollm3.eval.spec import Claim, EvalStage, in_nats
from smollm3.infer import load_engine

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, float, float, str], None]  # what, done, of, detail


def evaluate(
    stage: EvalStage,
    models: Mapping[str, Path],
    heldout: Mapping[str, Shard],
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure what the claims name and judge them.

    models: each claim's model -> its folder; each is loaded once. heldout: the held-out part of
    each source. Returns {"claims", "metrics", "samples", "answers", "panel", "environment"}, plain
    JSON but for the Panel; the samples are of the last claim's model. UserError for an unknown
    metric, model or source.
    """
    check_claims(stage, models, {name: shard.format for name, shard in heldout.items()})
    wanted: dict[str, list[str]] = {}
    for claim in stage.claims:
        for model, metric in (_measured(claim), _baseline(claim)):
            if metric not in wanted.setdefault(model, []):
                wanted[model].append(metric)
    last = stage.claims[-1]
    for model in _compared(last):
        wanted[model] += [metric for metric in stage.panel if metric not in wanted[model]]
    window = min(load_config(models[model]).context for model in wanted)

    metrics: dict[str, dict[str, Measure]] = {}
    chances: dict[str, float | None] = {}
    samples: list[dict[str, Any]] = []
    answers: dict[str, list[dict[str, str]]] = {}
    total, done = sum(map(len, wanted.values())), 0
    for model, names in wanted.items():
        # A GGUF's blocks in float32, as what is trained from it: else rounding is a difference.
        dtype = "float32" if models[model].is_file() else None
        suite = Suite(load_engine(models[model], dtype=dtype), stage, heldout, seed, window)
        metrics[model] = {}
        for name in names:
            if progress:
                progress("measuring", done, total, f"{name} of {model}")
            metrics[model][name] = suite.measure(name)
            chances[name] = suite.chance(name)
            done += 1
        if model == last.model:
            samples = suite.samples()
        if stage.answers and model in _compared(last):
            answers[model] = suite.held_out_answers()
    return {
        "claims": [_judged(claim, metrics, chances) for claim in stage.claims],
        "metrics": {
            model: {name: measure.numbers() for name, measure in measures.items()}
            for model, measures in metrics.items()
        },
        "samples": samples,
        "answers": _side_by_side(answers, _compared(last)),
        "panel": _panel(stage, metrics),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
        },
    }


def _compared(claim: Claim) -> list[str]:
    """The models that stand side by side: a claim's baseline, where it has one, and its model."""
    return [model for model in (claim.baseline_model, claim.model) if model]


def _panel(stage: EvalStage, metrics: Mapping[str, Mapping[str, Measure]]) -> Panel | None:
    if not stage.panel:
        return None
    before, after = _compared(stage.claims[-1])
    return of_measures(stage.panel, (before, metrics[before]), (after, metrics[after]))


def _side_by_side(
    answers: Mapping[str, list[dict[str, str]]], models: Sequence[str]
) -> list[dict[str, Any]]:
    """One entry for each conversation, the models' answers in the order of `models`."""
    columns = [answers[model] for model in models if model in answers]
    return [
        {key: row[0][key] for key in ("prompt", "expected")}
        | {"answers": {model: a["answer"] for model, a in zip(models, row, strict=True)}}
        for row in zip(*columns, strict=True)
    ]


def check_claims(stage: EvalStage, models: Collection[str], formats: Mapping[str, str]) -> None:
    """UserError for the first claim that names what there is not, with the nearest that there is.

    formats: "text", "chat" or "preference" of each source.
    """
    metrics = known_metrics(formats)

    def check_metric(metric: str, where: str) -> None:
        if metric not in metrics:
            near = difflib.get_close_matches(metric, metrics, n=1, cutoff=0)
            raise UserError(f"{where}: unknown metric '{metric}'; did you mean '{near[0]}'?")

    for metric in stage.panel:
        check_metric(metric, "panel")
    for claim in stage.claims:
        for model, metric in (_measured(claim), _baseline(claim)):
            check_metric(metric, f"claim '{claim.claim}'")
            if model not in models:
                raise UserError(
                    f"claim '{claim.claim}': unknown model '{model}'; there are {', '.join(models)}"
                )


def show(metric: str, value: float) -> str:
    """A loss in nats a token, a margin in nats, any other metric in per cent."""
    return f"{value:.3f}" if in_nats(metric) else f"{100 * value:.1f}%"


def interval(metric: str, numbers: Mapping[str, Any]) -> str:
    """Of a claim's value, or of its difference from the baseline."""
    return f"{show(metric, numbers['low'])} to {show(metric, numbers['high'])}"


MARKS = {"holds": "[green]✓[/]", "not shown": "[yellow]–[/]", "fails": "[red]✗[/]"}


def title(claims: Sequence[Mapping[str, Any]]) -> str:
    """'10 of 13 claims hold, 2 are not shown, 1 fails'."""
    held, unknown, failed = (
        sum(claim["verdict"] == verdict for claim in claims)
        for verdict in ("holds", "not shown", "fails")
    )
    text = f"{held} of {len(claims)} claims hold"
    if unknown:
        text += f", {unknown} {'is' if unknown == 1 else 'are'} not shown"
    return text + (f", {failed} {'fails' if failed == 1 else 'fail'}" if failed else "")


def table(scorecard: Mapping[str, Any]) -> Table:
    """The claims for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    claims = scorecard["claims"]
    table = Table(box=box.SIMPLE_HEAD, title=f"score card: {title(claims)}", title_justify="left")
    table.add_column("")
    table.add_column("claim")
    for column in ("value", "95% interval", "baseline"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("target", justify="right")
    for claim in claims:
        metric = claim["metric"]
        baseline = claim["baseline"]
        about = f"\n{metric} of {claim['model']}"
        if claim.get("difference"):
            about += f", difference {interval(metric, claim['difference'])}"
        table.add_row(
            MARKS[claim["verdict"]],
            Text.assemble(claim["claim"], (about, "dim"), (f"\n{claim['why']}".rstrip(), "yellow")),
            show(metric, claim["value"]),
            interval(metric, claim),
            "" if baseline is None else show(metric, baseline),
            claim["target"],
        )
    return table


def _measured(claim: Claim) -> tuple[str, str]:
    return claim.model, claim.metric


def _baseline(claim: Claim) -> tuple[str, str]:
    """(model, metric) of the baseline; the claim's own where it has none."""
    return claim.baseline_model or claim.model, claim.baseline_metric or claim.metric


def _judged(
    claim: Claim,
    metrics: Mapping[str, Mapping[str, Measure]],
    chances: Mapping[str, float | None],
) -> dict[str, Any]:
    """A claim holds or fails where the 95% interval of its distance to the target has one sign,
    else it is not shown; nor is it shown by a model that is no better than chance."""
    model, metric = _measured(claim)
    measure = metrics[model][metric]
    baseline: Measure | None = None
    if claim.compare != "value":
        baseline_model, baseline_metric = _baseline(claim)
        baseline = metrics[baseline_model][baseline_metric]
    verdict, why = _verdict(claim, measure, baseline)
    chance = chances[metric]
    if verdict == "holds" and claim.wants_better and chance is not None:
        is_loss = metric.startswith("loss/")
        if not (measure.high < chance if is_loss else measure.low > chance):
            guess = "a uniform guess over the vocabulary" if is_loss else "guessing"
            verdict, why = "not shown", f"no better than {guess}: {show(metric, chance)}"
    return {
        "claim": claim.claim,
        "metric": metric,
        "model": model,
        **measure.numbers(),
        "baseline": None if baseline is None else baseline.value,
        "difference": difference(measure, baseline).numbers() if baseline is not None else None,
        "chance": chance,
        "target": _target(claim),
        "verdict": verdict,
        "why": why,
    }


def _verdict(claim: Claim, measure: Measure, baseline: Measure | None) -> tuple[str, str]:
    """("holds", "fails" or "not shown", the reason of the last). A ratio is judged as the
    difference value - bound x baseline, so that a baseline of 0 divides nothing."""
    wants_more = claim.at_least is not None
    bound = claim.at_least if claim.at_least is not None else claim.at_most
    assert bound is not None  # the claim's own check
    if baseline is None:
        distance = measure
    elif claim.compare == "ratio":
        distance, bound = difference(measure, baseline, bound), 0.0
    else:
        distance = difference(measure, baseline)
    low, high = distance.low - bound, distance.high - bound
    if not wants_more:
        low, high = -high, -low
    if low >= 0:
        return "holds", ""
    if high < 0:
        return "fails", ""
    what = {
        "value": "the interval",
        "difference": "the interval of the difference",
        "ratio": "the interval of value - bound x baseline",
    }[claim.compare]
    span = f"{show(claim.metric, distance.low)} to {show(claim.metric, distance.high)}"
    return "not shown", f"{what} covers the target: {span}"


def _target(claim: Claim) -> str:
    """'≥ 90.0%', '≤ baseline - 0.100', '≥ 2 x baseline'."""
    sign, bound = ("≥", claim.at_least) if claim.at_least is not None else ("≤", claim.at_most)
    assert bound is not None
    if claim.compare == "value":
        return f"{sign} {show(claim.metric, bound)}"
    if claim.compare == "ratio":
        return f"{sign} {bound:g} x baseline"
    if bound == 0:
        return f"{sign} baseline"
    return f"{sign} baseline {'+' if bound > 0 else '-'} {show(claim.metric, abs(bound))}"
