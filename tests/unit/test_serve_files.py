"""Files and batches over HTTP: each key's own, whole or absent, resumed where the server ended."""

import contextlib
import datetime
import json
import time
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from tests.support.serving import Settings, listening, local, speaking

from smollm3.infer.errors import EngineClosed
from smollm3.serve import batches as running
from smollm3.serve.batches import ApiLine, Stopped
from smollm3.serve.errors import ApiError
from smollm3.serve.file_store import FileStore

SCRIPT = {"greet": "hello there", "count": "one two three"}
KEYS = ("k" * 16, "l" * 16)


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Batches look up often, so that they end soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smollm3.batch.run.SYNC_SECONDS", 0.02)
        yield


@pytest.fixture(scope="module")
def engine(tokenizer):
    with speaking(tokenizer, SCRIPT) as engine:
        yield engine


@contextlib.contextmanager
def stopped(engine):
    """No step is made."""
    engine.backend.gate.clear()
    try:
        yield
    finally:
        engine.backend.gate.set()


@contextlib.contextmanager
def served(engine, **options):
    with local(engine, **options) as client:
        try:
            yield client
        finally:
            client.service.drain()


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "kept")


ROOM = {"max_file_bytes": 100_000, "max_files_bytes": 150_000}


@pytest.fixture(scope="module")
def client(engine, tmp_path_factory):
    with served(engine, settings=Settings(files=str(tmp_path_factory.mktemp("kept")))) as client:
        yield client


@pytest.fixture
def fresh(engine, folder):
    with served(engine, settings=Settings(files=folder, **ROOM)) as client:
        yield client


def line(name, words="greet", url="/v1/chat/completions", **body):
    if url == "/v1/chat/completions":
        body = {
            "messages": [{"role": "user", "content": words}],
            "reasoning_effort": "none",
            "temperature": 0,
        } | body
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


def jsonl(lines):
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def upload(client, content, name="in.jsonl", status=200, **options):
    response = client.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": "batch"}, **options
    )
    assert response.status_code == status, response.text
    return response.json()


def begin(client, source, endpoint="/v1/chat/completions", status=200, **options):
    body = {"input_file_id": source["id"], "endpoint": endpoint, "completion_window": "24h"}
    response = client.post("/v1/batches", json=body | {"metadata": {"a": "b"}}, **options)
    assert response.status_code == status, response.text
    return response.json()


def ended(client, batch, **options):
    for _ in range(600):
        found = client.get(f"/v1/batches/{batch['id']}", **options).json()
        if found["status"] in running.ENDED:
            return found
        time.sleep(0.02)
    raise AssertionError(found)


def output(client, name, **options):
    content = client.get(f"/v1/files/{name}/content", **options)
    assert content.status_code == 200
    return [json.loads(one) for one in content.text.splitlines()]


def test_a_batch(fresh):
    lines = [
        line("a"),
        line("b", "count"),
        line("c", frobnicate=1),
        line("d", model="other"),
        line("e", stream=True),
    ]
    batch = begin(fresh, upload(fresh, jsonl(lines)))
    assert batch["status"] == "validating"
    found = ended(fresh, batch)
    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    good = output(fresh, found["output_file_id"])
    assert [one["custom_id"] for one in good] == ["a", "b"]
    texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in good]
    assert texts == ["hello there", "one two three"]
    assert good[0]["response"]["body"]["usage"]["completion_tokens"] > 0
    bad = output(fresh, found["error_file_id"])
    assert [one["custom_id"] for one in bad] == ["c", "d", "e"]
    assert {one["response"]["status_code"] for one in bad} == {400}
    messages = [one["response"]["body"]["error"]["message"] for one in bad]
    for message, words in zip(
        messages, ("frobnicate", "'other' is not here", "stream"), strict=True
    ):
        assert words in message
    assert [one["id"] for one in fresh.get("/v1/batches").json()["data"]] == [batch["id"]]


def test_texts_and_all_their_choices(client):
    lines = [
        line("a", url="/v1/completions", prompt=["count", "greet"], n=2, max_tokens=2),
        line("b", url="/v1/completions", prompt="x", echo=True),
    ]
    found = ended(client, begin(client, upload(client, jsonl(lines)), "/v1/completions"))
    [good] = output(client, found["output_file_id"])
    body = good["response"]["body"]
    assert len(body["choices"]) == 4
    assert body["usage"]["completion_tokens"] == 8
    assert found["request_counts"]["failed"] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no requests"),
        (b"\n\n", "no requests"),
        (b"{\n", "no JSON"),
        (b"[]\n", "must be an object"),
        (jsonl([line("a"), line("a")]), "comes twice"),
        (jsonl([line("")]), "custom_id"),
        (jsonl([line("a", url="/v1/completions", prompt="x")]), "url: must be"),
        (jsonl([line("a") | {"method": "GET"}]), "method"),
        (jsonl([line("a") | {"body": 1}]), "body"),
    ],
)
def test_a_file_that_is_no_batch(client, content, said):
    found = ended(client, begin(client, upload(client, content)))
    assert found["status"] == "failed"
    assert said in found["errors"]["data"][0]["message"]


def test_too_many_mistakes_are_not_all_told(client, monkeypatch):
    monkeypatch.setattr(running, "MAX_LINES", 3)
    found = ended(client, begin(client, upload(client, jsonl([line(str(i)) for i in range(5)]))))
    assert "more than 3" in found["errors"]["data"][0]["message"]
    found = ended(client, begin(client, upload(client, b"{\n" * 50)))
    assert len(found["errors"]["data"]) == running.MAX_ERRORS


def test_what_was_answered_is_not_answered_again(engine, folder, tokenizer):
    """The server ends in the middle and goes on after its next start."""
    lines = [line(str(i), "count", n=1) for i in range(12)]
    settings = Settings(files=folder, batch_running=1)
    with local(engine, settings) as client:
        source = upload(client, jsonl(lines))
        batch = begin(client, source)
        while client.get(f"/v1/batches/{batch['id']}").json()["status"] == "validating":
            time.sleep(0.005)
        client.service.drain()
        assert client.post("/v1/files", files={"file": b""}).status_code == 503
    begun = (Path(folder) / "batches" / f"{batch['id']}.answers").read_bytes()
    with local(engine, settings) as client:
        found = ended(client, batch)
        assert found["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
        good = output(client, found["output_file_id"])
        assert [one["custom_id"] for one in good] == [str(i) for i in range(12)]
        kept = [json.loads(one) for one in begun.splitlines() if one.endswith(b"}")]
        for before, after in zip(kept, good, strict=False):
            assert before["body"]["id"] == after["response"]["body"]["id"]
        client.service.drain()


def test_an_engine_that_ends_is_no_answer():
    """Else the next start would find an error, and not try again."""

    def closed(*_):
        raise EngineClosed("the engine is closed")

    gone = SimpleNamespace(start=closed, result=closed)
    one = ApiLine(line("a"), "line 1", lambda _: (gone, closed), "", lambda: None)
    today = datetime.date(2026, 1, 1)
    with pytest.raises(Stopped):
        one.start(None, today)
    with pytest.raises(Stopped):
        one.answer([gone], today)


def test_cancelled(engine, folder):
    with served(engine, settings=Settings(files=folder, batch_running=1)) as client:
        with stopped(engine):
            batch = begin(client, upload(client, jsonl([line(str(i)) for i in range(3)])))
            told = client.post(f"/v1/batches/{batch['id']}/cancel").json()
            assert told["status"] == "cancelling"
        found = ended(client, batch)
        assert found["status"] == "cancelled"
        again = client.post(f"/v1/batches/{batch['id']}/cancel")
        assert again.json()["error"]["code"] == "batch_has_ended"


def test_others_go_first(engine, folder):
    with local(engine, Settings(files=folder)) as client:
        client.service.admission._waiting.append((1, None))
        batch = begin(client, upload(client, jsonl([line("a")])))
        time.sleep(0.1)
        assert client.get(f"/v1/batches/{batch['id']}").json()["status"] != "completed"
        client.service.admission._waiting.clear()
        assert ended(client, batch)["status"] == "completed"
        client.service.drain()


def test_a_fault_ends_one_batch_only(fresh, monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(running, "_check_lines", broken)
        found = ended(fresh, begin(fresh, upload(fresh, jsonl([line("a")]))))
        assert found["errors"]["data"][0]["message"] == "the server has failed: RuntimeError"
    gone = upload(fresh, jsonl([line("a")]))
    with monkeypatch.context() as patch:
        patch.setattr(
            FileStore,
            "path",
            lambda self, kind, name, old=FileStore.path: old(
                self, kind, "none" if name == gone["id"] else name
            ),
        )
        found = ended(fresh, begin(fresh, gone))
    assert "deleted" in found["errors"]["data"][0]["message"]
    assert ended(fresh, begin(fresh, upload(fresh, jsonl([line("a")]))))["status"] == "completed"


def test_so_many_batches_wait(engine, folder):
    with served(engine, settings=Settings(files=folder, max_batches=1)) as client:
        source = upload(client, jsonl([line("a")]))
        with stopped(engine):
            first = begin(client, source)
            error = begin(client, source, status=429)["error"]
        assert error["code"] == "too_many_batches"
        ended(client, first)


def test_files(fresh):
    made = [upload(fresh, b"x" * i, name=name) for i, name in ((1, "a.txt"), (2, "../b\\c.txt"))]
    assert [one["filename"] for one in made] == ["a.txt", "c.txt"]
    assert [one["bytes"] for one in made] == [1, 2]
    names = {one["id"] for one in made}
    listed = fresh.get("/v1/files").json()
    assert {one["id"] for one in listed["data"]} == names
    first = fresh.get("/v1/files?limit=1").json()
    assert first["has_more"]
    rest = fresh.get(f"/v1/files?limit=1&after={first['last_id']}").json()
    assert not rest["has_more"]
    assert {first["first_id"], rest["first_id"]} == names
    assert fresh.get("/v1/files?purpose=other").json()["data"] == []
    assert fresh.get(f"/v1/files/{made[1]['id']}").json() == made[1]
    assert fresh.get(f"/v1/files/{made[1]['id']}/content").content == b"xx"
    assert fresh.delete(f"/v1/files/{made[0]['id']}").json()["deleted"]
    assert fresh.get(f"/v1/files/{made[0]['id']}").status_code == 404


def test_room(fresh):
    upload(fresh, b"x" * 90_000)
    error = upload(fresh, b"x" * 70_000, status=413)["error"]
    assert error["code"] == "files_are_full"
    assert len(fresh.get("/v1/files").json()["data"]) == 1
    upload(fresh, b"x" * 300_000, status=413)

    def chunks():
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 10_000
        yield b"\r\n--b--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert fresh.post("/v1/files", content=chunks(), headers=kind).status_code in (400, 413)
    assert len(fresh.get("/v1/files").json()["data"]) == 1


def test_files_are_counted_too(engine, folder):
    """Empty ones fill a disk as well."""
    with served(engine, settings=Settings(files=folder, max_files=3)) as client:
        made = [upload(client, b"") for _ in range(3)]
        assert upload(client, b"", status=413)["error"]["code"] == "files_are_full"
        client.delete(f"/v1/files/{made[0]['id']}")
        upload(client, b"")


def test_each_key_has_its_share(engine, folder):
    mine, yours = ({"authorization": f"Bearer {key}"} for key in KEYS)
    limits = {"max_files": 4, "max_files_bytes": 4000, "max_batches": 2}
    with served(engine, settings=Settings(files=folder, **limits), keys=KEYS) as client:
        content = jsonl([line("a")])
        source = upload(client, content, headers=mine)
        upload(client, b"x" * (2001 - len(content)), status=413, headers=mine)
        upload(client, b"x", headers=mine)
        upload(client, b"x", status=413, headers=mine)
        other = upload(client, content, headers=yours)
        with stopped(engine):
            first = begin(client, source, headers=mine)
            begin(client, source, status=429, headers=mine)
            second = begin(client, other, headers=yours)
        for batch, key in ((first, mine), (second, yours)):
            ended(client, batch, headers=key)


def test_ended_batches_are_forgotten(engine, folder):
    with served(engine, settings=Settings(files=folder, max_files=2)) as client:
        source = upload(client, b"no batch")
        names = [ended(client, begin(client, source))["id"] for _ in range(5)]
        kept = [batch["id"] for batch in client.get("/v1/batches").json()["data"]]
        assert len(kept) == 2
        assert names[-1] in kept


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": [{}] * 40_000}, "lists and objects"),
        ({"messages": [{"role": "user", "content": "x" * (5 << 20)}]}, "no JSON"),
        ({"messages": [{"role": "user", "content": "x"}], "n": 8}, "at once"),
    ],
)
def test_lines_are_measured_as_bodies_are(engine, folder, body, said):
    with served(engine, settings=Settings(files=folder, running=4)) as client:
        request = {"custom_id": "a", "url": "/v1/chat/completions", "body": body}
        found = ended(client, begin(client, upload(client, json.dumps(request).encode())))
        errors = found["errors"]["data"] if found["errors"] else []
        if found["error_file_id"]:
            [told] = output(client, found["error_file_id"])
            errors = [told["response"]["body"]["error"]]
        assert said in errors[0]["message"]


def test_answers_have_no_more_room_than_files(engine, folder):
    with served(engine, settings=Settings(files=folder, max_files_bytes=4000)) as client:
        lines = jsonl([line(str(i), logprobs=True, top_logprobs=5) for i in range(10)])
        found = ended(client, begin(client, upload(client, lines)))
        assert found["status"] == "failed"
        assert "room" in found["errors"]["data"][0]["message"]
        assert not list(Path(folder).glob("batches/*.answers"))


@pytest.mark.parametrize("name", ["none", "..", "a%2Fb", "x" * 200, "é"])
def test_what_is_not_here(client, name):
    for kind in ("files", "batches"):
        assert client.get(f"/v1/{kind}/{name}").status_code == 404


def test_what_is_wrong_is_said(client, engine):
    assert client.post("/v1/files", data={"purpose": "batch"}).status_code == 415
    response = client.post("/v1/files", files={"other": b"x"}, data={"purpose": "batch"})
    assert response.json()["error"]["param"] == "file"
    response = client.post("/v1/files", files={"file": b"x"})
    assert response.json()["error"]["param"] == "purpose"
    with local(engine) as bare:
        assert upload(bare, b"", status=400)["error"]["code"] == "no_files"
        assert bare.get("/v1/batches").json()["error"]["code"] == "no_files"


def test_a_full_disk(tmp_path):
    def full():
        yield b"x"
        raise OSError(28, "No space left on device")

    store = FileStore(tmp_path, 10, 10)
    with pytest.raises(ApiError, match="disk is full") as found:
        store.add("file-1", "a", "b", "", full())
    assert found.value.status == 507
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_keys_see_their_own(engine, folder):
    mine, yours = ({"headers": {"authorization": f"Bearer {key}"}} for key in KEYS)
    with local(engine, Settings(files=folder), keys=KEYS) as client:
        source = upload(client, jsonl([line("a")]), **mine)
        batch = ended(client, begin(client, source, **mine), **mine)
        for path in (
            f"files/{source['id']}",
            f"files/{batch['output_file_id']}/content",
            f"batches/{batch['id']}",
        ):
            assert client.get(f"/v1/{path}", **mine).status_code == 200
            assert client.get(f"/v1/{path}", **yours).status_code == 404
        assert client.delete(f"/v1/files/{source['id']}", **yours).status_code == 404
        assert client.get("/v1/files", **yours).json()["data"] == []
        assert client.get("/v1/batches", **yours).json()["data"] == []
        begin(client, source, status=404, **yours)
        client.service.drain()


def test_openais_client(engine, folder):
    with (
        listening(engine, Settings(files=folder)) as (address, service),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        source = client.files.create(file=("in.jsonl", jsonl([line("a")])), purpose="batch")
        batch = client.batches.create(
            input_file_id=source.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        for _ in range(600):
            if (batch := client.batches.retrieve(batch.id)).status == "completed":
                break
            time.sleep(0.02)
        [told] = client.files.content(batch.output_file_id).text.splitlines()
        assert json.loads(told)["custom_id"] == "a"
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert len(list(client.files.list(limit=1))) == 2
        assert client.files.delete(source.id).deleted
        service.drain()
