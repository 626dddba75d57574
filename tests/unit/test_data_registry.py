"""The sources of the 3B recipe: what the registry says, and ten rows of each schema."""

import gzip
import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from tests.support.servers import running

from smollm3.cli import cli
from smollm3.data import blobs as blobs_module
from smollm3.data import documents, remote
from smollm3.data.readers import Read
from smollm3.data.sources import Skipped
from smollm3.data.spec import Blobs, FileSource, HubSource
from smollm3.errors import UserError
from smollm3.recipe import load_recipe
from smollm3.recipe.data import tokens_needed

RECIPE = load_recipe("smollm3-3b")
BLOB_ROW = {"blob_id": "{i:040x}", "src_encoding": "UTF-8", "path": "/a.py", "length_bytes": 9}
TRACE = {"input": [{"role": "user", "content": "Q{i}"}], "output": "A{i}", "category": "math"}
CHAT = {
    "messages": [{"role": "user", "content": "Q{i}"}, {"role": "assistant", "content": "A{i}"}],
    "source": "x",
}
SMOLTALK = CHAT | {
    "chat_template_kwargs": {
        "custom_instructions": "Be {i}.",
        "enable_thinking": False,
        "python_tools": None,
        "xml_tools": None,
    }
}
PAIR = {
    "prompt": "Q{i}",
    "chosen": CHAT["messages"],
    "rejected": [CHAT["messages"][0], {"role": "assistant", "content": "B{i}"}],
    "chat_template_kwargs": SMOLTALK["chat_template_kwargs"],
}
# Source of the recipe, a row as its card publishes it, and what must be read of row 3.
SCHEMAS = [
    ("fineweb-edu", {"text": "T{i}", "id": "x", "dump": "d", "url": "u", "score": 3.1}, "T3"),
    ("dclm", {"text": "T{i}", "url": "u", "language_id_whole_page_fasttext": {"en": 0.9}}, "T3"),
    ("pes2o", {"id": "x", "text": "T{i}", "source": "s2", "metadata": {"year": 2}}, "T3"),
    ("fw2-fra", {"id": "x", "text": "T{i}", "embeddings": [[0.5] * 8], "quality_score": 0.1}, "T3"),
    ("fw2-kor", {"id": "x", "text": "T{i}", "language": "kor", "top_langs": "{}"}, "T3"),
    ("finemath-4plus", {"url": "u", "text": "T{i}", "int_score": 4}, "T3"),
    ("megamath-web-pro", {"text": "T{i}", "url": "u"}, "T3"),
    ("mwiki", {"id": "1", "url": "u", "title": "t", "text": "T{i}"}, "T3"),
    ("cosmopedia2", {"prompt": "p", "text": "T{i}", "audience": "a"}, "T3"),
    ("kaggle", {"id": "x", "content": "T{i}"}, "T3"),
    ("pull-requests", {"repo_name": "r", "content": "T{i}"}, "T3"),
    (
        "openmathinstruct-2",
        {"problem": "P{i}", "generated_solution": "S{i}", "expected_answer": "3"},
        "P3\n\nS3",
    ),
    (
        "openmathreasoning",
        {"problem": "P{i}", "generated_solution": "S{i}", "inference_mode": "cot"},
        "P3\n\nS3",
    ),
    (
        "opencodereasoning",
        {"id": "x", "input": "P{i}", "output": "S{i}", "source": "codeforces"},
        "P3\n\nS3",
    ),
    (
        "natural-reasoning",
        {"question": "P{i}", "responses": [{"response_model": "m", "response": "S{i}"}]},
        "P3\n\nS3",
    ),
    ("reasoning-nochatml-17m", TRACE, "Q3\n\nA3"),
    ("tinygsm-mind-2students", {"id": "x", "text": "T{i}"}, "T3"),
    ("stack-v2-python", BLOB_ROW, "text 3"),
    ("stack-edu-c-sharp", BLOB_ROW | {"score": 3.2, "int_score": 3}, "text 3"),
    ("reasoning-tulu-chatml-580k", CHAT, [("user", "Q3"), ("assistant", "A3")]),
    ("sft-table-gpt-no-think", SMOLTALK, [("user", "Q3"), ("assistant", "A3")]),
    ("apo-think", PAIR, [("user", "Q3")]),
]


def filled(value, i):
    if isinstance(value, dict):
        return {key: filled(v, i) for key, v in value.items()}
    if isinstance(value, list):
        return [filled(v, i) for v in value]
    return (
        value.replace("{i:040x}", f"{i:040x}").replace("{i}", str(i))
        if isinstance(value, str)
        else value
    )


class Bucket(BaseHTTPRequestHandler):
    """Software Heritage's bucket: `text N` under the id N in 40 hexadecimal digits."""

    log: Counter
    fails: int
    at_once = most_at_once = 0
    lock = threading.Lock()

    def log_message(self, *args):
        pass

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        with self.lock:
            Bucket.at_once += 1
            Bucket.most_at_once = max(Bucket.most_at_once, Bucket.at_once)
            self.log[name] += 1
        try:
            self.answer(name)
        finally:
            with self.lock:
                Bucket.at_once -= 1

    def answer(self, name):
        if self.log[name] <= self.fails:
            return self.send(503, b"")
        n = int(name, 16)
        match n:
            case 90:
                return self.send(404, b"")
            case 91:
                return self.send(200, b"not gzip")
            case 92:
                return self.send(200, gzip.compress(b"caf\xe9"))
            case 93:
                return self.send(200, gzip.compress(b"x" * 100_000))
        self.send(200, gzip.compress(f"text {n}".encode()))
        return None

    def send(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def bucket(fails=0):
    handler = type("Handler", (Bucket,), {"log": Counter(), "fails": fails})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield f"{address}/content/{{id}}", handler


@pytest.mark.parametrize(("name", "row", "expected"), SCHEMAS, ids=[s[0] for s in SCHEMAS])
def test_ten_rows_of_each_schema(tmp_path, monkeypatch, name, row, expected):
    source = RECIPE.sources[name]
    rows = [filled(row, i) for i in range(10)]
    pattern = source.files[0]
    if pattern.endswith(".parquet"):
        path = tmp_path / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path = tmp_path / "a.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    monkeypatch.setattr(
        "smollm3.data.sources.hub_files", lambda s: ("commit", [(str(path), path.stat().st_size)])
    )
    source = source.model_copy(update={"rows": None, "steps": []})
    with bucket() as (url, _):
        if source.blobs:
            source = source.model_copy(update={"blobs": Blobs(url=url)})
        skipped = Skipped()
        found = list(documents(source, 0, skipped))
    assert not skipped
    assert len(found) == 10
    if isinstance(expected, str):
        assert found[3].text == expected
    else:
        assert [(m["role"], m["content"]) for m in found[3].messages] == expected
    if name.startswith("sft"):
        assert found[3].options == {"custom_instructions": "Be 3.", "enable_thinking": False}


def test_every_source_is_described():
    undescribed = [name for name, source in RECIPE.sources.items() if not source.license]
    assert undescribed == []
    for name, source in RECIPE.sources.items():
        assert source.status in ("public", "gated", "substitute"), name
        assert (source.status == "substitute") <= bool(source.note), name
        assert "YOUR" not in source.repo
    used = {s for stage in RECIPE.stages.values() for s in getattr(stage, "mixture", {})}
    assert used == set(RECIPE.sources)


def test_what_the_registry_says_changes_nothing_that_is_made():
    plain = HubSource(kind="hub", repo="a/b")
    described = HubSource(
        kind="hub", repo="a/b", license="mit", status="gated", published_tokens=3e9, note="n"
    )
    assert plain.model_dump() == described.model_dump()


def test_tokens_needed_by_all_stages():
    needed = tokens_needed(RECIPE)
    assert sum(needed.values()) == pytest.approx(11.235e12 + 175.86e9 + 9.45e9, rel=2e-3)
    steps = 576 * 4096 * (3_450_000 * 0.37 / 1.0)
    assert needed["dclm"] > steps * 0.9
    assert "apo-think" not in needed


def test_check_offline_is_a_whole_table():
    result = CliRunner().invoke(cli, ["data", "check", "smollm3-3b"])
    assert result.exit_code == 0, result.output
    assert all(name[:20] in result.output for name in RECIPE.sources)
    assert "it cannot be reached" in result.output
    assert f"{len(RECIPE.sources)} sources:" in result.output


def test_check_counts_local_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "r.yaml").write_text(
        f"""name: r
sources:
  here: {{kind: jsonl, files: ['{tmp_path}/*.jsonl'], license: mit, published_tokens: 1e3, note: "ours"}}
  gone: {{kind: jsonl, files: ['{tmp_path}/none'], status: unpublished}}
  made: {{kind: procedural, generator: web, documents: 5}}
stages:
  tokenizer: {{kind: tokenizer, vocab: 400, mixture: {{made: 1}}}}
"""
    )
    result = CliRunner().invoke(cli, ["data", "check", str(tmp_path / "r.yaml")])
    assert result.exit_code == 0
    assert "16 B" in result.output
    assert "here: ours" in result.output
    assert "gone: no such file" in result.output.replace("\n", "")
    assert "3 sources: 2 public, 1 unpublished; 1 cannot be had now" in result.output


# Texts by id


def stack(tmp_path, numbers):
    rows = [filled(BLOB_ROW, n) for n in numbers]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def test_texts_by_id_come_in_order_and_so_many_at_once(tmp_path):
    Bucket.most_at_once = 0
    with bucket() as (url, handler):
        blobs = Blobs(url=url, requests=3)
        source = FileSource(kind="parquet", files=[stack(tmp_path, range(60))], blobs=blobs)
        assert [d.text for d in documents(source, 0)] == [f"text {i}" for i in range(60)]
    assert max(handler.log.values()) == 1
    assert 1 <= Bucket.most_at_once <= 3


def test_what_the_bucket_does_not_have_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(blobs_module, "MAX_BYTES", 50_000)
    with bucket() as (url, _):
        files = [stack(tmp_path, [1, 90, 91, 92, 93, 2])]
        source = FileSource(kind="parquet", files=files, blobs=Blobs(url=url))
        skipped = Skipped()
        assert [d.text for d in documents(source, 0, skipped)] == ["text 1", "text 2"]
    assert skipped == {
        "not in the bucket": 1,
        "a damaged text in the bucket": 1,
        "not in the encoding that it is said to have": 1,
        "a text above 0 MiB": 1,
    }


def test_a_bucket_that_fails_is_asked_again(tmp_path, monkeypatch):
    monkeypatch.setattr(remote.time, "sleep", lambda s: None)
    with bucket(fails=2) as (url, handler):
        source = FileSource(kind="parquet", files=[stack(tmp_path, range(5))], blobs=Blobs(url=url))
        assert len(list(documents(source, 0))) == 5
        assert set(handler.log.values()) == {3}
    with bucket(fails=99) as (url, handler):
        source = source.model_copy(update={"blobs": Blobs(url=url)})
        with pytest.raises(UserError, match="cannot be read .*503"):
            list(documents(source, 0))
        assert max(handler.log.values()) == remote.ATTEMPTS == 6


def test_ids_that_are_none_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"blob_id": "../secret"}\n{"other": 1}\n[]\n')
    source = HubSource(kind="hub", repo="a/b", blobs={})
    reads = [Read(i, None, row) for i, row in enumerate([{"blob_id": "../x"}, {}, []])]
    found = list(blobs_module.with_texts(reads, source.blobs))
    assert [read.fault for read in found] == ["without the field 'blob_id'"] * 2 + [None]
