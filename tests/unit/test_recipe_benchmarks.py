"""Scores in a recipe and over a grid of merges: asked once, in the report, the card and a curve."""

import json

import pytest
from click.testing import CliRunner
from tests.support.eval_data import data_folder
from tests.support.noise import save_noise

from smollm3.cli import cli
from smollm3.errors import UserError
from smollm3.eval import harness
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.report.html import render
from smollm3.report.run import read_run

RECIPE = """
name: t
stages:
  half: {{kind: merge, from: {{{base}: 1}}}}
  scores: {{kind: benchmark, tasks: [hellaswag, piqa], data: {data}, limit: 3}}
  out: {{kind: export, to: ['hf:float32']}}
"""


@pytest.fixture
def place(tmp_path, tokenizer):
    save_noise(tmp_path / "base", tokenizer)
    data_folder(tmp_path / "sets")
    return tmp_path


def run(place, *overrides):
    nothing = lambda *_: None  # noqa: E731
    text = RECIPE.format(base=place / "base", data=place / "sets")
    recipe = load_recipe_text(text, "t.yaml", overrides)
    Run(recipe, place / "run", Events(*(nothing for _ in range(5)))).execute()
    return json.loads((place / "run/scores/results.json").read_text())


def test_scores_stand_in_results_report_and_card(place):
    results = run(place)
    assert set(results["results"]) == {"hellaswag", "piqa"}
    assert results["n-samples"]["piqa"]["effective"] == 3
    score = 100 * results["results"]["piqa"]["acc,none"]
    row = f"| piqa | acc | {score:.1f} |"
    card = (place / "run/out/hf-float32/README.md").read_text()
    assert row in card
    stages = {stage.name: stage for stage in read_run(place / "run").stages}
    assert any(r[:3] == ("piqa", "acc", f"{score:.1f}") for r in stages["scores"].benchmarks)
    page = render(read_run(place / "run"))
    assert "Benchmarks: scores" in page
    assert f'<td class="number">{score:.1f}</td>' in page


def test_a_stage_that_was_stopped_asks_nothing_twice(place, monkeypatch):
    real, kept = harness.run_tasks, []

    def stopped(target, wanted, settings, journal, view):
        real(target, wanted, settings, journal, view)
        kept.append(len(journal))
        raise KeyboardInterrupt

    monkeypatch.setattr("smollm3.eval.run.run_tasks", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    monkeypatch.setattr("smollm3.eval.run.run_tasks", real)
    run(place)
    assert kept[0] > 0
    assert json.loads((place / "run/scores/run.json").read_text())["items_made"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stages.scores.suite=base", "give either suite or tasks"),
        ("stages.scores.tasks=[]", "give either suite or tasks"),
        ("stages.scores={kind: benchmark, suite: bas}", "'bas' is not one of base, instruct"),
        ("stages.scores.data=nowhere", "data: nowhere: no such folder of data sets"),
        ("stages.scores.tasks=[hellaswga]", "hellaswga"),
    ],
)
def test_what_cannot_be_scored_is_said(place, change, said):
    with pytest.raises(UserError, match=said):
        run(place, change)


def invoke(*words):
    return CliRunner().invoke(cli, ["merge", "sweep", *map(str, words)])


def test_a_sweep_scores_each_share_once_and_draws_the_curve(place, tokenizer, monkeypatch):
    save_noise(place / "other", tokenizer, spread=5)
    words = (place / "base", place / "other", "--tasks", "piqa", "--data", place / "sets")
    words = (*words, "--shares", "0,0.9,1", "--out", place / "sweep")
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    scores = json.loads((place / "sweep/sweep.json").read_text())["scores"]["piqa"]
    assert [point["share"] for point in scores] == [0, 0.9, 1]
    drawing = (place / "sweep/sweep.svg").read_text()
    assert drawing.count("<polyline") == 1
    assert "piqa" in drawing
    assert not (place / "sweep/merged").exists()
    monkeypatch.setattr("smollm3.eval.sweep.merge", None)  # nothing is merged a second time
    again = invoke(*words)
    assert again.exit_code == 0, again.output
    assert done.output.rstrip().endswith(again.output.rstrip())
    other = invoke(*words, "--limit", "2")
    assert "is of another sweep; choose another --out" in str(other.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tasks", "piqa", "--shares", "0,2"), "--shares: 2 is not from 0 to 1"),
        (("--tasks", "piqa", "--shares", "a"), "numbers by commas, not 'a'"),
        ((), "give either --tasks or --suite"),
    ],
)
def test_a_sweep_that_cannot_be_is_said(place, words, said):
    done = invoke(place / "base", place / "base", "--out", place / "sweep", *words)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
