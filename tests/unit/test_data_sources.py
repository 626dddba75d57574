import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from smollm3.data import documents, stdlib
from smollm3.data.sources import Skipped, fingerprint
from smollm3.data.spec import (
    FileSource,
    HubSource,
    ProceduralSource,
    StdlibSource,
)
from smollm3.errors import UserError


def text_source(*files, **more):
    return FileSource(kind="text", files=[str(f) for f in files], **more)


def jsonl_source(*files, **more):
    return FileSource(kind="jsonl", files=[str(f) for f in files], **more)


def test_text_files_in_order_and_what_is_skipped(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("erste Zeile, größer", encoding="utf-8")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / "d.txt").write_text(" \n")
    skipped = Skipped()
    found = list(documents(text_source(tmp_path / "*.txt"), 0, skipped))
    assert [d.text for d in found] == ["erste Zeile, größer", "second"]
    assert skipped == {"not UTF-8": 1, "empty": 1}


def test_ids_do_not_depend_on_the_folder(tmp_path):
    found = []
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("text")
        found.append(list(documents(text_source(tmp_path / name / "*"), 0)))
    assert found[0] == found[1]


@pytest.mark.parametrize("pattern", ["missing.txt", "*.none"])
def test_a_pattern_without_a_match_is_named(tmp_path, pattern):
    with pytest.raises(UserError, match="no such file") as e:
        list(documents(text_source(tmp_path / pattern), 0))
    assert pattern in str(e.value)


def test_an_empty_source_is_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl.*no usable documents.*it is empty"):
        list(documents(jsonl_source(tmp_path / "empty.jsonl"), 0))
    (tmp_path / "bad.jsonl").write_text("{\n[1]\n")
    with pytest.raises(UserError, match="1 damaged JSON, 1 not an object"):
        list(documents(jsonl_source(tmp_path / "bad.jsonl"), 0))


@pytest.mark.parametrize("opener", [open, gzip.open])
def test_jsonl_counts_damaged_lines(tmp_path, opener):
    path = tmp_path / ("a.jsonl" if opener is open else "a.jsonl.gz")
    with opener(path, "wb") as f:
        f.write(b'{"text": "one"}\n{"text": 1}\n{"text": "\xe9"}\n{"te\n\n')
        f.write(b'{"text": "\\ud800"}\n{"text": "two"}\n')
    skipped = Skipped()
    found = list(documents(jsonl_source(path), 0, skipped))
    assert [(d.id, d.text) for d in found] == [("0:0", "one"), ("0:6", "two")]
    assert skipped == {
        "without the field 'text'": 1,
        "not UTF-8": 1,
        "damaged JSON": 1,
        "a lone surrogate, which is no character": 1,
    }


def test_a_cut_off_compressed_file_is_named(tmp_path):
    whole = gzip.compress(b'{"text": "one"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: cannot be read to its end"):
        list(documents(jsonl_source(tmp_path / "a.jsonl.gz"), 0))


CHAT = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    "chat_template_kwargs": {
        "custom_instructions": "Be short.",
        "enable_thinking": False,
        "python_tools": None,
        "xml_tools": ['{"name": "f"}'],
    },
}


def test_smoltalk2_rows_from_jsonl_and_parquet(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n" + '{"messages": []}\n')
    table = pyarrow.Table.from_pylist([CHAT, CHAT | {"chat_template_kwargs": None}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    skipped = Skipped()
    (one,) = documents(jsonl_source(tmp_path / "a.jsonl", format="chat"), 0, skipped)
    assert skipped == {"without messages": 1}
    parquet = FileSource(kind="parquet", files=[str(tmp_path / "*.parquet")], format="chat")
    two, plain = documents(parquet, 0)
    assert one.messages == two.messages == CHAT["messages"]
    assert one.options == two.options
    assert one.options == {
        "tools": ['{"name": "f"}'],
        "custom_instructions": "Be short.",
        "enable_thinking": False,
    }
    assert (plain.options, plain.guessed) == ({"enable_thinking": False}, True)
    assert list(one.texts()) == ['{"name": "f"}', "Hi", "Hello"]


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: not a whole Parquet file"):
        list(documents(FileSource(kind="parquet", files=[str(tmp_path / "a.parquet")]), 0))


USER = {"role": "user", "content": "Q"}
GOOD, BAD = ({"role": "assistant", "content": c} for c in ("good", "bad"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "good", "rejected": "bad"},
        {"prompt": "Q", "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
)
def test_spellings_of_a_pair(tmp_path, row):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (pair,) = documents(jsonl_source(tmp_path / "p.jsonl", format="preference"), 0)
    assert (pair.messages, pair.chosen, pair.rejected) == ([USER], [GOOD], [BAD])


def test_equal_sides_are_no_pair(tmp_path):
    rows = [{"prompt": "Q", "chosen": "a", "rejected": b} for b in "ab"]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    skipped = Skipped()
    assert list(documents(jsonl_source(tmp_path / "p.jsonl", format="preference"), 0, skipped))
    assert skipped == {"both answers are the same": 1}


def test_rows_keep_a_seeded_sample(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "t{i}"}}\n' for i in range(50)))

    def texts(seed, **more):
        return [d.text for d in documents(jsonl_source(tmp_path / "a.jsonl", **more), seed)]

    ten = texts(0, rows=10)
    assert len(ten) == 10
    assert ten == texts(0, rows=0.2) == texts(0, rows=10)
    assert ten != texts(1, rows=10)
    assert set(ten) < set(texts(0, rows=20))  # a longer sample holds the shorter one
    assert len(texts(0, rows=99)) == 50


def test_standard_library():
    code = StdlibSource(kind="stdlib", part="code")
    prose = StdlibSource(kind="stdlib", part="prose")
    first = documents(code, 0)
    some = [next(first) for _ in range(150)]
    assert all(1 <= d.text.count("\n") <= 60 for d in some)
    assert sum("def " in d.text for d in some) > 50
    stream = documents(prose, 0)
    texts = [next(stream).text for _ in range(50)]
    assert all(len(t) >= 80 and not t.startswith(" ") for t in texts)
    assert len(list(documents(code.model_copy(update={"rows": 7}), 0))) == 7
    other = documents(code, 1)
    assert next(other).text != some[0].text
    first.close(), stream.close(), other.close()


def test_hub_offline_is_one_line():
    source = HubSource(kind="hub", repo="nobody/nothing-here")
    with pytest.raises(UserError, match="nobody/nothing-here@main: cannot be had") as e:
        list(documents(source, 0))
    assert "\n" not in str(e.value)


def test_hub_snapshot_is_read_like_files(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n')
    (tmp_path / "README.md").write_text("card")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    source = HubSource(kind="hub", repo="a/b", files=["**/*.jsonl"])
    assert {d.text for d in documents(source, 0)} == {"one", "two"}
    assert fingerprint(source) == str(tmp_path)


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint(text_source(path))
    assert before == fingerprint(text_source(path))
    path.write_text("three")
    assert before != fingerprint(text_source(path))
    generated = ProceduralSource(kind="procedural", generator="web", documents=3)
    assert fingerprint(generated) == fingerprint(generated)


def test_a_few_rows_of_the_library_read_a_few_files(monkeypatch):
    """Its thousand files take seconds to parse; they come shuffled, so the first rows are enough."""
    parsed = []
    parse = stdlib.ast.parse
    monkeypatch.setattr(stdlib.ast, "parse", lambda code: parsed.append(1) or parse(code))
    source = StdlibSource(kind="stdlib", part="code", rows=10)
    assert len(list(documents(source, seed=0))) == 10
    assert len(parsed) <= 10
