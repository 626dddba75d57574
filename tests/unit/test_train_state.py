import json

import pytest
import torch

from smollm3.errors import UserError
from smollm3.train import state
from smollm3.train.guard import Guard

HERE = {"torch": "2.13", "threads": 1}


@pytest.fixture
def states(tmp_path):
    """States of steps 2, 4 and 6 of job "a"."""
    for step in (2, 4, 6):
        progress = state.Progress(step, loss=1 / 3, seconds=0.1 * step, guard=Guard(step, 0.3))
        state.save(tmp_path, progress, {"x": torch.full((3,), float(step))}, "a", HERE)
    return tmp_path


def find(states, job="a", environment=HERE):
    said = []
    return state.find(states, job, environment, said.append), said


def test_the_newest_two_are_kept_and_the_newest_is_found(states):
    assert sorted(f.name for f in states.iterdir()) == ["step-4", "step-6"]
    progress, said = find(states)
    assert progress == state.Progress(6, 1 / 3, 0.1 * 6, Guard(6, 0.3))
    assert said == []
    again, tensors = state.read(states, 6)
    assert again == progress
    assert tensors["x"].tolist() == [6, 6, 6]


def test_ten_is_newer_than_nine(states):
    for step in (9, 10):
        state.save(states, state.Progress(step), {"x": torch.zeros(1)}, "a", HERE)
    assert find(states)[0].step == 10


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / state.TENSORS).unlink(),
        lambda f: (f / state.DESCRIPTION).unlink(),
        lambda f: (f / state.DESCRIPTION).write_text("{"),
        lambda f: (f / state.DESCRIPTION).write_text("[]"),
        lambda f: (f / state.TENSORS).write_bytes((f / state.TENSORS).read_bytes()[:-1]),
        lambda f: (f / state.TENSORS).write_bytes((f / state.TENSORS).read_bytes()[:-1] + b"\x01"),
    ],
)
def test_a_damaged_state_is_named_and_the_one_before_it_used(states, damage):
    damage(states / "step-6")
    progress, said = find(states)
    assert progress.step == 4
    assert len(said) == 1
    assert "step-6: damaged" in said[0]
    assert not (states / "step-6").exists()


def test_nothing_good_is_a_new_start(states):
    for folder in states.iterdir():
        (folder / state.TENSORS).write_bytes(b"")
    progress, said = find(states)
    assert progress is None
    assert len(said) == 2
    assert find(states / "none") == (None, [])


def test_partial_folders_are_no_states(states):
    (states / ".step-8.partial").mkdir()
    (states / "step-8x").mkdir()
    assert find(states)[0].step == 6


def test_another_jobs_state_is_refused(states):
    with pytest.raises(UserError, match=r"step-6: the state of another job.*delete"):
        find(states, job="b")


def test_another_environment_is_named_and_noted(states):
    progress, said = find(states, environment={"torch": "2.14", "threads": 1})
    assert progress.resumed_under == [{"torch": ["2.13", "2.14"]}]
    assert len(said) == 1
    assert "resumed under torch 2.14 (was 2.13)" in said[0]
    state.save(states, progress, {"x": torch.zeros(1)}, "a", {"torch": "2.14", "threads": 1})
    later, said = find(states, environment={"torch": "2.14", "threads": 1})
    assert (later.resumed_under, said) == ([{"torch": ["2.13", "2.14"]}], [])


def test_the_environment_is_json():
    here = state.environment(1, 2, "float32", False)
    assert json.loads(json.dumps(here)) == here
    assert here["torch"] == torch.__version__
    assert here["cpu"]
