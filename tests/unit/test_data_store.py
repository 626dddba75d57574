"""Prepared data behind a URL: fetched when read, kept up to a limit, the same batches."""

import json
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from smollm3.cli import cli
from smollm3.data import prepare, remote
from smollm3.data import store as store_module
from smollm3.data.loader import Loader
from smollm3.data.shards import Shard, move, verify
from smollm3.data.spec import BatchSpec, FileSource
from smollm3.errors import UserError

fsspec = pytest.importorskip("fsspec")
URL = "memory://bucket/data"


@pytest.fixture
def shard(tmp_path, tokenizer, monkeypatch):
    """A source of six parts of some 20 kB, and an empty cache and bucket."""
    monkeypatch.setenv("SMOLLM3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    fsspec.filesystem("memory").store.clear()
    for i in range(6):
        rows = (json.dumps({"text": f"Row {i}.{j}: " + "word " * 40}) for j in range(250))
        (tmp_path / f"{i}.jsonl").write_text("\n".join(rows))
    source = FileSource(kind="jsonl", files=[str(tmp_path / "*.jsonl")], part=0.05)
    return prepare("web", source, tokenizer, tmp_path / "data", 0)


def kept(tmp_path):
    """Bytes of the cached files."""
    files = (tmp_path / "cache" / "parts").rglob("*.ds*")
    return sum(path.stat().st_size for path in files if path.suffix != ".lock")


def batches(shard):
    spec = BatchSpec(mixture={"web": 1.0}, context=64, batch=8, steps=200)
    loader = Loader({"web": shard}, spec, {}, seed=0, pad_id=0)
    return [loader.batch(k).ids_BT for k in range(0, 200, 7)]


@pytest.mark.parametrize("room", [1, 60_000, 10**9])
def test_batches_are_the_same_wherever_parts_lie(shard, tmp_path, room):
    tokens, before, digest = np.array(shard.tokens), batches(shard), shard.digest
    move(shard.folder, URL, room)
    assert not list(shard.folder.glob("train/*"))
    there = Shard.open(shard.folder)
    assert there.digest == digest
    assert all(torch.equal(a, b) for a, b in zip(before, batches(there), strict=True))
    assert np.array_equal(np.array(there.tokens), tokens)
    assert list(verify(shard.folder)) == []
    largest = max(there._size(part, "") for part in range(6))
    assert kept(tmp_path) <= max(room, largest)


def test_what_was_fetched_is_not_fetched_again(shard, tmp_path, monkeypatch):
    move(shard.folder, URL, 10**9)
    batches(Shard.open(shard.folder))
    monkeypatch.setattr(store_module.Store, "_fetch", lambda *_: pytest.fail("fetched"))
    batches(Shard.open(shard.folder))


def test_the_next_part_is_fetched_meanwhile(shard, monkeypatch):
    move(shard.folder, URL, 10**9)
    fetched, done = [], threading.Event()
    fetch = store_module.Store._fetch

    def watched(self, name, path, size):
        file = fetch(self, name, path, size)
        fetched.append(name)
        if name == "train/00001.ds":
            done.set()
        return file

    monkeypatch.setattr(store_module.Store, "_fetch", watched)
    _ = Shard.open(shard.folder).tokens[:10]
    assert done.wait(60)
    assert fetched[0] == "train/00000.ds"
    assert "train/00002.ds" not in fetched


class Shaky:
    """A file system that fails so many times."""

    def __init__(self, times, error):
        self.times, self.error = times, error

    def __call__(self, url):
        system, path = fsspec.core.url_to_fs(url)
        if self.times:
            self.times -= 1
            raise self.error
        return system, path


def test_a_network_that_fails_costs_time(shard, monkeypatch):
    move(shard.folder, URL, 10**9)
    monkeypatch.setattr(fsspec, "url_to_fs", Shaky(3, ConnectionResetError("reset")))
    assert len(Shard.open(shard.folder).tokens[:10]) == 10


@pytest.mark.parametrize("damage", ["gone", "cut", "away"])
def test_what_cannot_be_had_is_one_line(shard, monkeypatch, damage):
    move(shard.folder, URL, 10**9)
    system = fsspec.filesystem("memory")
    name = f"/bucket/data/{shard.folder.name}/train/00000.ds"
    match damage:
        case "gone":
            system.rm(name)
        case "cut":
            system.pipe(name, system.cat(name)[:100])
        case "away":
            monkeypatch.setattr(fsspec, "url_to_fs", Shaky(99, OSError("no route")))
    said = {"gone": "is not there", "cut": "100 bytes instead of", "away": "cannot be fetched .no"}
    with pytest.raises(UserError, match=rf"00000.ds: {said[damage]}"):
        _ = Shard.open(shard.folder).tokens[:10]
    assert any("00000.ds" in line for line in verify(shard.folder))


def test_moving_goes_on_after_a_kill(shard, monkeypatch):
    put, left = type(fsspec.filesystem("memory")).put_file, [4]

    def killed(self, *arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return put(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "put_file", killed)
        with pytest.raises(KeyboardInterrupt):
            move(shard.folder, URL, 10**9)
    assert len(list(shard.folder.glob("train/*.ds"))) == 6
    Shard.open(shard.folder)
    move(shard.folder, URL, 10**9)
    move(shard.folder, URL, 10**9)  # nothing is left to do
    assert list(verify(shard.folder)) == []


def test_the_command(shard, tmp_path, tokenizer):
    run = CliRunner().invoke(
        cli, ["data", "move", str(tmp_path / "data"), f"file://{tmp_path}/far"]
    )
    assert run.exit_code == 0, run.output
    assert "moved to" in run.output
    assert len(list((tmp_path / "far" / shard.folder.name / "train").glob("*.ds"))) == 6
    verified = CliRunner().invoke(cli, ["data", "verify", str(tmp_path / "data")])
    assert verified.exit_code == 0, verified.output
    # Prepared is prepared, wherever it lies.
    source = FileSource(kind="jsonl", files=[str(tmp_path / "*.jsonl")], part=0.05)
    again = prepare("web", source, tokenizer, tmp_path / "data", 0)
    assert "store" in again.meta
    none = CliRunner().invoke(cli, ["data", "move", str(tmp_path / "nothing"), "file:///x"])
    assert "no prepared data in it" in str(none.exception)
