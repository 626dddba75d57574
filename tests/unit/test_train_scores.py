"""Tasks that a train stage is scored by while it trains: a curve that changes nothing."""

import json
import os
import random
import signal

import numpy as np
import pytest
import torch
from tests.support.eval_data import data_folder
from tests.support.noise import save_noise

from smollm3.errors import UserError
from smollm3.eval import adapter, harness
from smollm3.eval.run import quick_scores
from smollm3.eval.spec import BenchmarkStage
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.train import Stopped, TrainJob, loop
from smollm3.train.metrics import ROWS, MetricsLog

RECIPE = """
name: t
processes: {processes}
sources:
  mine: {{kind: jsonl, files: ['{place}/data.jsonl'], holdout: 0.2}}
stages:
  sft:
    kind: train
    from: {place}/base
    mixture: {{mine: 1}}
    packing: bfd
    context: 64
    batch: 4
    steps: 5
    save_every: 2
    lr: {{peak: 1e-2}}
    {adapter}
"""
SCORES = "stages.sft.scores={every: 2, tasks: [hellaswag, piqa], limit: 3, data: PLACE/sets}"


@pytest.fixture
def place(tmp_path, tokenizer):
    save_noise(tmp_path / "base", tokenizer)
    data_folder(tmp_path / "sets")
    texts = [f"The model that answers question {i} is {i * i}." for i in range(40)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "data.jsonl").write_text(lines)
    return tmp_path


def run(place, *overrides, to="run", processes=1, adapter=""):
    nothing = lambda *_: None  # noqa: E731
    text = RECIPE.format(place=place, processes=processes, adapter=adapter)
    overrides = [each.replace("PLACE", str(place)) for each in overrides]
    recipe = load_recipe_text(text, "t.yaml", overrides)
    Run(recipe, place / to, Events(*(nothing for _ in range(5)))).execute()
    return (place / to / "sft/model.safetensors").read_bytes()


def rows(place, to="run"):
    lines = (place / to / "sft/metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def scores(place, to="run"):
    """step -> {task: score}"""
    return {
        row["step"]: {key: row[key] for key in row if key.startswith("score/")}
        for row in rows(place, to)
        if any(key.startswith("score/") for key in row)
    }


@pytest.mark.parametrize("manner", [{}, {"adapter": "adapter: {rank: 2}"}])
def test_scores_are_a_curve_and_change_no_bit(place, manner):
    scored = run(place, SCORES, **manner)
    assert scored == run(place, to="plain", **manner)
    found = scores(place)
    assert list(found) == [2, 4, 5]
    assert all(set(each) == {"score/hellaswag", "score/piqa"} for each in found.values())
    plain = [row | {"seconds": 0} for row in rows(place, "plain")]
    kept = [{k: row[k] for k in plain[0]} | {"seconds": 0} for row in rows(place)]
    assert kept == plain
    assert not (place / "run/.work/sft").exists()
    page = (place / "run/report.html").read_text()
    assert "Score of piqa" in page
    assert "Score of" not in (place / "plain/report.html").read_text()
    # The last is what the stage leaves.
    nobody = type("Nobody", (), {"progress": lambda *_: None})()
    stage = BenchmarkStage(
        kind="benchmark", tasks=["hellaswag", "piqa"], limit=3, data=f"{place}/sets"
    )
    left = quick_scores(stage, place / "run/sft", 0, nobody, lambda: False)
    assert {f"score/{task}": score for task, score in left.items()} == found[5]


@pytest.mark.slow
@pytest.mark.parametrize("manner", ["{}", "{shard: 2}"])
def test_scores_of_what_two_processes_train(place, manner):
    parallel = f"stages.sft.parallel={manner}"
    scored = run(place, SCORES, parallel, processes=2)
    assert scored == run(place, parallel, to="plain", processes=2)
    assert list(scores(place)) == [2, 4, 5]


class Interrupting:
    """The harness's adapter, under which a signal comes, or a failure, after so many items."""

    def __init__(self, monkeypatch, what):
        self.seen, self.what = 0, what
        real = adapter.Journal.add

        def add(journal, key, value):
            real(journal, key, value)
            self.seen += 1
            self.what(self.seen)

        monkeypatch.setattr(adapter.Journal, "add", add)


@pytest.mark.slow
def test_a_stop_and_a_failure_while_scoring_lose_nothing(place, monkeypatch):
    whole = run(place, SCORES, to="whole")
    asked = []
    with monkeypatch.context() as patch:
        Interrupting(patch, asked.append)
        run(place, SCORES, to="again")
    items = len(asked)

    def stop(at):
        return lambda seen: os.kill(os.getpid(), signal.SIGTERM) if seen == at else None

    def fail(seen):
        if seen == 4:
            raise UserError("the power went")

    made = []
    for what, error in ((stop(5), Stopped), (stop(3), Stopped), (fail, UserError)):
        with monkeypatch.context() as patch:
            watch = Interrupting(patch, what)
            with pytest.raises(error):
                run(place, SCORES)
        made.append(watch.seen)
    with monkeypatch.context() as patch:
        watch = Interrupting(patch, lambda seen: None)
        assert run(place, SCORES) == whole
    assert scores(place) == scores(place, "whole")
    # Stopped at step 2 twice, whose items were asked once; those of step 4 again after the failure.
    assert sum([*made, watch.seen]) <= items + items // 3


def test_a_stop_is_at_the_step_that_is_scored(place, monkeypatch):
    with monkeypatch.context() as patch:
        Interrupting(
            patch, lambda seen: os.kill(os.getpid(), signal.SIGTERM) if seen == 1 else None
        )
        with pytest.raises(Stopped) as stopped:
            run(place, SCORES)
    assert stopped.value.step == 2
    assert (place / "run/.work/sft/scored/step-2/model.safetensors").exists()


def test_tasks_may_change_while_it_is_trained(place, monkeypatch):
    real = loop.Trainer.step

    def step(self, k, stop=False):
        if k == 3:
            raise UserError("something is wrong")
        return real(self, k, stop)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step)
        with pytest.raises(UserError, match="something"):
            run(place)
    assert run(place, SCORES) == run(place, to="plain")
    assert list(scores(place)) == [4, 5]
    run(place, SCORES.replace("every: 2", "every: 1"))  # done, and stays so


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("tasks: [piqqa]", r"stages\.sft: piqqa: no such task; did you mean piqa\?"),
        ("tasks: [winogrande]", r"winogrande/validation\.jsonl: no such file"),
        ("tasks: [bfcl]", "bfcl: is of chats"),
        ("tasks: [mt_bench]", "mt_bench: is of chats"),
        ("data: nowhere, tasks: [piqa]", "data: nowhere: no such folder"),
    ],
)
def test_what_cannot_be_scored_is_said_before_the_first_step(place, change, said, monkeypatch):
    monkeypatch.setattr("smollm3.recipe.runner.run_stage", None)
    data = "" if "data" in change else "data: PLACE/sets, "
    with pytest.raises(UserError, match=said):
        run(place, f"stages.sft.scores={{every: 1, {data}{change}}}")


def test_a_benchmark_stage_at_the_end_is_looked_at_first(place, monkeypatch):
    monkeypatch.setattr("smollm3.recipe.runner.run_stage", None)
    with pytest.raises(UserError, match=r"stages\.last: piqqa: no such task"):
        run(place, f"stages.last={{kind: benchmark, tasks: [piqqa], data: {place}/sets}}")


def test_scoring_leaves_the_process_as_it_was(place, monkeypatch):
    def seeding(*_):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.set_num_threads(before + 1)
        return {"results": {}, "samples": {}}

    before = torch.get_num_threads()
    monkeypatch.setattr("smollm3.eval.run.run_tasks", seeding)
    drawn = []
    for scoring in (False, True):
        random.seed(7), np.random.seed(7), torch.manual_seed(7)
        if scoring:
            stage = BenchmarkStage(kind="benchmark", tasks=["piqa"])
            (place / "scored").mkdir()
            (place / "base").rename(place / "scored/step-1")
            assert quick_scores(stage, place / "scored/step-1", 0, None, lambda: False) == {}
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]
    assert torch.get_num_threads() == before


def test_a_group_is_one_curve(monkeypatch):
    found = {
        "results": {"all": {"acc,none": 0.5}, "a": {"acc,none": 0.4, "acc_norm,none": 0.6}},
        "samples": {},
        "group_subtasks": {"all": ["a"], "a": []},
    }
    monkeypatch.setattr(
        "smollm3.eval.run.benchmark", lambda *_: type("Outcome", (), {"found": found})
    )
    stage = BenchmarkStage(kind="benchmark", tasks=["all"])
    assert quick_scores(stage, harness.own_tasks(), 0, None, lambda: False) == {"all": 0.5}


def test_rows_of_looks_are_kept_however_long_the_stage(tmp_path):
    with MetricsLog(tmp_path / "m.jsonl", 0, 10 * ROWS) as log:
        for step in range(20_001, 20_020):
            log.write({"step": step, "skipped": False}, keep=step == 20_005)
    written = (tmp_path / "m.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in written] == [20_005, 20_010]


def test_a_stage_with_scores_needs_who_scores(make_job, tmp_path):
    job = make_job(tmp_path, scores={"every": 1, "tasks": ["piqa"]})
    assert TrainJob.from_json(job.to_json()) == job
    with pytest.raises(ValueError, match="give the function that scores"):
        loop.train(job, loop.ProcessGroup.single())
