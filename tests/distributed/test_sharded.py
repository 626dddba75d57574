"""Every way to share a model trains like one process: losses, weights, states, pairs."""

import json
from pathlib import Path

import pytest
import torch

from smollm3.checkpoint import published_name
from smollm3.checkpoint.weights import Weights
from smollm3.train import ProcessGroup, WorkerGroup, train

# 20 steps; a batch that 4 groups of ranks divide, rows that 2·cp·tp divide.
STAGES = {
    "all": {"steps": 20},
    "assistant": {
        "mixture": {"chat": 1},
        "loss": "assistant",
        "packing": "bfd",
        "context": 256,
        "micro_batch": 1,
        "steps": 20,
    },
    "apo_zero": {
        "mixture": {"pairs": 1},
        "loss": "apo_zero",
        "context": 1024,
        "steps": 20,
        "optimizer": {"eps": 1e-4},
    },
}
TWO = {
    "FSDP": {"shard": 2},
    "offload": {"shard": 2, "offload": True},
    "TP": {"tp": 2},
    "CP": {"cp": 2},
}
FOUR = {
    "FSDP": {"shard": 4},
    "HSDP": {"replicate": 2, "shard": 2},
    "TP x FSDP": {"tp": 2, "shard": 2},
    "TP x CP": {"tp": 2, "cp": 2},
    "CP x FSDP": {"cp": 2, "shard": 2},
}


def losses(job) -> list[float]:
    lines = Path(job.work, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def alone(make_job, tmp_path_factory):
    """alone(kind) -> losses of one process, and its weights."""
    results = {}

    def of(kind):
        if kind not in results:
            job = make_job(tmp_path_factory.mktemp("alone"), **STAGES[kind])
            model = train(job, ProcessGroup.single()).model
            results[kind] = losses(job), {n: p.detach() for n, p in model.named_parameters()}
        return results[kind]

    return of


def check(followers, make_job, alone, folder, kind, parallel):
    job = make_job(folder, parallel=parallel, **STAGES[kind])
    result = followers.train(job)
    expected, weights = alone(kind)
    assert losses(job) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    read = Weights(result.written)
    for name, weight in weights.items():
        written = read[published_name(name)]
        torch.testing.assert_close(written, weight, atol=3e-5, rtol=0, msg=name)


# Of the class: a process is in one group at a time.
@pytest.fixture(scope="class")
def two(tmp_path_factory):
    with WorkerGroup(2, tmp_path_factory.mktemp("two")) as followers:
        yield followers


@pytest.fixture(scope="class")
def four(tmp_path_factory):
    with WorkerGroup(4, tmp_path_factory.mktemp("four")) as followers:
        yield followers


class TestTwo:
    @pytest.mark.parametrize(
        "kind", [k if k == "all" else pytest.param(k, marks=pytest.mark.slow) for k in STAGES]
    )
    @pytest.mark.parametrize("parallel", TWO.values(), ids=list(TWO))
    def test_two_are_one(self, make_job, alone, two, tmp_path, parallel, kind):
        check(two, make_job, alone, tmp_path, kind, parallel)

    def test_the_best_weights_of_a_model_in_parts(self, make_job, two, tmp_path):
        stage = {"lr": {"peak": 3.0}, "parallel": {"shard": 2}}  # it only gets worse
        looks = {"validation": {"every": 1, "rows": 8}}
        result = two.train(make_job(tmp_path / "a", steps=6, **looks, **stage))
        best = result.metrics["best_step"]
        assert best < 6
        short = two.train(make_job(tmp_path / "b", steps=best, **stage))
        kept, expected = Weights(result.written), Weights(short.written)
        for name in expected:
            assert torch.equal(kept[name], expected[name])

    @pytest.mark.parametrize("kind", ["all", "apo_zero"])
    def test_in_parts_they_go_back_as_whole(self, make_job, two, tmp_path, kind):
        looks = {"validation": {"every": 6, "rows": 8, "retain": 0.8}}
        stage = STAGES[kind] | {"steps": 6} | looks
        parts = two.train(make_job(tmp_path / "a", parallel={"shard": 2}, **stage))
        whole = train(make_job(tmp_path / "b", **stage), ProcessGroup.single())
        share = parts.metrics["share_of_best"]
        assert whole.metrics["share_of_best"] == share
        assert share < 1 or kind == "apo_zero"  # which gains nothing on these held-out pairs
        weights = Weights(parts.written)
        for name, expected in whole.model.named_parameters():
            if name in weights:  # tied ones are written once
                torch.testing.assert_close(weights[name], expected, atol=1e-5, rtol=0)


@pytest.mark.slow
class TestFour:
    @pytest.mark.parametrize("kind", STAGES)
    @pytest.mark.parametrize("parallel", FOUR.values(), ids=list(FOUR))
    def test_four_are_one(self, make_job, alone, four, tmp_path, parallel, kind):
        check(four, make_job, alone, tmp_path, kind, parallel)
