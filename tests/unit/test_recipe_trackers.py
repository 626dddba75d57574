"""Sinks for other programs' curves: what each is told, and that a failing one harms nothing."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from smollm3.errors import UserError
from smollm3.recipe import load_recipe, trackers
from smollm3.recipe.runner import Events, Run
from smollm3.recipe.trackers import Trackers

ROW = {"step": 3, "loss": 1.5, "skipped": False, "grad_norm": math.inf, "note": "x", "lr": None}
SENT = {"sft/loss": 1.5, "sft/skipped": 0.0}


@pytest.fixture
def told(monkeypatch):
    """What stand-ins of the four programs were told."""
    calls = []

    def module(name, **names):
        made = ModuleType(name)
        made.__dict__.update(names)
        made.__spec__ = SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, made)

    class Run:
        def __init__(self, **options):
            calls.append(("init", options))

        def define_metric(self, pattern, step_metric):
            calls.append(("define", pattern, step_metric))

        def log(self, values):
            calls.append(("log", values))

        def finish(self):
            calls.append(("finish",))

    class SummaryWriter:
        def __init__(self, folder):
            calls.append(("init", folder))

        def add_scalar(self, key, value, step):
            calls.append(("log", {key: value}, step))

        def close(self):
            calls.append(("finish",))

    for name in ("wandb", "trackio"):
        module(name, init=Run)
    module("tensorboard")
    module("torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    module(
        "mlflow",
        set_experiment=lambda name: None,
        start_run=lambda run_name: calls.append(("init", run_name)),
        log_dict=lambda values, name: calls.append(("config", values)),
        log_metrics=lambda values, step: calls.append(("log", values, step)),
        end_run=lambda: calls.append(("finish",)),
    )
    return calls


def logged(calls):
    return [call[1:] for call in calls if call[0] == "log"]


def make(names, tmp_path, warnings=None):
    warn = (warnings if warnings is not None else []).append
    return Trackers(names, "mine", tmp_path, {"seed": 1}, warn)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_row_is_one_record_with_the_stages_own_step(told, tmp_path, name):
    tracker = make([name], tmp_path)
    tracker.log("sft", 3, ROW)
    tracker.close()
    assert told[0][1]["name"] == "mine"
    assert told[0][1]["config"] == {"seed": 1}
    assert logged(told) == [({**SENT, "sft/step": 3},)]
    assert told[-1] == ("finish",)


def test_mlflow_and_tensorboard(told, tmp_path):
    tracker = make(["mlflow", "tensorboard"], tmp_path)
    tracker.log("sft", 3, ROW)
    tracker.close()
    assert ("config", {"seed": 1}) in told
    assert ("init", str(tmp_path / "tensorboard")) in told
    assert logged(told) == [(SENT, 3), *(({key: value}, 3) for key, value in SENT.items())]


def test_wandb_knows_the_step_of_each_stage_once(told, tmp_path):
    tracker = make(["wandb"], tmp_path)
    for stage in ("a", "a", "b"):
        tracker.log(stage, 1, ROW)
    assert [call[1:] for call in told if call[0] == "define"] == [
        ("a/*", "a/step"),
        ("b/*", "b/step"),
    ]


def test_one_that_is_missing_is_said_before_anything_begins(told, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "trackio")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name == "trackio" else 1)
    with pytest.raises(UserError, match="pip install trackio"):
        make(["wandb", "trackio"], tmp_path)
    assert not told


@pytest.mark.parametrize("when", ["init", "log_metrics", "end_run"])
def test_one_that_fails_is_left_out_with_a_warning(told, tmp_path, monkeypatch, when):
    def fail(*_, **__):
        raise ConnectionError("server gone")

    name = {"init": "start_run"}.get(when, when)
    monkeypatch.setattr(sys.modules["mlflow"], name, fail)
    warnings = []
    tracker = make(["mlflow", "trackio"], tmp_path, warnings)
    tracker.log("sft", 1, ROW)
    tracker.log("sft", 2, ROW)
    tracker.close()
    assert warnings == ["track: mlflow failed (ConnectionError: server gone); going on without it"]
    assert len([call for call in logged(told) if "sft/step" in call[0]]) == 2


def test_tensorboards_own_reader_finds_the_values(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = make(["tensorboard"], tmp_path)
    for step in (1, 2, 3):
        tracker.log("sft", step, {"loss": 1 / step})
    tracker.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    found = [(event.step, event.value) for event in read.Scalars("sft/loss")]
    assert found == [(step, pytest.approx(1 / step)) for step in (1, 2, 3)]


def test_a_run_tells_its_steps(told, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("""
name: r
track: [trackio]
model: {layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 16}
sources: {web: {kind: procedural, generator: web, documents: 60}}
stages:
  tokenizer: {kind: tokenizer, vocab: 320, mixture: {web: 1}}
  base: {kind: train, mixture: {web: 1}, context: 32, batch: 2, steps: 3, lr: {peak: 1e-3}}
""")
    nothing = Events(*(lambda *_: None for _ in range(5)))
    Run(load_recipe(str(recipe)), tmp_path / "out", nothing).execute()
    rows = [values for (values,) in logged(told)]
    assert [row["base/step"] for row in rows] == [1, 2, 3]
    assert all(row["base/loss"] > 0 for row in rows)
    assert told[-1] == ("finish",)
