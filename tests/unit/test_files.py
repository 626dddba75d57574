"""Whole or absent, whatever happens."""

import errno
import multiprocessing
import os

import pytest

from smollm3 import files
from smollm3.errors import UserError


def test_write_atomic_replaces_and_leaves_no_trace(tmp_path):
    path = tmp_path / "sub" / "a.json"
    files.write_json(path, {"x": 1})
    files.write_json(path, {"x": "é"})
    assert files.read_json(path) == {"x": "é"}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_failed_folder_changes_nothing(tmp_path):
    final = tmp_path / "stage"
    with files.new_folder(final) as f:
        (f / "a").write_text("1")
    with pytest.raises(RuntimeError), files.new_folder(final) as f:
        (f / "a").write_text("2")
        raise RuntimeError
    assert (final / "a").read_text() == "1"
    with files.new_folder(final) as f:
        assert list(f.iterdir()) == []
        (f / "b").write_text("3")
    assert [p.name for p in final.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "cannot be written")]
)
def test_disk_errors_are_one_line(tmp_path, monkeypatch, code, message):
    def fail(fd):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=message):
        files.write_atomic(tmp_path / "a", "x")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match=message), files.new_folder(tmp_path / "f") as f:
        (f / "a").write_text("x")
    assert not (tmp_path / "f").exists()


def test_read_json_names_the_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        files.read_json(tmp_path / "a")
    (tmp_path / "a").write_bytes(b'{"a": \xff')
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "a")
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(UserError, match="not valid JSON"):
        files.read_json(tmp_path / "a")


def test_checksum_ignores_key_order():
    assert files.sha256_json({"a": 1, "b": 2}) == files.sha256_json({"b": 2, "a": 1})
    assert files.sha256_json({"a": 1}) != files.sha256_json({"a": 2})


def _hold(folder, ready, done):
    with files.folder_lock(folder):
        ready.set()
        done.wait(30)


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(UserError, match=f"in use by process {other.pid}"),
            files.folder_lock(tmp_path),
        ):
            pass
    finally:
        other.kill()
        other.join()
    with files.folder_lock(tmp_path):  # the kernel freed it
        pass
