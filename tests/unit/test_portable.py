"""Stand-ins for what only some systems have: the same as what they stand in for."""

import os
import sys

import pytest

from smollm3 import portable


def test_cpus_are_those_this_process_may_use(monkeypatch):
    assert portable.usable_cpus() == len(os.sched_getaffinity(0)) >= 1
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert portable.usable_cpus() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert portable.usable_cpus() == 1


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (2 << 20) + 5])
@pytest.mark.parametrize("system", ["Linux", "other"])
def test_reserved_bytes_are_there(monkeypatch, tmp_path, size, system):
    if system == "other":
        monkeypatch.delattr(os, "posix_fallocate")
    elif size == 0:
        pytest.skip("posix_fallocate takes no empty file")
    with (tmp_path / "f").open("wb") as file:
        portable.reserve(file, size)
    found = (tmp_path / "f").stat()
    assert found.st_size == size
    assert found.st_blocks * 512 >= size  # no hole


def test_whose_files(monkeypatch, tmp_path):
    file = tmp_path / "key"
    file.touch(mode=0o600)
    assert portable.is_own(file.stat())
    assert not portable.others_can_read(file.stat())
    file.chmod(0o640)
    assert portable.others_can_read(file.stat())
    monkeypatch.setattr(os, "getuid", lambda: os.stat(file).st_uid + 1)
    assert not portable.is_own(file.stat())
    stat = file.stat()
    monkeypatch.delattr(os, "getuid")
    assert portable.is_own(stat)


def test_peak_memory(monkeypatch):
    held = bytearray(64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert portable.peak_memory() > 64 << 20
    monkeypatch.setitem(sys.modules, "resource", None)
    assert portable.peak_memory() is None


def test_reading_at_a_place(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    file = os.open(tmp_path / "f", os.O_RDWR | os.O_APPEND)
    assert portable.read_at(file, 3, 4) == b"456"
    assert portable.read_at(file, 30, 8) == b"89"
    assert portable.read_at(file, 0, 0) == b""
    os.write(file, b"x")
    os.close(file)
    assert (tmp_path / "f").read_bytes() == b"0123456789x"


def test_available_memory(monkeypatch):
    assert 1 << 20 < portable.available_memory() < 1 << 50

    def no_file(path):
        raise FileNotFoundError

    monkeypatch.setattr(portable.Path, "read_text", no_file)
    assert 1 << 20 < portable.available_memory() < 1 << 50  # half of what there is


@pytest.mark.parametrize("system", ["Linux", "other"])
def test_reading_ahead_leaves_the_file_as_it_was(monkeypatch, tmp_path, system):
    if system == "other":
        monkeypatch.delattr(portable.mmap, "MADV_WILLNEED")
    (tmp_path / "f").write_bytes(b"0123456789")
    with (tmp_path / "f").open("rb") as file:
        portable.read_ahead(file, 1 << 20)
        assert file.read() == b"0123456789"
