import json

import pytest
import torch

from smollm3.errors import UserError
from smollm3.train import training_checkpoint as checkpoints
from smollm3.train.loss_spike import LossSpikeGuard

HERE = {"torch": "2.13", "threads": 1}


def save(folder, progress, job="a", environment=HERE, keep_every=None):
    description = checkpoints.Description(progress, job, environment)
    tensors = {"x": torch.full((3,), float(progress.step))}
    checkpoints.save(folder, description, tensors, keep_every)


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 2, 4 and 6 of job "a"."""
    for step in (2, 4, 6):
        progress = checkpoints.Progress(
            step, loss=1 / 3, seconds=0.1 * step, loss_spike_guard=LossSpikeGuard(step, 0.3)
        )
        save(tmp_path, progress)
    return tmp_path


def find(saved, job="a", environment=HERE):
    said = []
    return checkpoints.find(saved, job, environment, said.append), said


def test_the_newest_two_are_kept_and_the_newest_is_found(saved):
    assert sorted(f.name for f in saved.iterdir()) == ["step-4", "step-6"]
    progress, said = find(saved)
    assert progress == checkpoints.Progress(6, 1 / 3, 0.1 * 6, LossSpikeGuard(6, 0.3))
    assert said == []
    tensors = {"x": torch.zeros(3), "not there": torch.zeros(1)}
    assert checkpoints.read(saved, 6, tensors) == progress
    assert tensors.keys() == {"x"}
    assert tensors["x"].tolist() == [6, 6, 6]


def test_every_nth_is_kept_for_ever(tmp_path):
    for step in range(1, 11):
        save(tmp_path, checkpoints.Progress(step), keep_every=4)
    assert {f.name for f in tmp_path.iterdir()} == {"step-4", "step-8", "step-9", "step-10"}


def test_ten_is_newer_than_nine(saved):
    for step in (9, 10):
        save(saved, checkpoints.Progress(step))
    assert find(saved)[0].step == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / checkpoints.TENSORS).unlink(),
        lambda f: (f / checkpoints.DESCRIPTION).unlink(),
        lambda f: (f / checkpoints.DESCRIPTION).write_text("{"),
        lambda f: (f / checkpoints.DESCRIPTION).write_text("[]"),
        lambda f: (f / checkpoints.TENSORS).write_bytes(
            (f / checkpoints.TENSORS).read_bytes()[:-1]
        ),
        lambda f: (f / checkpoints.TENSORS).write_bytes(
            (f / checkpoints.TENSORS).read_bytes()[:-1] + b"\x01"
        ),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(saved, damage):
    damage(saved / "step-6")
    progress, said = find(saved)
    assert progress.step == 4
    assert len(said) == 1
    assert "step-6: damaged" in said[0]
    assert not (saved / "step-6").exists()


def test_nothing_good_is_a_new_start(saved):
    for folder in saved.iterdir():
        (folder / checkpoints.TENSORS).write_bytes(b"")
    progress, said = find(saved)
    assert progress is None
    assert len(said) == 2
    assert find(saved / "none") == (None, [])


def test_partial_folders_are_no_checkpoints(saved):
    (saved / ".step-8.partial").mkdir()
    (saved / "step-8x").mkdir()
    assert find(saved)[0].step == 6


def test_another_jobs_checkpoint_is_refused(saved):
    with pytest.raises(UserError, match=r"step-6: the checkpoint of another job.*delete"):
        find(saved, job="b")


def test_another_environment_is_named_and_noted(saved):
    progress, said = find(saved, environment={"torch": "2.14", "threads": 1})
    assert progress.resumed_under == [{"torch": ["2.13", "2.14"]}]
    assert len(said) == 1
    assert "resumed under torch 2.14 (was 2.13)" in said[0]
    save(saved, progress, environment={"torch": "2.14", "threads": 1})
    later, said = find(saved, environment={"torch": "2.14", "threads": 1})
    assert (later.resumed_under, said) == ([{"torch": ["2.13", "2.14"]}], [])


def test_the_environment_is_json():
    here = checkpoints.environment(1, 2, "float32", False)
    assert json.loads(json.dumps(here)) == here
    assert here["torch"] == torch.__version__
    assert here["cpu"]
