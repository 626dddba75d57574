"""Interrupted anywhere, any number of times, then finished: the bytes of an undisturbed run."""

import json
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from smollm3.errors import UserError
from smollm3.train import ProcessGroup, TrainJob, train
from smollm3.train.training_checkpoint import TENSORS

KINDS = {
    "concat_and_chunk": {},
    "bfd": {
        "mixture": {"chat": 1},
        "loss": "assistant",
        "packing": "bfd",
        "context": 256,
        "micro_batch": 1,
    },
    "preference": {"mixture": {"pairs": 1}, "loss": "apo_zero", "context": 1024, "batch": 2},
    "8-bit moments": {"optimizer": {"moments": "8bit"}},
    "adapter": {
        "adapter": {"rank": 2, "kind": "dora"},
        "validation": {"every": 2, "rows": 3},
        "loss_spikes": "keep",
    },
}
STEPS = 10


def outcome(job):
    """What a finished run has left: bytes of weights and moments, and its rows without times."""
    rows = [json.loads(line) for line in Path(job.work, "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    return Path(job.work, "checkpoints", f"step-{job.stage.steps}", TENSORS).read_bytes(), rows


class Killed(BaseException):
    """Stands in for the end of the process: nothing catches it."""


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_at_random_steps(make_job, tmp_path, kind):
    def job(name):
        return make_job(tmp_path / name, steps=STEPS, save_every=3, **KINDS[kind])

    train(job("undisturbed"), ProcessGroup.single())
    rng = random.Random(kind)
    for trial in range(2):
        disturbed = job(f"disturbed{trial}")
        for at in rng.sample(range(1, STEPS), 2):

            def kill(record, steps, at=at):
                if record.step == at:
                    raise Killed

            with suppress(Killed):
                train(disturbed, ProcessGroup.single(), kill)
        result = train(disturbed, ProcessGroup.single())
        assert outcome(disturbed) == outcome(job("undisturbed"))
        assert result.metrics["steps"] == STEPS


PROGRAM = """
import sys
from smollm3.train import TrainJob, ProcessGroup, train
job = TrainJob.from_json(sys.argv[1])
train(job, ProcessGroup.single(), lambda record, steps: print(record.step, flush=True))
"""


def start(job):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, job.to_json()], stdout=subprocess.PIPE, text=True
    )


def test_sigkill_at_random_moments(make_job, tmp_path):
    jobs = [make_job(tmp_path / name, steps=60, save_every=2) for name in ("whole", "killed")]
    train(jobs[0], ProcessGroup.single())
    rng = random.Random(0)
    for at in (5, 20):
        process = start(jobs[1])
        for line in process.stdout:
            if int(line) >= at:
                break
        time.sleep(rng.random() * 0.1)  # anywhere in a step or in the writing of a state
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
    train(jobs[1], ProcessGroup.single())
    assert outcome(jobs[0]) == outcome(jobs[1])


def test_a_damaged_state_costs_only_the_steps_since_the_one_before(make_job, tmp_path):
    job, other = (make_job(tmp_path / x, steps=6, save_every=2) for x in "ab")
    train(other, ProcessGroup.single())

    def kill(record, steps):
        if record.step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(job, ProcessGroup.single(), kill)
    newest = Path(job.work, "checkpoints", "step-4", TENSORS)
    newest.write_bytes(newest.read_bytes()[:1000])
    said, steps = [], []
    train(job, ProcessGroup.single(), lambda record, _: steps.append(record.step), said.append)
    assert steps == [3, 4, 5, 6]
    assert len(said) == 1
    assert "step-4: damaged" in said[0]
    assert outcome(job) == outcome(other)


def test_a_finished_run_is_not_run_again(make_job, tmp_path):
    job = make_job(tmp_path)
    first = train(job, ProcessGroup.single())
    steps = []
    second = train(job, ProcessGroup.single(), lambda record, _: steps.append(record.step))
    assert steps == []
    assert second.metrics == first.metrics
    assert second.used == first.used
    assert all((second.optimizer[k] == v).all() for k, v in first.optimizer.items())


def test_another_job_over_the_same_work_is_refused(make_job, tmp_path):
    train(make_job(tmp_path), ProcessGroup.single())
    for change in ({"batch": 2}, {"lr": {"peak": 1e-3}}, {"seed": 1}, {"start": {"web": 3}}):
        with pytest.raises(UserError, match=r"step-6: the checkpoint of another job"):
            train(make_job(tmp_path, **change), ProcessGroup.single())


def test_the_same_job_elsewhere_is_the_same_job(make_job, tmp_path):
    job = make_job(tmp_path / "a")
    train(job, ProcessGroup.single())
    Path(job.work).rename(tmp_path / "b")
    steps = []
    moved = TrainJob.from_json(job.to_json().replace(job.work, str(tmp_path / "b")))
    train(moved, ProcessGroup.single(), lambda record, _: steps.append(record.step))
    assert steps == []


def test_resuming_under_another_environment_says_so(make_job, tmp_path):
    def stop(record, steps):
        if record.step == 4:
            raise Killed

    job = make_job(tmp_path, save_every=2)
    with pytest.raises(Killed):
        train(job, ProcessGroup.single(), stop)
    said = []
    result = train(
        make_job(tmp_path, save_every=2, precision="bfloat16"),
        ProcessGroup.single(),
        warn=said.append,
    )
    assert result.metrics["resumed_under"] == [{"precision": ["float32", "bfloat16"]}]
    (line,) = [line for line in said if "resumed under" in line]  # some CPUs say more of bfloat16
    assert "precision bfloat16 (was float32)" in line
