"""Checkpoints of a sharded model: any number of ranks resumes them, and nothing is half-written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from smollm3.checkpoint import published_name
from smollm3.checkpoint.weights import Weights
from smollm3.model import Transformer
from smollm3.train import ProcessGroup, WorkerGroup, train
from smollm3.train.training_checkpoint import DESCRIPTION

# So small that no update moves a weight: what is written is what was read.
STILL = {"lr": {"peak": 1e-30}, "steps": 2, "save_every": 1}
SHARDED = {
    1: [{}],
    2: [{"shard": 2}, {"tp": 2}, {"cp": 2}],
    4: [{"shard": 4}, {"replicate": 2, "shard": 2}, {"tp": 2, "shard": 2}],
}


def weights(job, result) -> dict[str, torch.Tensor]:
    """By published name, wherever they are."""
    if result.written is not None:
        return dict(Weights(result.written))
    return {published_name(n): p.detach() for n, p in result.model.named_parameters()}


def moments(result) -> dict[str, torch.Tensor]:
    if result.written is None:
        return result.optimizer
    return dict(Weights(result.written, "optimizer"))


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_initial_weights_have_the_same_bits_in_every_layout(make_job, tmp_path, ranks):
    model = Transformer(make_job(tmp_path / "x").model)
    model.init_weights(0)
    expected = {published_name(n): p.detach() for n, p in model.named_parameters()}
    with WorkerGroup(ranks, tmp_path) as workers:
        for i, parallel in enumerate(SHARDED[ranks]):
            job = make_job(tmp_path / str(i), parallel=parallel, **STILL)
            equal(weights(job, workers.train(job)), expected)


@pytest.mark.slow
def test_two_then_three_then_one_rank_resume_the_same_bits(make_job, tmp_path):
    """A finished job that is run again reads its checkpoint, trains nothing and writes its end."""
    found = []
    for ranks in (2, 3, 1):
        parallel = {"shard": ranks} if ranks > 1 else {}
        job = make_job(tmp_path / "run", parallel=parallel, batch=6, steps=4, save_every=2)
        with WorkerGroup(ranks, tmp_path) as workers:
            result = workers.train(job)
            found.append((weights(job, result), moments(result)))
        if ranks > 1:
            folder = Path(job.work, "checkpoints", "step-4")
            files = {file.suffix for file in folder.iterdir()}
            assert files == {".safetensors", ".json"}  # nothing pickled
            assert len(json.loads((folder / DESCRIPTION).read_text())["files"]) == 2
    for model, state in found[1:]:
        equal(model, found[0][0])
        equal(state, found[0][1])


PROGRAM = """
import os, sys
from pathlib import Path
from smollm3 import files
from smollm3.train import TrainJob, WorkerGroup, parallel
publish = parallel.publish
def dying(partial, final):
    if final.name == "step-4":
        os.kill(os.getpid(), 9)
    publish(partial, final)
parallel.publish = dying
with WorkerGroup(2, Path(sys.argv[2])) as workers:
    workers.train(TrainJob.from_json(sys.argv[1]))
"""


@pytest.mark.slow
def test_sigkill_during_a_save_leaves_the_checkpoint_before_it(make_job, tmp_path):
    jobs = [
        make_job(tmp_path / name, parallel={"shard": 2}, steps=6, save_every=2)
        for name in ("killed", "whole")
    ]
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM, jobs[0].to_json(), str(tmp_path)],
        env=os.environ | {"PYTHONWARNINGS": "ignore"},
        check=False,
        timeout=300,
    )
    assert killed.returncode == -signal.SIGKILL
    left = {folder.name for folder in Path(jobs[0].work, "checkpoints").glob("step-*")}
    assert left == {"step-2"}
    steps = []
    with WorkerGroup(2, tmp_path) as workers:
        resumed = workers.train(jobs[0], lambda record, _: steps.append(record.step))
        resumed = weights(jobs[0], resumed)
        assert steps == [3, 4, 5, 6]
        equal(resumed, weights(jobs[1], workers.train(jobs[1])))


@pytest.mark.slow
def test_a_whole_models_checkpoint_is_read_by_shards(make_job, tmp_path):
    job = make_job(tmp_path / "run")
    alone = train(job, ProcessGroup.single())
    expected = weights(job, alone), moments(alone)
    with WorkerGroup(2, tmp_path) as workers:
        said = []
        sharded = make_job(tmp_path / "run", parallel={"shard": 2})
        result = workers.train(sharded, warn=said.append)
        equal(weights(sharded, result), expected[0])
        equal(moments(result), expected[1])
    assert "layout shard 2 (was None)" in said[0]


@pytest.mark.slow
def test_three_ranks_go_on_from_what_two_left_at_a_url(make_job, tmp_path):
    """On a machine with nothing but the URL; and a kill between tensors and description leaves the
    copy before it."""
    url = (tmp_path / "store").as_uri()
    job = make_job(
        tmp_path / "run", parallel={"shard": 2}, batch=6, steps=4, save_every=2, states=url
    )
    with WorkerGroup(2, tmp_path) as workers:
        before = weights(job, workers.train(job))
    store = tmp_path / "store"
    assert {folder.name for folder in store.iterdir()} == {"step-2", "step-4"}
    files = sorted(file.name for file in (store / "step-4").iterdir())
    assert files[-1] == DESCRIPTION
    assert [Path(file).suffix for file in files[:-1]] == [".safetensors", ".safetensors"]
    shutil.rmtree(job.work)
    Path(job.work).mkdir()
    job = make_job(
        tmp_path / "run", parallel={"shard": 3}, batch=6, steps=4, save_every=2, states=url
    )
    with WorkerGroup(3, tmp_path) as workers:
        equal(weights(job, workers.train(job)), before)
    shutil.rmtree(job.work)
    Path(job.work).mkdir()
    (store / "step-4" / DESCRIPTION).unlink()
    steps = []
    job = make_job(tmp_path / "run", batch=6, steps=4, save_every=2, states=url)
    with WorkerGroup(1, tmp_path) as workers:
        workers.train(job, lambda record, _: steps.append(record.step))
    assert steps == [3, 4]
