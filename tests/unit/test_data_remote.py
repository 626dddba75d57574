"""Files behind a URL: a network that fails costs time, and is never taken for damage."""

import gzip
import io
import json
from random import Random

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import parquet

from smollm3.data import remote
from smollm3.data.places import Span, find, open_file
from smollm3.data.readers import rows
from smollm3.data.sources import documents
from smollm3.data.spec import FileSource
from smollm3.errors import UserError

ROWS = [{"text": f"row {i} " + "word " * (i % 50)} for i in range(3000)]


class LostError(Exception):
    """As botocore's and aiohttp's: not an OSError."""


class Shaky(MemoryFileSystem):
    """A share of its reads, listings and openings fail."""

    protocol = ("shaky",)
    cachable = False
    share, ranges, rng = 0.05, True, Random(0)
    error: type[Exception] = LostError

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("shaky://"))

    @classmethod
    def fail(cls):
        if Shaky.rng.random() < Shaky.share:
            raise Shaky.error("the line is down")

    def glob(self, path, **options):
        self.fail()
        return super().glob(path, **options)

    def info(self, path, **options):
        self.fail()
        return super().info(path, **options)

    def _open(self, path, mode="rb", **options):
        self.fail()
        return Broken(super()._open(path, mode, **options).getvalue())


class Broken(io.BytesIO):
    def seekable(self):
        return Shaky.ranges

    def seek(self, *where):
        if not Shaky.ranges:
            raise ValueError("whole files only")
        return super().seek(*where)

    def read(self, size=-1):
        data = super().read(min(size, 4096) if size >= 0 else size)  # less than was asked for
        Shaky.fail()
        return data


@pytest.fixture
def shaky(monkeypatch):
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    slept = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    for name, value in {
        "share": 0.05,
        "ranges": True,
        "rng": Random(0),
        "error": LostError,
    }.items():
        monkeypatch.setattr(Shaky, name, value)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    memory.pipe("/set/a.jsonl", lines)
    memory.pipe("/set/b.jsonl.gz", gzip.compress(lines))
    memory.pipe("/set/c.txt", lines)
    memory.pipe("/set/d.csv", b"text\n" + b"".join(f"{r['text']}\n".encode() for r in ROWS))
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), table, row_group_size=500)
    memory.pipe("/set/e.parquet", table.getvalue())
    return slept


NAMES = ("a.jsonl", "b.jsonl.gz", "c.txt", "d.csv", "e.parquet")


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_fails_costs_time(shaky, monkeypatch, name, ranges):
    if not ranges and name != "e.parquet":  # which is read by places
        monkeypatch.setattr(Shaky, "ranges", False)
        monkeypatch.setattr(Shaky, "share", 0.005)  # all before is read once more
    right = list(rows(Span(f"memory://set/{name}", 0)))
    assert not any(read.fault for read in right)
    while not shaky:
        assert list(rows(Span(f"shaky://set/{name}", 0))) == right


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("error", [LostError, TimeoutError])
def test_one_that_stays_away_ends_the_reading(shaky, monkeypatch, name, error):
    """And is no fault of the file: what a source holds would depend on the hour."""
    monkeypatch.setattr(Shaky, "error", error)
    reading = rows(Span(f"shaky://set/{name}", 0), kind=None)
    if name != "c.txt":  # which is one row
        next(reading)
    Shaky.share = 1
    with pytest.raises(
        UserError, match=rf"shaky://set/{name}: cannot be read \(the line is down\)"
    ):
        list(reading)


def test_damage_is_still_damage(shaky):
    memory = fsspec.filesystem("memory")
    memory.pipe("/set/b.jsonl.gz", memory.cat("/set/b.jsonl.gz")[:-40])
    found = list(rows(Span("shaky://set/b.jsonl.gz", 0)))
    assert found[-1].fault


def test_listing(shaky):
    assert {file.rpartition("/")[2] for file, _ in find(["shaky://set/*"])} == set(NAMES)
    Shaky.share = 1
    with pytest.raises(UserError, match=r"^shaky://set/\*: cannot be listed \(the line is down\)$"):
        find(["shaky://set/*"])
    for waited, most in zip(shaky[-5:], (1, 2, 4, 8, 16), strict=True):
        assert most / 2 <= waited <= most


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_no_second_try_changes_is_not_tried_again(shaky, error):
    Shaky.share, Shaky.error = 1, error
    with pytest.raises(UserError, match="cannot be read"):
        open_file("shaky://set/a.jsonl")
    assert not shaky


def test_mistakes_of_ours_stay_mistakes(shaky):
    Shaky.share, Shaky.error = 1, KeyError
    with pytest.raises(KeyError):
        open_file("shaky://set/a.jsonl")


def test_documents(shaky):
    source = FileSource(kind="files", files=["shaky://set/a.jsonl"], format="text")
    assert [d.text for d in documents(source, 0)] == [row["text"] for row in ROWS]


def test_places_of_a_file(shaky):
    with open_file("shaky://set/a.jsonl") as file:
        whole = fsspec.filesystem("memory").cat("/set/a.jsonl")
        assert file.read(10) == whole[:10]
        file.seek(-20, io.SEEK_END)
        assert file.tell() == len(whole) - 20
        assert file.read() == whole[-20:]
        file.seek(5)
        assert file.read(5000) == whole[5:5005]
