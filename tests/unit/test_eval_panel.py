"""What a model could before, beside what it can after: rows, verdicts, and a stage of real tasks."""

import io
import json
from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from pydantic import ValidationError
from rich.console import Console
from tests.support.eval_data import data_folder
from tests.support.noise import save_noise

from smollm3.eval.measure import share
from smollm3.eval.panel import TASKS, Panel, Row, of_measures, read_panel, table
from smollm3.eval.spec import EvalStage
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.report.html import render
from smollm3.report.run import read_run

RECIPE = """
name: t
stages:
  noise: {{kind: merge, from: {{{other}: 1}}}}
  scores: {{kind: benchmark, beside: {base}, tasks: [hellaswag, piqa], data: {data}, limit: 4}}
"""


@pytest.mark.parametrize(
    ("row", "verdict", "cells"),
    [
        (Row("tool_json", 90, 80, -15, -5, 100), "worse", ("90.0%", "80.0%", "-15.0 to -5.0")),
        (Row("obeys/think", 0, 9, 3, 15, 100), "better", ("0.0%", "9.0%", "+3.0 to +15.0")),
        (Row("piqa", 50, 51, -3, 5, 100), "", ("50.0%", "51.0%", "-3.0 to +5.0")),
        (Row("loss/x", 2, 1.5, -0.6, -0.4, 9), "better", ("2.000", "1.500", "-0.600 to -0.400")),
    ],
)
def test_a_row_says_what_its_interval_shows(row, verdict, cells):
    assert row.cells() == (row.what, *cells, str(row.n), verdict)


def test_rows_compare_item_with_item():
    """Nine items that both answer alike, one that was lost: as `difference` of the shares."""
    before, after = share([True] * 10), share([True] * 9 + [False])
    panel = of_measures(
        ["tool_json"], ("base", {"tool_json": before}), ("mine", {"tool_json": after})
    )
    [row] = panel.rows
    assert (panel.before, panel.after) == ("base", "mine")
    assert (row.before, row.after, row.n) == (100, 90, 10)
    assert row.low < -10 < 0 < row.high
    assert row.low + row.high < 0  # around what was lost


def test_a_panel_needs_two_models():
    alone = {"claim": "c", "metric": "tool_json", "model": "m", "at_least": 0.5}
    with pytest.raises(ValidationError, match="panel: the last claim names no baseline_model"):
        EvalStage.model_validate({"kind": "eval", "claims": [alone], "panel": ["tool_json"]})


def test_the_table_for_the_terminal():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table([Panel("base", "mine", [Row("piqa", 70, 60, -15, -5, 100)])]))
    text = console.export_text()
    assert "what it could before: base and mine" in text
    assert "-15.0 to -5.0" in text
    assert "worse" in text


def test_a_stage_asks_two_models_the_same(tmp_path, tokenizer):
    save_noise(tmp_path / "base", tokenizer)
    save_noise(tmp_path / "other", tokenizer, spread=5)
    data_folder(tmp_path / "sets")
    text = RECIPE.format(base=tmp_path / "base", other=tmp_path / "other", data=tmp_path / "sets")
    told = []
    events = Events(*(lambda *_: None,) * 2, lambda *a: told.append(a[3]), *(lambda *_: None,) * 2)
    Run(load_recipe_text(text, "t.yaml"), tmp_path / "run", events).execute()
    folder = tmp_path / "run/scores"
    panel = read_panel(folder)
    assert (panel.before, panel.after) == (str(tmp_path / "base"), "noise")
    assert [row.what for row in panel.rows] == ["hellaswag", "piqa"]
    results = [json.loads((at / "results.json").read_text()) for at in (folder / "beside", folder)]
    for row in panel.rows:
        metric = "acc_norm,none"
        before, after = (100 * found["results"][row.what][metric] for found in results)
        assert (row.before, row.after, row.n) == (pytest.approx(before), pytest.approx(after), 4)
    page = render(read_run(tmp_path / "run"))
    assert "What it could before" in page
    assert {name.rpartition(" of ")[2] for name in told if " of " in name} >= {"noise"}


def test_the_tasks_have_the_data_sets_that_are_looked_for():
    """As the harness's own files say."""
    root = Path(lm_eval.tasks.__file__).parent
    for task, path in TASKS.items():
        [file] = root.rglob(f"{task}.yaml")
        assert yaml.load(file.read_text(), yaml.BaseLoader)["dataset_path"] == path
