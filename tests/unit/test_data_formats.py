"""Files as people have them, what is found in them, pairs, and what is said of them."""

import bz2
import datetime
import gzip
import json
from decimal import Decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smollm3.data import places, readers
from smollm3.data.detect import detect, source_of
from smollm3.data.formats import COLUMNS
from smollm3.data.hub import wanted
from smollm3.data.ledger import notes
from smollm3.data.look import bytes_tokenizer, look
from smollm3.data.messages import ROLES
from smollm3.data.places import Span
from smollm3.data.preparation import prepare
from smollm3.data.sources import Skipped, documents
from smollm3.data.spec import FileSource, HubSource
from smollm3.errors import UserError

TOKENIZER = bytes_tokenizer()
Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
ROWS = [{"messages": [Q | {"content": f"Q{i}"}, A]} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE = "prompt;completion\r\nQ0;A\r\nQ1;A\r\n\r\nQ2;A\r\n"


def parquet(rows, path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def zstd(data):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


def parquet_bytes():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "a.json": json.dumps(ROWS).encode(),
    "spread.json": json.dumps(ROWS, indent=2).encode(),
    "wrapped.json": json.dumps({"version": 1, "data": ROWS}, indent=1).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "a.JSONL.GZ": gzip.compress(LINES),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "a.jsonl.zst": zstd(LINES),
    "a.jsonl.bz2": bz2.compress(LINES),
    "compressed without saying so.jsonl": gzip.compress(LINES),
    "[1] #2?.jsonl": LINES,
    "without suffix": LINES,
    "a.csv": TABLE.encode(),
    "bom.csv": b"\xef\xbb\xbf" + TABLE.replace(";", ",").encode(),
    "a.tsv": TABLE.replace(";", "\t").encode(),
    "a.PARQUET": parquet_bytes(),
    "parquet without suffix": parquet_bytes(),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_people_have_them(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    found = detect(tmp_path / name)
    assert (found.format, found.rows, found.fits) == ("chat", 3, 3)
    texts = [[m["content"] for m in d.messages] for d in documents(found.source, 0)]
    assert texts == [["Q0", "A"], ["Q1", "A"], ["Q2", "A"]]
    kept = documents(found.source.model_copy(update={"rows": 2}), 0)
    assert len(list(kept)) == 2


def test_a_folder_is_its_data_files(tmp_path):
    for name in ("a.jsonl", "b/c.csv", "README", "card.yaml", ".cache/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(TABLE.encode() if name.endswith("csv") else LINES)
    found = detect(tmp_path)
    assert len(list(documents(found.source, 0))) == 6
    assert [p.rpartition("/")[2] for p in places.left_out(tmp_path)] == ["README", "card.yaml"]
    texts = FileSource(kind="text", files=[str(tmp_path / "b")])
    assert [d.text for d in documents(texts, 0)] == [TABLE.replace("\r\n", "\n")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: a folder without data files"):
        detect(tmp_path / "empty")


DAMAGED = {
    "a.json": (
        b'[\n  {"a": 1},\n  {"a": \n  },\n  {"a": 3}\n]',
        [(2, None), (3, "damaged JSON"), (5, None)],
    ),
    "cut.json": (b'[{"a": 1}, {"a":', [(1, None), (1, "damaged JSON, and what follows it")]),
    "open.json": (b'[{"a": 1},\n', [(1, None), (2, "an array that is cut off")]),
    "b.json": (b'{\n"a": 1\n"b"}', [(1, "damaged JSON"), (2, "damaged JSON"), (3, "damaged JSON")]),
    "one.json": (b'{\n"a": 1\n}', [(1, None)]),
    "lists.jsonl": (b"[1]\n[2]\n", [(1, None), (2, None)]),
    "a.csv": (
        b'a,b\n1,"2\n3"\n1,2,3\n1\n',
        [(2, None), (4, "more cells than the table has columns"), (5, None)],
    ),
    "twice.csv": (b"a,a\n1,2\n", [(1, "twice.csv: two columns of one name")]),
    "empty.csv": (b"", []),
    "a.gz": (gzip.compress(LINES)[:-30], "a.gz: cannot be read to its end"),
    "odd.jsonl": (b"\xff\xfea\xd8b\xd8", "not UTF-16"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_name_their_lines(tmp_path, name):
    data, expected = DAMAGED[name]
    (tmp_path / name).write_bytes(data)
    reads = list(readers.rows(Span(str(tmp_path / name), 0)))
    if isinstance(expected, str):
        assert expected in reads[-1].fault
    else:
        faults = [r.fault and r.fault.removeprefix(f"{tmp_path}/") for r in reads]
        assert list(zip([r.line for r in reads], faults, strict=True)) == expected


def test_a_line_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW", 100)
    (tmp_path / "a.jsonl").write_bytes(b'"' + b"x" * 1000 + b'"\n' + b'{"a": 1}\n')
    first, second = readers.rows(Span(str(tmp_path / "a.jsonl"), 0))
    assert (first.line, second.line, second.row) == (1, 2, {"a": 1})
    assert first.fault.startswith("a line above")


def test_an_object_over_lines_that_is_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_ROW", 100)
    (tmp_path / "a.json").write_bytes(b'{\n"a": "' + b"x" * 1000 + b'"}')
    [read] = readers.rows(Span(str(tmp_path / "a.json"), 0))
    assert read.fault == "a value above 0 MiB"


def test_large_arrays_are_read_a_piece_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BUFFER", 16)
    rows = [{"text": "é" * i, "n": [i]} for i in range(100)]
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=indent))
        assert [r.row for r in readers.rows(Span(str(tmp_path / "a.json"), 0))] == rows


# Arrow


def call(name, arguments):
    return {
        "role": "assistant",
        "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
    }


def test_what_arrow_adds_is_taken_off(tmp_path):
    """Columns of a struct are there in every row, and maps are lists of pairs."""
    rows = [
        {"messages": [Q, call("f", {"x": 1})], "tools": [{"name": "f", "a": {"k": "v"}}]},
        {"messages": [Q, call("g", {"y": "b"})], "tools": [{"name": "g", "b": 1}]},
    ]
    source = detect(parquet(rows, tmp_path / "a.parquet")).source
    first, second = documents(source, 0)
    assert [d.options["tools"] for d in (first, second)] == [row["tools"] for row in rows]
    arguments = [d.messages[1]["tool_calls"][0]["function"]["arguments"] for d in (first, second)]
    assert arguments == [{"x": 1}, {"y": "b"}]

    call_type = pyarrow.struct(
        {"name": pyarrow.string(), "arguments": pyarrow.map_(pyarrow.string(), pyarrow.int64())}
    )
    message = pyarrow.struct(
        {
            "role": pyarrow.string(),
            "content": pyarrow.string(),
            "tool_calls": pyarrow.list_(call_type),
        }
    )
    flat = [Q, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": 1}}]}]
    table = pyarrow.table({"messages": pyarrow.array([flat], pyarrow.list_(message))})
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    [document] = documents(detect(tmp_path / "m.parquet").source, 0)
    assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}


def test_nulls_of_json_lines_stay_where_the_schema_allows_them(tmp_path):
    schema = {
        "properties": {"a": {"type": ["integer", "null"]}, "b": {}, "c": {"type": "string"}},
        "required": ["c"],
    }
    row = {
        "messages": [Q, call("f", {"a": None, "b": None, "c": None, "d": None, "e": 1})],
        "tools": [{"name": "f", "parameters": schema, "strict": None}],
    }
    path = tmp_path / "a.jsonl"
    for tools, kept in (
        (row["tools"], {"a": None, "c": None, "e": 1}),
        (None, dict.fromkeys("abcd") | {"e": 1}),
    ):
        path.write_text(json.dumps({**row, "tools": tools}))
        [document] = documents(detect(path).source, 0)
        assert document.messages[1]["tool_calls"][0]["function"]["arguments"] == kept
        if tools:
            assert "strict" not in document.options["tools"][0]


def test_values_that_json_has_not(tmp_path):
    """In columns that nobody reads they matter to nobody; in arguments they are written as JSON."""
    times = pyarrow.array([1, 2**62], pyarrow.timestamp("ns"))
    odd = {
        "when": datetime.date(2026, 1, 2),
        "how": Decimal("1.50"),
        "many": Decimal(3),
        "raw": b"x",
    }
    rows = [{"messages": [Q, call("f", odd)]}, {"messages": [Q, call("f", odd | {"raw": b"\xff"})]}]
    table = pyarrow.Table.from_pylist(rows).append_column("at", times)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    skipped = Skipped()
    [document] = documents(detect(tmp_path / "a.parquet").source, 0, skipped)
    arguments = document.messages[1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"when": "2026-01-02", "how": 1.5, "many": 3, "raw": "x"}
    assert skipped.places == {"bytes that are no text": ["a.parquet row 2"]}


# Looking


def test_what_is_found_can_be_overruled(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"frage": "Q", "antwort": "A"}\n{"x": 1}\nbroken\n')
    with pytest.raises(UserError, match=r"3 rows \(2 neither a text nor a conv.*1 damaged JSON"):
        detect(tmp_path / "a.jsonl")
    columns = {"prompt": "frage", "completion": "antwort"}
    found = detect(tmp_path / "a.jsonl", columns=columns, thinking="think")
    assert str(found) == "conversations (prompt and completion) in 1 of the first 3 rows"
    assert found.read == ["frage", "antwort"]
    path = str(tmp_path / "a.jsonl")
    assert found.spec == {
        "kind": "files", "files": [path], "format": "chat", "columns": columns, "thinking": "think",
    }  # fmt: skip
    assert FileSource.model_validate(found.spec) == found.source
    [document] = documents(found.source, 0)
    assert [m["content"] for m in document.messages] == ["Q", "A"]
    assert document.options == {"enable_thinking": True}
    assert not document.guessed
    (tmp_path / "t.jsonl").write_text('{"id": "1", "body": "Some text"}\n')
    assert detect(tmp_path / "t.jsonl").source.text == "body"
    template = detect(tmp_path / "t.jsonl", format="text", text="{id}: {body}")
    assert [d.text for d in documents(template.source, 0)] == ["1: Some text"]
    assert template.read == ["id", "body"]


@pytest.mark.parametrize(
    ("given", "kind", "rest"),
    [
        ("HuggingFaceTB/smoltalk", "hub", "main"),
        ("hub:HuggingFaceTB/smoltalk@abc", "hub", "abc"),
        ("folder/a.jsonl", "files", None),
        ("./missing/folder", "files", None),
        ("data/*", "files", None),
        ("s3://bucket/a", "files", None),
    ],
)
def test_what_a_path_is(given, kind, rest):
    source = source_of(given)
    assert (source.kind, getattr(source, "revision", None)) == (kind, rest)


def test_the_hubs_default_leaves_out_splits_for_testing():
    assert HubSource(kind="hub", repo="a/b").files == []
    splits = ["train-00000-of-1", "test-00000-of-1", "validation-0", "dev", "test/0", "latest-0"]
    names = [f"data/{split}.parquet" for split in splits]
    assert wanted([*names, "data/train.jsonl", "README.md"], []) == [
        "data/train-00000-of-1.parquet",
        "data/latest-0.parquet",
    ]
    assert wanted(["train.jsonl.gz", "test.jsonl.gz", "card.md"], []) == ["train.jsonl.gz"]
    assert wanted(names, ["**/test-*.parquet"]) == ["data/test-00000-of-1.parquet"]


# Pairs

S, B = {"role": "system", "content": "S"}, {"role": "assistant", "content": "B"}
PAIRS = {
    "a system message in both": ({"prompt": "Q", "chosen": [S, Q, A], "rejected": [S, Q, B]}, [S, Q]),
    "the prompt is the end": ({"prompt": [Q], "chosen": [S, Q, A], "rejected": [S, Q, B]}, [S, Q]),
    "other keys": ({"chosen": [Q | {"id": 1}, A], "rejected": [Q | {"id": 2}, B]}, [Q]),
    "white space": ({"prompt": "Q ", "chosen": [Q, A], "rejected": [Q, B]}, [Q]),
    "a shared answer": ({"prompt": "Q", "chosen": [B, Q, A], "rejected": [B, Q, B]}, [Q, B, Q]),
    "a system of its own": ({"system": "S", "prompt": "Q", "chosen": "A", "rejected": "B"}, [S, Q]),
    "ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        [Q],
    ),
    "transcripts": (
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"},
        [Q],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_turns_that_both_sides_share(tmp_path, name):
    row, before = PAIRS[name]
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    [pair] = documents(detect(tmp_path / "p.jsonl").source, 0)
    said = [{key: m[key] for key in ("role", "content")} for m in pair.messages]
    assert [{**m, "content": m["content"].strip()} for m in said] == before
    assert (pair.chosen, pair.rejected) == ([A], [B])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": [Q, A], "rejected": [Q, A | {"content": "A "}]}, "both answers are the same"),
        ({"chosen": [Q, A], "rejected": [Q, A, Q, B]}, "one side of the pair is the beginning"),
        ({"chosen": [Q, A], "rejected": [S, Q, A]}, "answer different prompts"),
        ({"chosen": "A", "rejected": "B"}, "a pair without a prompt"),
        ({"messages": [Q, A]}, "not a pair: messages"),
    ],
)
def test_what_is_no_pair(tmp_path, row, reason):
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    source = FileSource(kind="files", files=[str(tmp_path / "p.jsonl")], format="preference")
    with pytest.raises(UserError, match=f"1 .*{reason}"):
        list(documents(source, 0))


# What is said


def test_what_was_left_out_and_guessed_is_said_with_its_lines(tmp_path):
    rows = [*ROWS, {"messages": [Q, A | {"reasoning_content": "hm"}]}, *[{"messages": [Q]}] * 7]
    rows.append({"messages": [{"role": "system", "content": "/think"}, Q, A]})
    rows.append({"messages": [Q, A], "chat_template_kwargs": {"enable_thinking": True}})
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = bytes_tokenizer()
    source = FileSource(kind="files", files=[str(tmp_path / "a.jsonl")], format="chat")
    shard = prepare("mine", source, tokenizer, tmp_path / "cache", 0)
    assert list(notes(shard.meta)) == [
        "7 documents skipped (without an answer): "
        "a.jsonl:5, a.jsonl:6, a.jsonl:7, a.jsonl:8, a.jsonl:9, ...",
        "conversations that say nothing about thinking are trained by what they hold: "
        "3 as /no_think for lack of reasoning, 1 as /think for their reasoning; "
        "`thinking` of the source sets it",
    ]
    assert set(shard.meta["tokens_by_mode"]) == {"think", "no_think", "not said"}
    assert shard.meta["trained"]["published"] > shard.meta["trained"]["generated"] > 0

    said = source.model_copy(update={"thinking": "no_think"})
    shard = prepare("mine", said, tokenizer, tmp_path / "cache", 0)
    assert ["reasoning in a /no_think" in note for note in notes(shard.meta)] == [True, False]
    plain = "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    shard = prepare("mine", source, tokenizer.with_template(plain), tmp_path / "cache", 0)
    assert len(list(notes(shard.meta))) == 1  # a template without modes: there is nothing to guess


def test_a_guess_that_the_template_contradicts_is_not_held_to(tmp_path):
    """Some templates write a header for answers without reasoning that they take off later."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
        "{% endif %}"
    )
    (tmp_path / "a.jsonl").write_bytes(LINES)
    tokenizer = bytes_tokenizer().with_template(template)
    source = detect(tmp_path / "a.jsonl").source
    assert prepare("mine", source, tokenizer, tmp_path / "c", 0).meta["skipped"] == {}
    said = source.model_copy(update={"thinking": "no_think"})
    with pytest.raises(UserError, match="3 cannot be rendered: message 1 does not continue"):
        prepare("mine", said, tokenizer, tmp_path / "c", 0)


def test_texts_that_carry_a_template_are_said(tmp_path):
    texts = ["<|im_start|>user\nQ<|im_end|>", "[INST] Q [/INST]", "About <|im_start|>", "plain"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    shard = prepare(
        "mine", detect(tmp_path / "a.jsonl").source, bytes_tokenizer(), tmp_path / "c", 0
    )
    [note] = notes(shard.meta)
    assert note.startswith("2 texts begin with the marks of a chat template")


def test_weights_are_in_the_shards_masks(tmp_path):
    row = {"messages": [Q, A | {"content": "no", "weight": 0}, Q, A]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    tokenizer = bytes_tokenizer()
    shard = prepare("mine", detect(tmp_path / "a.jsonl").source, tokenizer, tmp_path / "c", 0)
    for bit, text in (
        (1, "A<|im_end|>"),
        (2, "<|im_start|>assistant\n<think>\n\n</think>\nA<|im_end|>\n"),
    ):
        trained = np.asarray(shard.tokens)[(np.asarray(shard.masks) & bit) != 0]
        assert tokenizer.decode(trained.tolist()) == text


def test_many_reasons_are_counted_together():
    skipped = Skipped()
    for i in range(150):
        skipped.note(f"reason {i}", "")
    assert len(skipped) == 101
    assert (skipped["other reasons"], sum(skipped.values())) == (50, 150)


def test_a_data_set_on_the_hub_is_found_by_looking(tmp_path, monkeypatch):
    """The training files of the cache alone, as without a network."""
    (tmp_path / "data").mkdir()
    parquet(ROWS, tmp_path / "data" / "train-0.parquet")
    parquet([{"a": 1}], tmp_path / "data" / "test-0.parquet")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tmp_path))
    found = detect("somebody/talks", thinking="no_think")
    assert (found.format, found.rows, found.source.kind) == ("chat", 3, "hub")
    assert [d.messages[0]["content"] for d in documents(found.source, 0)] == ["Q0", "Q1", "Q2"]


# Whatever a row holds

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
roles = st.sampled_from([*ROLES, "usr", 5])
contents = scalars | st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": scalars}), max_size=2
)
functions = st.fixed_dictionaries(
    {"name": scalars, "arguments": scalars | st.dictionaries(st.text(max_size=2), scalars)}
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": roles, "from": roles, "content": contents, "value": contents, "weight": scalars,
        "tool_calls": scalars | st.lists(functions | st.fixed_dictionaries({"function": functions})),
        "reasoning_content": scalars, "train": scalars, "tool_call_id": scalars,
    },
)  # fmt: skip
trees = st.recursive(
    scalars,
    lambda replies: st.fixed_dictionaries(
        {"text": scalars, "replies": st.lists(replies, max_size=3) | scalars},
        optional={"role": roles, "rank": scalars, "deleted": scalars},
    ),
    max_leaves=5,
)
values = (
    scalars
    | turns
    | trees
    | st.lists(turns, max_size=3)
    | st.lists(scalars, max_size=2)
    | st.lists(functions, max_size=2)
)
# A row that is right, of which some columns are anything.
bases = st.sampled_from(
    [
        {},
        {"prompt": "q", "completion": "a"},
        {"instruction": "q", "input": "", "output": "a", "history": [["p", "b"]]},
        {"instruction": "q", "instances": [{"input": "", "output": "a"}]},
        {
            "prompt": {
                "text": "q",
                "role": "prompter",
                "replies": [{"text": "a", "role": "assistant"}],
            }
        },
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"text": "### Instruction:\nq\n\n### Response:\na"},
    ]
)
columns = st.dictionaries(
    st.sampled_from([*COLUMNS, "history", "other"]), values | values.map(json.dumps), max_size=5
)
rows_ = st.builds(dict.__or__, bases, columns)


@settings(max_examples=150)
@given(rows_, st.sampled_from(["chat", "preference"]))
@example({"instances": [], "instruction": False}, "chat")
@example({"prompt": "q", "completion": "a", "history": True}, "chat")
@example({"prompt": {"text": "q", "replies": True}}, "chat")
def test_any_row_is_used_or_left_out(tmp_path_factory, row, form):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row))
    [looked] = look(FileSource(kind="files", files=[str(path)], format=form), TOKENIZER)
    assert bool(looked.left_out) != bool(looked.sides)
    json.dumps(looked.to_json())
