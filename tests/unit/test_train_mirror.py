"""Training checkpoints at a URL: what lies there when something goes wrong, and what is fetched."""

import shutil
from pathlib import Path

import fsspec
import pytest
import torch
from tests.support.noise import save_noise

from smollm3.data import remote
from smollm3.errors import UserError
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.train import ProcessGroup, train
from smollm3.train import training_checkpoint as checkpoints
from smollm3.train.mirror import Mirror

MEMORY = fsspec.filesystem("memory")


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda _: None)
    yield "memory://states/t/stage"
    if MEMORY.exists("/states"):
        MEMORY.rm("/states", recursive=True)


def save(folder, step, job="a"):
    description = checkpoints.Description(checkpoints.Progress(step), job, {})
    checkpoints.save(folder, description, {"x": torch.full((3,), float(step))}, None)
    return checkpoints.folder_of(folder, step)


def there():
    return {path.rpartition("/")[2] for path in MEMORY.ls("/states/t/stage", detail=False)}


@pytest.fixture
def filled(url, tmp_path):
    """Steps 2, 4 and 6 were copied; nothing is here any more."""
    said = []
    copies = Mirror(url, said.append)
    for step in (2, 4, 6):
        copies.put(save(tmp_path, step), keep_every=None)
    copies.tell()
    assert said == []
    shutil.rmtree(tmp_path)
    return copies, said, tmp_path


def test_the_newest_two_are_kept_and_the_newest_is_fetched(filled):
    copies, said, folder = filled
    assert there() == {"step-4", "step-6"}
    copies.get(folder, "a")
    assert [f.name for f in folder.iterdir()] == ["step-6"]
    assert checkpoints.find(folder, "a", {}, said.append).step == 6
    assert said == []


def test_what_is_here_already_is_not_fetched(filled):
    copies, _, folder = filled
    save(folder, 7)
    copies.get(folder, "a")
    assert [f.name for f in folder.iterdir()] == ["step-7"]


def test_every_nth_stays_and_all_go_with_the_stage(url, tmp_path):
    copies = Mirror(url, print)
    for step in range(1, 9):
        copies.put(save(tmp_path, step), keep_every=3)
    assert there() == {"step-3", "step-6", "step-7", "step-8"}
    copies.forget()
    assert not MEMORY.exists("/states/t/stage") or there() == set()
    copies.forget()


@pytest.mark.parametrize("damage", ["tensors", "missing"])
def test_a_damaged_copy_is_told_and_the_one_before_it_fetched(filled, damage):
    copies, said, folder = filled
    path = "/states/t/stage/step-6/tensors.safetensors"
    if damage == "missing":
        MEMORY.rm(path)
    else:
        MEMORY.pipe_file(path, MEMORY.cat_file(path)[:-1] + b"\x01")
    copies.get(folder, "a")
    assert [f.name for f in folder.iterdir()] == ["step-4"]
    assert len(said) == 1
    assert "states/t/stage/step-6: damaged" in said[0]


@pytest.mark.parametrize(
    "description",
    [
        b"no JSON",
        b"[]",
        b'{"job": "a"}',
        b'{"job": "a", "files": 1}',
        b'{"job": "a", "files": {"../step-4/tensors.safetensors": "0"}}',
        b'{"job": "a", "files": {"..": "0"}}',
    ],
)
def test_a_description_of_something_else_is_damage_and_leads_nowhere(filled, description):
    copies, said, folder = filled
    MEMORY.pipe_file("/states/t/stage/step-6/trainer_state.json", description)
    copies.get(folder, "a")
    assert [f.name for f in folder.iterdir()] == ["step-4"]
    (line,) = said
    assert "states/t/stage/step-6: damaged" in line


def test_another_jobs_copy_is_refused(filled):
    copies, _, folder = filled
    with pytest.raises(UserError, match=r"states: .*step-6: the checkpoint of another job.*delete"):
        copies.get(folder, "b")


def test_cut_off_at_any_file_the_older_copies_stay(filled, monkeypatch):
    """As if killed there; what was left in parts goes with the next copy."""
    copies, said, folder = filled
    new = save(folder, 8)
    put = MEMORY.put_file
    for cut in (checkpoints.TENSORS, checkpoints.DESCRIPTION):

        def dying(path, remote, cut=cut):
            if remote.endswith(cut):
                raise OSError("gone")
            put(path, remote)

        monkeypatch.setattr(copies._system, "put_file", dying)
        copies.put(new, None)
        copies.tell()
        assert "step-8: cannot be written (gone)" in said.pop()
        Mirror(copies.url, said.append).get(folder / cut, "a")
        assert [f.name for f in (folder / cut).iterdir()] == ["step-6"]
    monkeypatch.setattr(copies._system, "put_file", put)
    copies.put(save(folder, 10), None)
    assert there() == {"step-6", "step-10"}


def test_a_network_that_fails_five_times_is_asked_six_times(filled, monkeypatch):
    copies, said, folder = filled
    put, asked = MEMORY.put_file, []

    def shaky(path, remote):
        asked.append(remote)
        if len(asked) % 6:
            raise OSError("busy")
        put(path, remote)

    monkeypatch.setattr(copies._system, "put_file", shaky)
    copies.put(save(folder, 8), None)
    copies.tell()
    assert said == []
    assert len(asked) == 12
    assert there() == {"step-6", "step-8"}


def test_what_cannot_be_opened_is_one_line():
    with pytest.raises(UserError, match=r"states: nosuch://x: cannot be opened"):
        Mirror("nosuch://x", print)


def test_a_run_goes_on_where_its_copies_end(make_job, tmp_path, url):
    """On a machine that has nothing: what was trained there is not trained again, and the end has
    the same bits."""
    job = make_job(tmp_path / "run", steps=6, save_every=2, states=url)
    whole = train(job, ProcessGroup.single())
    MEMORY.rm("/states/t/stage/step-6", recursive=True)
    shutil.rmtree(job.work)
    Path(job.work).mkdir()
    steps = []
    result = train(job, ProcessGroup.single(), lambda record, _: steps.append(record.step))
    assert steps == [5, 6]
    expected = dict(whole.model.named_parameters())
    for name, parameter in result.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name


RECIPE = """
name: t
states: {states}
sources:
  web: {{kind: procedural, generator: web, documents: 40}}
stages:
  more:
    kind: train
    from: {folder}/base
    mixture: {{web: 1}}
    context: 32
    batch: 2
    steps: 4
    save_every: 2
    lr: {{peak: 1e-3}}
"""


@pytest.mark.slow
def test_a_stage_that_is_done_needs_its_copies_no_more(tmp_path, tokenizer):
    save_noise(tmp_path / "base", tokenizer)
    store = tmp_path / "store"
    recipe = load_recipe_text(RECIPE.format(folder=tmp_path, states=store.as_uri()), "t.yaml")
    seen = []

    def watched(what, done, of, detail):
        if what == "training" and done == 4:
            seen.extend(store.glob("t/more/step-*"))

    nothing = lambda *_: None  # noqa: E731
    Run(recipe, tmp_path / "run", Events(nothing, nothing, watched, nothing, pytest.fail)).execute()
    assert [folder.name for folder in seen] == ["step-2"]
    assert not list(store.rglob("*.safetensors"))
    assert (tmp_path / "run" / "more" / "stage.json").exists()
