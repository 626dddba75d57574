import json
import math
import os
import signal

import numpy as np
import pytest
import torch

from smollm3 import checkpoint
from smollm3.errors import UserError
from smollm3.tensors import write_tensors
from smollm3.tokenizer import Tokenizer
from smollm3.train import ProcessGroup, Stopped, TrainJob, loop, reference, train

CHAT = {"mixture": {"chat": 1}, "loss": "assistant", "packing": "bfd", "context": 256}
PAIRS = {"mixture": {"pairs": 1}, "loss": "apo_zero", "context": 1024, "batch": 3, "steps": 3}
WORLD = ProcessGroup.single()


def rows(job):
    with open(f"{job.work}/metrics.jsonl") as f:
        return [json.loads(line) for line in f]


def weights(result):
    return {name: p.detach() for name, p in result.model.named_parameters()}


def save(result, job, folder):
    checkpoint.save_model(result.model, Tokenizer.load(job.tokenizer), folder)
    write_tensors(folder / "optimizer.safetensors", result.optimizer)
    return str(folder)


@pytest.fixture
def numbered_losses(monkeypatch):
    """Replace the loss of the given steps (from 0) by NaN."""

    def make_nan(*steps):
        real, calls = loop.language_modelling, iter(range(10**6))

        def loss(model, h_BTE, batch):
            sums = real(model, h_BTE, batch)
            return sums._replace(total=sums.total * math.nan) if next(calls) in steps else sums

        monkeypatch.setattr(loop, "language_modelling", loss)

    return make_nan


def test_a_job_survives_json(make_job, tmp_path):
    job = make_job(tmp_path, **PAIRS, lr={"peak": 0.1 + 0.2, "decay": "cosine"})
    assert TrainJob.from_json(job.to_json()) == job


def test_it_learns_and_leaves_its_rows(make_job, tmp_path):
    seen = []
    job = make_job(tmp_path, steps=30)
    result = train(job, WORLD, lambda record, steps: seen.append((record.step, steps)))
    written = rows(job)
    assert seen == [(k, 30) for k in range(1, 31)]
    assert result.metrics["tokens_per_second"] == pytest.approx(
        sum(row["tokens"] for row in written) / sum(row["seconds"] for row in written)
    )
    assert [row["step"] for row in written] == list(range(1, 31))
    assert written[0]["loss"] == pytest.approx(math.log(result.model.config.vocab_size), abs=0.2)
    assert written[-1]["loss"] < written[0]["loss"] - 0.5
    assert written[0].keys() == {"step", "loss", "lr", "grad_norm", "tokens", "seconds", "skipped"}
    assert [row["lr"] for row in written[:3]] == [1.5e-3, 3e-3, 3e-3]
    assert result.used == {"maths": 1280, "web": 2560}
    assert sum(row["tokens"] for row in written) == 30 * 4 * 32
    assert result.metrics["steps"] == 30
    assert result.metrics["loss"] == written[-1]["loss"]
    assert "resumed_under" not in result.metrics


@pytest.mark.parametrize("stage", [{}, CHAT, PAIRS], ids=["all", "assistant", "apo_zero"])
def test_accumulation_is_one_big_batch(make_job, tmp_path, stage):
    gradients, records = [], []
    for micro in (None, 1, 2):
        job = make_job(tmp_path / str(micro), **stage, micro_batch=micro)
        trainer = loop.Trainer(job, WORLD, print)
        records.append(trainer.step(0)[0])
        gradients.append(trainer.gradients.all)
    assert gradients[0].abs().max() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-6, rtol=1e-5)
    assert {record.tokens for record in records} == {records[0].tokens}
    assert [r.loss for r in records] == pytest.approx([records[0].loss] * 3, abs=1e-6)


def test_clipping_is_by_the_global_norm(make_job, tmp_path):
    free, tight = (
        loop.Trainer(make_job(tmp_path / str(clip), clip=clip), WORLD, print)
        for clip in (1e9, 0.01)
    )
    records = [trainer.step(0)[0] for trainer in (free, tight)]
    assert records[0].grad_norm == records[1].grad_norm
    norms = [float(trainer.gradients.all.norm()) for trainer in (free, tight)]
    assert norms == pytest.approx([records[0].grad_norm, 0.01], rel=1e-3)


def test_a_batch_without_numbers_is_skipped(make_job, tmp_path, numbered_losses):
    numbered_losses(2)
    job = make_job(tmp_path)
    result = train(job, WORLD)
    assert [row["skipped"] for row in rows(job)] == [False, False, True, False, False, False]
    assert rows(job)[2]["loss"] is None
    assert rows(job)[2]["grad_norm"] is None
    assert result.metrics["skipped"] == 1
    assert float(result.optimizer["step"]) == 5
    assert all(w.isfinite().all() for w in weights(result).values())


def test_a_run_in_which_nothing_was_learnt_does_not_end_well(make_job, tmp_path, numbered_losses):
    numbered_losses(*range(6))
    with pytest.raises(UserError, match="nothing was learnt: all 6 updates were skipped"):
        train(make_job(tmp_path), WORLD)


def test_batches_without_a_token_to_train_on_end_the_run(make_job, tmp_path, monkeypatch):
    nothing = lambda self, where: np.zeros(where.stop - where.start, np.bool_)  # noqa: E731
    monkeypatch.setattr("smollm3.data.loader._Source._trained", nothing)
    job = {"mixture": {"chat": 1}, "loss": "assistant"}
    with pytest.raises(UserError, match="step 20: in 20 batches in a row no token is trained on"):
        train(make_job(tmp_path / "long", steps=30, **job), WORLD)
    with pytest.raises(UserError, match="nothing was learnt: all 3 updates were skipped, as no ba"):
        train(make_job(tmp_path / "short", steps=3, **job), WORLD)


def test_a_skipped_step_changes_nothing(make_job, tmp_path, numbered_losses):
    numbered_losses(0)
    trainer = loop.Trainer(make_job(tmp_path), WORLD, print)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    record, _ = trainer.step(0)
    assert record.skipped
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_twenty_in_a_row_end_the_run(make_job, tmp_path, numbered_losses):
    numbered_losses(*range(3, 100))
    with pytest.raises(
        UserError, match=r"step 23: 20 updates.*loss nan.*from (maths, web|web, maths)"
    ):
        train(make_job(tmp_path, steps=100), WORLD)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves(make_job, tmp_path, number):
    def at_three(record, steps):
        if record.step == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    job = make_job(tmp_path / "stopped")
    with pytest.raises(Stopped, match="stopped at step 4; run again") as stopped:
        train(job, WORLD, at_three)
    assert (stopped.value.step, stopped.value.signal) == (4, number)
    assert signal.getsignal(number) == before
    steps = []
    resumed = train(job, WORLD, lambda record, _: steps.append(record.step))
    assert steps == [5, 6]
    undisturbed = train(make_job(tmp_path / "undisturbed"), WORLD)
    for name, weight in weights(undisturbed).items():
        assert torch.equal(weight, weights(resumed)[name])


def test_a_second_signal_is_not_held_back(make_job, tmp_path):
    def twice(record, steps):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(make_job(tmp_path), WORLD, twice)


def test_it_goes_on_from_a_parent_with_its_moments(make_job, tmp_path):
    first = make_job(tmp_path / "a", steps=10)
    parent = save(train(first, WORLD), first, tmp_path / "parent")
    child = make_job(
        tmp_path / "b",
        parent=parent,
        moments=f"{parent}/optimizer.safetensors",
        start={"web": 5, "maths": 7},
        context=64,
        rope_theta=1e5,
    )
    result = train(child, WORLD)
    assert rows(child)[0]["loss"] < rows(first)[0]["loss"] - 0.1
    assert float(result.optimizer["step"]) == 16
    assert result.model.config == child.model
    assert result.model.config.context == 64
    fresh = train(make_job(tmp_path / "c", parent=parent, context=64), WORLD)
    assert float(fresh.optimizer["step"]) == 6


def test_the_reference_is_computed_once(make_job, tmp_path, monkeypatch):
    first = make_job(tmp_path / "first", seed=7, **PAIRS)
    train(first, WORLD)
    assert rows(first)[0]["loss"] == pytest.approx(1.0, abs=1e-6)  # the model is its reference
    assert rows(first)[0]["margin"] == pytest.approx(0.0, abs=1e-5)
    assert {"margin", "accuracy"} <= rows(first)[0].keys()
    compute, calls = reference._compute, []

    def counting(*arguments):
        calls.append(1)
        return compute(*arguments)

    monkeypatch.setattr(reference, "_compute", counting)
    train(make_job(tmp_path / "again", seed=7, **PAIRS | {"loss": "dpo"}), WORLD)
    assert not calls
    train(make_job(tmp_path / "other", seed=8, **PAIRS), WORLD)
    assert len(calls) == 1

    data = os.path.dirname(first.shards["pairs"])
    said = []
    for name in os.listdir(data):
        if name.startswith("reference-"):
            with open(f"{data}/{name}", "wb") as f:
                f.write(b"\xff" * 64)
    train(make_job(tmp_path / "damaged", seed=7, **PAIRS), WORLD, warn=said.append)
    assert len(calls) == 2
    assert len(said) == 1
    assert "damaged" in said[0]


def test_references_do_not_depend_on_the_slices(make_job, tmp_path):
    for loss in ("apo_down", "dpo"):
        got = []
        for micro in (None, 1):
            stage = PAIRS | {"loss": loss, "micro_batch": micro, "beta": 1.0}
            job = make_job(tmp_path / f"{loss}-{micro}", seed=9, **stage)
            train(job, WORLD)
            got.append([row["loss"] for row in rows(job)])
        assert got[0] == pytest.approx(got[1], abs=1e-4)


def test_bfloat16_is_close_and_keeps_float32_weights(make_job, tmp_path):
    losses = {}
    for precision in ("float32", "bfloat16"):
        job = make_job(tmp_path / precision, precision=precision)
        result = train(job, WORLD)
        losses[precision] = [row["loss"] for row in rows(job)]
        assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"] == pytest.approx(losses["bfloat16"], abs=0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_compiled_is_the_same_model(make_job, tmp_path):
    losses = {}
    for compiled in (False, True):
        job = make_job(tmp_path / str(compiled), compile=compiled, steps=3)
        train(job, WORLD)
        losses[compiled] = [row["loss"] for row in rows(job)]
    assert losses[False] == pytest.approx(losses[True], abs=1e-4)


def test_a_schedule_that_does_not_fit_is_refused_before_the_first_step(make_job, tmp_path):
    with pytest.raises(UserError, match="warmup 9"):
        train(make_job(tmp_path, lr={"peak": 1.0, "warmup": 9}), WORLD)
    assert not (tmp_path / "metrics.jsonl").exists()
