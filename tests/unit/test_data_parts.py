"""Sources in many parts: the same data whoever makes them, however often they are killed."""

import gzip
import json
import os
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from tests.support.data_shards import make_shard, make_stage

from smollm3.data import Loader, Shard, documents, prepare
from smollm3.data import shards as shards_module
from smollm3.data.distribute import Distributed
from smollm3.data.places import Span, split
from smollm3.data.preparation import Here, make
from smollm3.data.readers import Text
from smollm3.data.shards import verify
from smollm3.data.sources import Skipped, plan
from smollm3.data.spec import FileSource, HubSource
from smollm3.errors import UserError
from smollm3.files import write_json


@pytest.fixture
def source(tmp_path):
    """Six files of some 60 kB: a part each."""
    for i in range(6):
        rows = (json.dumps({"text": f"Row {i}.{j}: " + "word " * 40}) for j in range(250))
        (tmp_path / f"{i}.jsonl").write_text("\n".join(rows))
    return FileSource(kind="jsonl", files=[str(tmp_path / "*.jsonl")], part=0.05)


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Killed(BaseException):
    pass


class Killer(Here):
    """Runs the steps here and dies in the middle of one."""

    def __init__(self, after):
        self.after = after

    def __call__(self, name, step, tasks):
        for rank in range(tasks):
            if self.after == 0:
                raise Killed
            self.after -= 1
            step(None, rank, tasks)


def test_a_part_is_about_as_much_input_as_asked_for(source, tmp_path):
    parts = plan(source, 0).parts
    assert len(parts) == 6
    assert all(len(part) == 1 for part in parts)
    assert sorted(part[0].number for part in parts) == list(range(6))
    assert [part[0].number for part in parts] != list(range(6))  # read in a seeded order
    assert len(plan(source.model_copy(update={"part": 100}), 0).parts) == 1
    sizes = [("a", 5), ("b", 5), ("c", 9), ("d", 1), ("e", 30), ("f", 1)]
    names = [[span.file for span in part] for part in split(sizes, 10)]
    assert names == [["a", "b"], ["c", "d"], ["e"], ["f"]]


def test_parts_cover_the_source_once(source):
    planned = plan(source, 0)
    found = [d.id for i in range(6) for d in documents(source, 0, None, planned, i)]
    assert found == [d.id for d in documents(source, 0)]
    assert len(set(found)) == len(found)
    assert len(set(found)) == len(found) == 1500


def test_killed_and_run_again_gives_the_same_bytes(source, tmp_path, tokenizer):
    whole = prepare("s", source, tokenizer, tmp_path / "whole", 0)
    made = []
    for after in (0, 2, 3):
        with pytest.raises(Killed):
            make("s", source, tokenizer, tmp_path / "cut", 0, Killer(after))
        (work,) = (tmp_path / "cut").iterdir()
        assert work.name.startswith(".")
        made.append(len(list((work / "parts").glob("*.json"))) if after else 0)
        (work / "train" / ".00009.ds.77.partial").parent.mkdir(exist_ok=True)
        (work / "train" / ".00009.ds.77.partial").write_bytes(b"of a killed process")
        part = work / "train" / "00001.ds"
        if after == 3:
            part.write_bytes(part.read_bytes()[:100])  # cut off: made again
    assert made == [0, 2, 3]
    again = make("s", source, tokenizer, tmp_path / "cut", 0, Here())
    assert contents(again) == contents(whole.folder)
    assert list(verify(again)) == []


def test_two_workers_make_what_one_makes(source, tmp_path, tokenizer):
    execute = Distributed("local", 2, tmp_path / "logs", {})
    made = make("s", source, tokenizer, tmp_path / "two", 0, execute)
    assert contents(made) == contents(prepare("s", source, tokenizer, tmp_path / "one", 0).folder)
    with pytest.raises(UserError, match=r"sources.s: .*no usable documents"):
        (tmp_path / "empty.jsonl").write_text("{}")
        none = source.model_copy(update={"files": [str(tmp_path / "empty.jsonl")]})
        make("s", none, tokenizer, tmp_path / "two", 0, execute)


def test_an_executors_own_options(source, tmp_path, tokenizer, monkeypatch):
    slurm = Distributed("slurm", 2, tmp_path / "logs", {"partition": "cpu"})
    with pytest.raises(UserError, match=r"--executor slurm: .*'time'; give it with --option"):
        make("s", source, tokenizer, tmp_path / "cache", 0, slurm)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--executor ray needs datatrove; pip install"):
        Distributed("ray", 2, tmp_path / "logs", {})


def test_blocks_bound_the_memory_and_are_shuffled_apart(source, tmp_path, tokenizer, monkeypatch):
    whole = prepare("s", source, tokenizer, tmp_path / "whole", 0)
    monkeypatch.setattr(shards_module, "BLOCK_BYTES", 5_000)
    blocks = prepare("s", source, tokenizer, tmp_path / "blocks", 0)
    assert blocks.n_tokens == whole.n_tokens
    assert sorted(blocks.lengths().tolist()) == sorted(whole.lengths().tolist())
    assert blocks.digest != whole.digest


def test_a_source_stops_at_its_budget(source, tmp_path, tokenizer):
    whole = prepare("s", source, tokenizer, tmp_path / "cache", 0)
    per_part = whole.n_tokens / 6
    few = source.model_copy(update={"tokens": 2.5 * per_part})
    some = prepare("s", few, tokenizer, tmp_path / "cache", 0)
    assert len(some.meta["parts"]) == 3
    assert 2.5 * per_part <= some.n_tokens + some.meta["heldout"]["tokens"] < 3.2 * per_part
    assert {p.name.partition(".")[0] for p in (some.folder / "train").iterdir()} == {
        "00000",
        "00001",
        "00002",
    }
    tiny = source.model_copy(update={"tokens": 100.0})
    assert prepare("s", tiny, tokenizer, tmp_path / "cache", 0).n_tokens < per_part / 3


def test_batches_are_the_same_over_one_file_and_many(tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 999, rng.integers(1, 60)).tolist() for _ in range(200)]
    shards = [make_shard(tmp_path / str(n) / "a", texts, parts=n) for n in (1, 7, 40)]
    assert len(shards[2].meta["parts"]) == 40
    for packing in ("concat_and_chunk", "bfd"):
        stage = make_stage(packing=packing, context=32, batch=4)
        loaders = [Loader({"a": shard}, stage, {"a": 5}, 3, 0) for shard in shards]
        for k in (0, 1, 50, 10**9):
            one, *others = [loader.batch(k) for loader in loaders]
            for other in others:
                assert torch.equal(one.ids_BT, other.ids_BT)
                assert torch.equal(one.weights_BT, other.weights_BT)
                assert torch.equal(one.documents_BT, other.documents_BT)


def test_a_shard_is_one_row_of_tokens(tmp_path):
    texts = [[i] * (i % 5 + 1) for i in range(60)]
    shard = make_shard(tmp_path / "a", texts, parts=9)
    flat = [token for text in texts for token in text]
    assert np.asarray(shard.tokens).tolist() == flat
    assert shard.tokens[3:100].tolist() == flat[3:100]
    assert shard.tokens[7:7].tolist() == []
    assert [shard.tokens[shard.document(i)].tolist() for i in range(60)] == texts
    assert shard.documents_of(2, 150).tolist() == flat[2:150]
    assert shard.ends.tolist() == np.cumsum([len(t) for t in texts]).tolist()
    with pytest.raises(IndexError):
        shard.document(60)


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "OPEN_FILES", 4)
    shard = make_shard(tmp_path / "a", [[i] for i in range(40)], parts=20)
    assert np.asarray(shard.tokens).tolist() == list(range(40))
    assert len(shard._maps) == 4


def test_opening_maps_nothing(tmp_path):
    shard = make_shard(tmp_path / "a", [[i] for i in range(40)], parts=20)
    assert Shard.open(shard.folder)._maps == {}


def test_datatrove_reads_the_parts(tmp_path):
    from datatrove.utils.dataset import DatatroveFolderDataset

    shard = make_shard(tmp_path / "a", [list(range(i, i + 16)) for i in range(30)], parts=3)
    theirs = DatatroveFolderDataset(str(shard.folder / "train"), seq_len=15, token_size=2)
    rows = [theirs[i]["input_ids"].tolist() for i in range(len(theirs))]
    assert [token for row in rows for token in row] == shard.tokens[:].tolist()


# What is read


@pytest.mark.parametrize(
    ("spec", "columns", "text"),
    [
        ("q", ["q"], "Why?"),
        ("{q}\n\n{a.0.text}", ["q", "a"], "Why?\n\nSo."),
        ("{q} {q}", ["q"], "Why? Why?"),
        ("{a.1.text}", ["a"], None),
        ("{n}", ["n"], None),
        ("{q.x}", ["q"], None),
        ("missing", ["missing"], None),
    ],
)
def test_text_templates(spec, columns, text):
    template = Text(spec)
    assert template.columns == columns
    assert template.of({"q": "Why?", "a": [{"text": "So."}], "n": 3}) == text


def test_a_broken_template_is_named():
    with pytest.raises(UserError, match="text: '{q' is no template"):
        _ = Text("{q").columns


@pytest.fixture
def parquet(tmp_path):
    rows = [{"text": f"Row {i}", "other": "x" * 1000, "n": i} for i in range(100)]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)
    return path


def test_parquet_is_cut_between_row_groups(parquet):
    size = parquet.stat().st_size
    parts = split([(str(parquet), size)], size // 4)
    assert [(s.first, s.last, s.row) for [s] in parts] == [
        (i, min(i + 2, 10), 10 * i) for i in range(0, 10, 2)
    ]
    source = FileSource(kind="parquet", files=[str(parquet)])
    found = [
        d for [s] in parts for d in documents(source, 0, None, type(plan(source, 0))([[s]]), 0)
    ]
    assert [(d.id, d.text) for d in found] == [(f"0:{i}", f"Row {i}") for i in range(100)]


def test_one_bad_row_group_is_counted_and_the_rest_read(parquet):
    source = FileSource(kind="parquet", files=[str(parquet)])
    with pyarrow.parquet.ParquetFile(parquet) as file:
        column = file.metadata.row_group(4).column(0)
        start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(parquet.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    parquet.write_bytes(data)
    skipped = Skipped()
    found = [d.id for d in documents(source, 0, skipped)]
    assert found == [f"0:{i}" for i in range(100) if not 40 <= i < 50]
    assert [k.partition(" (")[0] for k in skipped] == [f"{parquet}: row group 4 cannot be read"]


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.jsonl.zst", "b.parquet", "b.txt.gz"])
def test_one_bad_file_is_counted_and_the_rest_read(tmp_path, name):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "c.txt").write_text("one")
    data = b"PAR1 nothing" if "parquet" in name else gzip.compress(b'{"text": "b"}\n' * 999)[:-30]
    (tmp_path / name).write_bytes(data)
    other = "c.txt" if "txt" in name else "a.jsonl"
    files = [str(tmp_path / name), str(tmp_path / other)]
    source = FileSource(kind="text" if "txt" in name else "files", files=files)
    skipped = Skipped()
    assert "one" in {d.text for d in documents(source, 0, skipped)}
    assert any(name in reason for reason in skipped)


def test_urls_are_read_like_files(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/set/a.jsonl", b'{"text": "one"}\n')
    system.pipe("/set/b.jsonl.gz", gzip.compress(b'{"text": "two"}\n'))
    source = FileSource(kind="jsonl", files=["memory://set/*"])
    assert [d.text for d in documents(source, 0)] == ["one", "two"]
    with pytest.raises(UserError, match="memory://set/none: no such file"):
        list(documents(source.model_copy(update={"files": ["memory://set/none"]}), 0))
    with pytest.raises(UserError, match=r"nothing://x: cannot be listed"):
        list(documents(source.model_copy(update={"files": ["nothing://x"]}), 0))


def test_steps_are_for_texts():
    with pytest.raises(ValueError, match="steps work on texts"):
        HubSource(kind="hub", repo="a/b", format="chat", steps=[{"kind": "pii"}])


def test_spans_know_their_rows_for_a_share_of_them(parquet, tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n' * 50)
    files = [str(parquet), str(tmp_path / "b.jsonl")]
    source = FileSource(kind="files", files=files, rows=30)
    planned = plan(source, 0)
    assert planned.rows == 150
    assert {(s.file, s.offset) for part in planned.parts for s in part} == {
        (files[0], 0),
        (files[1], 100),
    }
    assert len(list(documents(source, 0))) == 30
    assert isinstance(planned.parts[0][0], Span)


def test_ten_thousand_parts_open_within_a_second(tmp_path):
    """Of processor time; and the files of one part alone are read for one document."""
    one = make_shard(tmp_path / "a", [[7, 8, 9]])
    [part] = one.meta["parts"]
    names = [f"{i:05d}" for i in range(10_000)]
    for name in names[1:]:
        for suffix in ("", ".index"):
            os.link(one.folder / f"train/00000.ds{suffix}", one.folder / f"train/{name}.ds{suffix}")
    write_json(
        one.folder / "meta.json", {**one.meta, "parts": [{**part, "name": n} for n in names]}
    )
    before = time.thread_time()  # what earlier tests left running is not counted
    shard = Shard.open(one.folder)
    opened = time.thread_time() - before
    assert shard.documents == 10_000
    assert shard.tokens[shard.document(7_654)].tolist() == [7, 8, 9]
    assert {part for part, _ in shard._maps} == {7_654}
    assert opened < 1
