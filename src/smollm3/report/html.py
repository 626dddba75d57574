"""report.html: one file that shows a whole run, without a request to anywhere."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import yaml

from smollm3.eval import interval, show, title
from smollm3.files import write_atomic
from smollm3.report.chart import Chart, Series, chart
from smollm3.report.run import RunRecord, StageRecord, read_run
from smollm3.train.job import HELD_OUT, SCORE
from smollm3.units import count, duration, rate, size

BY_SOURCE = f"{HELD_OUT}/"
HUES = 8  # colours that can be told apart; further sources share a grey


def write_report(run_folder: Path) -> Path:
    """Write `run_folder`/report.html from what the run has left so far, and return its path."""
    run = read_run(Path(run_folder))
    path = run.folder / "report.html"
    write_atomic(path, render(run))
    return path


def render(run: RunRecord, refresh: int | None = None) -> str:
    """The report as HTML. Every text of a model or a data set is escaped: it cannot be markup.

    refresh: seconds after which a browser is to ask for it again.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"count": count, "duration": duration, "size": size}
    environment.filters["title_of_claims"] = title
    files = resources.files("smollm3.report")
    script = (files / "report.js").read_text(encoding="utf-8")
    template = environment.from_string((files / "report.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        run=run,
        refresh=refresh,
        facts=_facts(run),
        cards=[(s.name, _claims(s.scorecard)) for s in run.done if s.scorecard is not None],
        panels=[stage.panel for stage in run.done if stage.panel is not None],
        benchmarks=[(s.name, s.benchmarks) for s in run.done if s.benchmarks],
        charts=_charts(run),
        mixtures=_mixtures(run),
        teachers=[stage for stage in run.done if stage.kind == "synth"],
        questions=_questions(run),
        comparisons=[row for stage in run.done for row in stage.answers],
        warnings=_warnings(run),
        recipe=yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100),
        style=(files / "report.css").read_text(encoding="utf-8"),
        script=script,
        # The browser runs this script and no other, whatever a text should smuggle in.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """What stands at the head: sizes, times, machine, versions."""
    facts = []
    if run.parameters is not None:
        facts.append(("parameters", f"{run.parameters:,}"))
    if not run.done:
        return facts
    last = run.done[-1].record
    machine = last["environment"]
    facts += [
        ("tokens", count(sum(stage.tokens for stage in run.done))),
        ("time", duration(sum(stage.record["seconds"] for stage in run.done))),
        ("finished", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last["finished"]))),
        ("machine", machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"),
        ("processes x threads", f"{machine['processes']} x {machine['threads']}"),
        (
            "versions",
            f"smollm3 {machine['smollm3']}, torch {machine['torch']}, Python {machine['python']}",
        ),
    ]
    return facts


def _claims(scorecard: dict[str, Any]) -> list[dict[str, Any]]:
    """Claims with their numbers as text."""
    rows = []
    for claim in scorecard["claims"]:
        metric, baseline = claim["metric"], claim["baseline"]
        rows.append(
            claim
            | {
                "value": show(metric, claim["value"]),
                "interval": interval(metric, claim),
                "difference": interval(metric, d) if (d := claim.get("difference")) else "",
                "baseline": "" if baseline is None else show(metric, baseline),
            }
        )
    return rows


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _charts(run: RunRecord) -> list[Chart]:
    """Loss and rate of language modelling, then those of preference, which have another scale."""
    trained = [stage for stage in run.stages if stage.steps]
    language = [stage for stage in trained if not stage.is_preference]
    preference = [stage for stage in trained if stage.is_preference]

    def series(stages: list[StageRecord], key: str) -> list[Series]:
        found = []
        for stage in stages:
            rows = [row for row in stage.steps if row.get(key) is not None]
            found.append(Series(stage.name, [r["step"] for r in rows], [r[key] for r in rows]))
        return found

    def beginning(prefix: str, stages: list[StageRecord]) -> Iterator[tuple[str, list[Series]]]:
        keys = (key for stage in stages for row in stage.steps for key in row)
        for key in dict.fromkeys(key for key in keys if key.startswith(prefix)):
            yield key.removeprefix(prefix), series(stages, key)

    number = "{:.4g}".format
    charts = [
        chart("Loss, nats per token", series(language, "loss"), number, smooth=True),
        chart("Loss on held-out rows", series(language, HELD_OUT), number),
        *(
            chart(f"Loss on held-out rows of {source}", found, number)
            for source, found in beginning(BY_SOURCE, language)
        ),
        *(chart(f"Score of {task}", found, _percent) for task, found in beginning(SCORE, trained)),
        chart("Learning rate", series(language, "lr"), rate, from_zero=True),
        chart("Preference loss", series(preference, "loss"), number, smooth=True),
        chart("Preference loss on held-out pairs", series(preference, HELD_OUT), number),
        chart(
            "Pairs with the chosen answer ahead",
            series(preference, "accuracy"),
            _percent,
            smooth=True,
            from_zero=True,
        ),
        chart("Learning rate, preference", series(preference, "lr"), rate, from_zero=True),
    ]
    return [c for c in charts if c is not None]


def _mixtures(run: RunRecord) -> dict[str, Any]:
    """Shares of each source in each train stage, with a colour for the first of them."""
    stages = [stage for stage in run.stages if stage.kind == "train"]
    sources = list(dict.fromkeys(source for stage in stages for source in stage.config["mixture"]))
    rows = []
    for stage in stages:
        mixture = stage.config["mixture"]
        total = sum(mixture.values())
        rows.append(
            {
                "stage": stage.name,
                "shares": {source: 100 * weight / total for source, weight in mixture.items()},
                "taken": {
                    source: f"{count(n)} pairs" if stage.is_preference else count(n)
                    for source, n in stage.record.get("tokens", {}).items()
                },
            }
        )
    hue = {source: i if i < HUES else HUES for i, source in enumerate(sources)}
    return {"rows": rows, "sources": sources, "hue": hue}


def _questions(run: RunRecord) -> list[tuple[str, list[dict[str, Any]]]]:
    """Sample answers of the last evaluation, both modes of a question together."""
    samples = next((stage.samples for stage in reversed(run.done) if stage.samples), [])
    questions: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        questions.setdefault(sample["question"], []).append(sample)
    return list(questions.items())


def _warnings(run: RunRecord) -> list[str]:
    found = []
    for stage in run.stages:
        if steps := stage.skipped_steps:
            places = ", ".join(f"{step:,}" for step in steps[:5]) + (", ..." if steps[5:] else "")
            found.append(
                f"{stage.name}: {len(steps)} of {len(stage.steps):,} steps left the weights as "
                f"they were (loss or gradient no number or far too large): step {places}"
            )
        for changed in stage.record.get("metrics", {}).get("resumed_under", []):
            what = ", ".join(f"{key} {new} (was {old})" for key, (old, new) in changed.items())
            found.append(f"{stage.name}: resumed under {what}; another run may differ in last bits")
    for (source, reason), documents in run.skipped.items():
        found.append(f"{source}: {documents:,} documents left out ({reason})")
    return found
