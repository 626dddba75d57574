"""Depth and size of what is parsed, and what children and logs are told.

Bounds: a file of a few kilobytes that stands for gigabytes takes less than 600 MiB, and no file
ends the process.
"""

import bz2
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from smollm3.agent.approval import ApprovalRequest
from smollm3.agent.mcp import McpServer
from smollm3.chat import sandbox
from smollm3.config import read_document
from smollm3.errors import UserError
from smollm3.serve.settings import Settings, key_texts
from tests.attack.victim import victim
from tests.support.serving import local, speaking

pytestmark = pytest.mark.xdist_group("attack")
MOST = 600 << 20  # bytes; Python with what reads files takes some 120 MiB of it


def read_apart(code, *arguments):
    """What the code prints, and the bytes that it took, in a process of its own."""
    told = "\nfor line in open('/proc/self/status'):\n    line.startswith('VmHWM') and print(line.split()[1])"
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-c", code + told, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-500:]
    *lines, taken = done.stdout.splitlines()
    return lines, int(taken) << 10


READ_YAML = """
import sys
from smollm3.config import read_document
from smollm3.errors import UserError
for text in ("[" * 10**6, "{a: " * 10**6, "- " * 10**6, "a:\\n" * 1000, "? " * 10**6, "[" * 65 + "]" * 65):
    try:
        print(read_document(text, "f", "w"))
    except UserError as e:
        print(str(e)[:80])
"""


def test_yaml_is_not_deep():
    lines, taken = read_apart(READ_YAML)
    assert len(lines) == 6
    assert all(line.startswith("f") for line in lines)
    assert taken < MOST
    assert read_document("a: " + "[" * 60 + "]" * 60, "f", "w").values


def test_yaml_is_not_long():
    with pytest.raises(UserError, match="more than 100,000 values"):
        read_document("a: [" + "1," * 300_000 + "]", "f", "w")


READ_ROWS = """
import sys
from smollm3.data.places import Span
from smollm3.data.readers import rows
for read in rows(Span(sys.argv[1], 0)):
    print(bool(read.fault))
"""
UNPACKED = 1 << 27


def bomb(path, compress):
    """128 MiB of the same letter."""
    begun = {"csv": b"a,b\n", "array": b"[{", "lines": b'{"text": "'}
    text = begun.get(path.name.partition(".")[0], b"")
    path.write_bytes(compress(text + b"a" * UNPACKED))
    return path


@pytest.mark.parametrize(
    "name",
    [
        "text.txt.gz",
        "lines.jsonl.gz",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("csv.csv.gz", "array.json.bz2")),
    ],
)
def test_small_files_that_unpack_to_much(tmp_path, name):
    path = bomb(tmp_path / name, bz2.compress if name.endswith("bz2") else gzip.compress)
    assert path.stat().st_size < 1 << 20
    lines, taken = read_apart(READ_ROWS, path)
    assert lines == ["True"]
    assert taken < MOST


@pytest.mark.slow
def test_parquet_that_repeats_a_long_text(tmp_path):
    places = pyarrow.array([0] * 100, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(places, pyarrow.array(["a" * (20 << 20)]))
    table = pyarrow.table({"text": column})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 30)
    assert path.stat().st_size < 1 << 16
    lines, taken = read_apart(READ_ROWS, path)
    assert lines == ["False"] * 100
    assert taken < MOST


def test_a_model_of_a_billion_layers(tmp_path):
    from smollm3.recipe import load_recipe

    smoke = (Path(sandbox.__file__).parents[1] / "recipes" / "smoke.yaml").read_text()
    recipe = tmp_path / "r.yaml"
    recipe.write_text(smoke.replace("layers: 4,", "layers: 1_000_000_000,"))
    with pytest.raises(UserError, match="layers"):
        load_recipe(str(recipe))


@pytest.mark.slow
def test_what_an_mcp_server_says_of_itself_is_not_kept(tmp_path):
    """Its end is told; a program that writes for ever fills neither disk nor memory."""
    program = "import sys; sys.stderr.write('x' * 50_000_000 + '\\nout of paper\\n')"
    before = os.statvfs(tmp_path).f_bfree
    with pytest.raises(UserError, match="out of paper"):
        McpServer([sys.executable, "-c", program])
    assert before - os.statvfs(tmp_path).f_bfree < 40_000_000 // os.statvfs(tmp_path).f_frsize


def test_approvals_show_the_end():
    code = "print(1)\n" * 1000 + "delete_everything()"
    text = ApprovalRequest("python", {"code": code}).text
    assert text.endswith("delete_everything()")
    assert "characters are not shown" in text
    assert len(text) < 2100


def test_templates_know_no_secret(monkeypatch):
    for name in ("SMOLLM3_API_KEY", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, "a-secret-of-sixteen-letters")
    worker = sandbox._Worker()
    try:
        told = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
    finally:
        worker.end()
    assert b"a-secret" not in told
    assert b"PATH=" in told


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)
def test_key_files_are_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text("a-key-of-the-server-here\n")
    path.chmod(0o600)
    settings = Settings(api_key_file=str(path))
    assert key_texts(settings, {}) == ["a-key-of-the-server-here"]
    os.chown(path, 12345, 12345)
    with pytest.raises(UserError, match="belongs to somebody else"):
        key_texts(settings, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_closed_terminal_ends_it_well(name):
    with victim(stays=False) as server:
        server.process.send_signal(getattr(signal, name))
        assert server.process.wait(30) == 0


def test_logs_carry_nothing_that_anybody_wrote(tokenizer, caplog):
    secret = "what-somebody-wrote"
    with caplog.at_level(logging.DEBUG), speaking(tokenizer, {"hi": "one two"}) as engine:
        engine.backend.fail = lambda batch: (_ for _ in ()).throw(ValueError(secret))
        with local(engine) as client:
            said = {"messages": [{"role": "user", "content": f"{secret} hi"}], "model": secret}
            for path in (
                "/v1/chat/completions",
                f"/v1/conversations/{secret}",
                f"/{secret}?{secret}",
            ):
                client.post(path, json=said)
                client.post(path, json=said | {"stream": True, "model": None})
                client.post(path, content=json.dumps(said)[:-1], headers={"x-api-key": secret})
    assert caplog.records
    for record in caplog.records:
        if record.name.startswith(("smollm3", "uvicorn")):
            assert secret not in record.getMessage()
            assert secret not in str(record.exc_info or "")
