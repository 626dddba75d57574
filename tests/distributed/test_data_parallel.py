"""Two processes are one process, faster; and no end of either leaves the other behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from smollm3.errors import UserError
from smollm3.train import ProcessGroup, Stopped, WorkerGroup, train
from smollm3.train.training_checkpoint import TENSORS

CHAT = {"mixture": {"chat": 1}, "loss": "assistant", "packing": "bfd", "context": 256, "batch": 3}
# eps: the gradients of both answers cancel in much of the prompt, and AdamW would make full steps
# of what rounding leaves there.
PAIRS = {
    "mixture": {"pairs": 1},
    "loss": "apo_zero",
    "context": 1024,
    "batch": 3,
    "steps": 3,
    "optimizer": {"eps": 1e-4},
}


def bytes_of(job):
    return Path(job.work, "checkpoints", f"step-{job.stage.steps}", TENSORS).read_bytes()


def rows(job):
    return [json.loads(line) for line in Path(job.work, "metrics.jsonl").read_text().splitlines()]


def is_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="class")
def two(tmp_path_factory):
    with WorkerGroup(2, tmp_path_factory.mktemp("two")) as workers:
        yield workers


RANK = """
import sys
from smollm3.train import TrainJob, ProcessGroup, run_worker, train
group = ProcessGroup.from_environment()
if group.rank:
    run_worker(group)
else:
    group.broadcast_text(sys.argv[1])
    train(TrainJob.from_json(sys.argv[1]), group)
    group.broadcast_text("")
    group.destroy()
"""


class TestTwo:
    """These share one pair of processes."""

    @pytest.mark.parametrize("stage", [{}, CHAT, PAIRS], ids=["all", "assistant", "apo_zero"])
    def test_two_are_one_and_reproducible(self, make_job, tmp_path, two, stage):
        # seed 3: the pairs' reference file is not there yet for the two
        seed = {"seed": 3}
        first, second, single = (make_job(tmp_path / x, **seed, **stage) for x in "abc")
        result = two.train(first)
        for file in Path(first.shards[next(iter(first.shards))]).parent.glob("reference-*"):
            file.unlink()
        two.train(second)
        assert bytes_of(first) == bytes_of(second)
        expected = train(single, ProcessGroup.single())
        for (name, a), b in zip(
            result.model.named_parameters(), expected.model.parameters(), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0, msg=name)
        for a, b in zip(rows(first), rows(single), strict=True):
            for key in b.keys() - {"seconds"}:
                assert a[key] == pytest.approx(b[key], abs=1e-5), key

    def test_more_ranks_than_rows(self, make_job, tmp_path, two):
        stage = {"batch": 1}
        result = two.train(make_job(tmp_path / "a", **stage))
        expected = train(make_job(tmp_path / "b", **stage), ProcessGroup.single())
        for a, b in zip(result.model.parameters(), expected.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("stage", [{}, CHAT | {"batch": 4}], ids=["all", "assistant"])
    def test_an_adapter_and_its_held_out_loss(self, make_job, tmp_path, two, stage):
        stage = stage | {"adapter": {"rank": 2}, "validation": {"every": 2, "rows": 4}}
        result = two.train(make_job(tmp_path / "a", **stage))
        one = make_job(tmp_path / "b", **stage)
        expected = train(one, ProcessGroup.single())
        for a, b in zip(result.model.parameters(), expected.model.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
        assert result.metrics["held_out_loss"] == pytest.approx(
            expected.metrics["held_out_loss"], abs=1e-4
        )

    def test_under_torchrun(self, make_job, tmp_path, two):
        local, job = make_job(tmp_path / "local"), make_job(tmp_path / "torchrun")
        two.train(local)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        environment = os.environ | {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", RANK, job.to_json()], env=environment | {"RANK": str(rank)}
            )
            for rank in (0, 1)
        ]
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
        assert bytes_of(local) == bytes_of(job)


def test_stop_and_resume_by_two_and_by_one(make_job, tmp_path):
    def stop(record, steps):
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    whole, cut = make_job(tmp_path / "whole"), make_job(tmp_path / "cut")
    with WorkerGroup(2, tmp_path) as workers:
        with pytest.raises(Stopped, match="step 4"):
            workers.train(cut, stop)
        workers.train(cut)
        workers.train(whole)
    assert not (tmp_path / ".rendezvous").exists()
    assert bytes_of(whole) == bytes_of(cut)

    with WorkerGroup(2, tmp_path) as workers, pytest.raises(Stopped):
        workers.train(make_job(tmp_path / "alone"), stop)
    said = []
    result = train(make_job(tmp_path / "alone"), ProcessGroup.single(), warn=said.append)
    assert result.metrics["resumed_under"] == [{"processes": [2, 1]}]
    assert "processes 1 (was 2)" in said[0]


def test_a_dead_worker_is_one_clear_error(make_job, tmp_path):
    with WorkerGroup(2, tmp_path) as workers:

        def kill(record, steps):
            if record.step == 3:
                (process,) = workers._workers
                process.kill()

        with pytest.raises(
            UserError, match=r"training process 2 of 2 was killed by signal 9.*again"
        ):
            workers.train(make_job(tmp_path / "a", steps=2000), kill)


def test_a_worker_that_cannot_start_is_an_error(tmp_path, monkeypatch, make_job):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        WorkerGroup(2, tmp_path) as workers,
        pytest.raises(UserError, match="process 2 of 2 ended with code 1 at its start"),
    ):
        workers.train(make_job(tmp_path / "a"))


MAIN_PROCESS = """
import sys
from pathlib import Path
from smollm3.train import WorkerGroup, TrainJob
with WorkerGroup(2, Path(sys.argv[2])) as workers:
    workers.train(
        TrainJob.from_json(sys.argv[1]),
        lambda record, steps: print(workers._workers[0].pid, flush=True),
    )
"""


def test_workers_end_with_their_main_process(make_job, tmp_path):
    job = make_job(tmp_path / "a", steps=100_000)
    main_process = subprocess.Popen(
        [sys.executable, "-c", MAIN_PROCESS, job.to_json(), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    worker = int(main_process.stdout.readline())
    for number in (signal.SIGINT, signal.SIGTERM):  # the main process's affair
        os.kill(worker, number)
    for _ in range(3):
        main_process.stdout.readline()
    main_process.send_signal(signal.SIGKILL)
    main_process.wait()
    main_process.stdout.close()
    assert is_gone(worker)


@pytest.mark.slow
def test_a_hanging_worker_is_reported_within_the_timeout(make_job, tmp_path, monkeypatch):
    monkeypatch.setenv("SMOLLM3_TIMEOUT", "5")
    started = time.monotonic()
    with WorkerGroup(2, tmp_path) as workers:

        def stop(record, steps):
            if record.step == 3:
                os.kill(workers._workers[0].pid, signal.SIGSTOP)

        with pytest.raises(UserError, match=r"did not answer for 5 s.*run again"):
            workers.train(make_job(tmp_path / "a", steps=100_000), stop)
    assert time.monotonic() - started < 120
