"""`smollm3 data` as people run it: several processes, kills, a training run on what was made."""

import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from tests.support.small_disk import small_disk

pytest.importorskip("datatrove")
RECIPE = """
name: parts
model: {{layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 32}}
sources:
  web: {{kind: jsonl, files: ['{0}/*.jsonl'], part: 0.05}}
stages:
  tokenizer: {{kind: tokenizer, vocab: 400, mixture: {{web: 1}}, characters: 2e4}}
  train: {{kind: train, mixture: {{web: 1}}, context: 64, batch: 4, steps: 3, lr: {{peak: 1e-3}}}}
"""


@pytest.fixture
def recipe(tmp_path):
    for i in range(8):
        rows = (json.dumps({"text": f"Row {i}.{j} of the set." * 9}) for j in range(300))
        (tmp_path / f"{i}.jsonl").write_text("\n".join(rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(tmp_path))
    return path


def command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "smollm3", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def done(*arguments):
    out, err = (process := command(*arguments)).communicate()
    assert process.returncode == 0, err
    return out


def contents(run):
    (folder,) = (p for p in (run / "data").iterdir() if p.name.startswith("web-"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_workers_do_not_show_and_a_run_trains_on_the_parts(recipe, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert "in 8 parts" in done("data", "prepare", recipe, "--out", one)
    done("data", "prepare", recipe, "--out", two, "--workers", "2")
    assert contents(one) == contents(two)
    assert "1 sources are whole" in done("data", "verify", two)
    made = {p: p.stat().st_mtime_ns for p in one.glob("data/web-*/train/*")}
    done("run", recipe, "--out", one)
    assert made == {p: p.stat().st_mtime_ns for p in one.glob("data/web-*/train/*")}


# Loaded by every Python process on its start: kills all of the command when the source's files
# have been touched so many times by one of its processes.
SITE = """
import os, signal, sys
left = int(os.environ["KILL_AFTER"])
def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate"):
        if ".web-" in str(arguments[0]) and "/.logs/" not in str(arguments[0]):
            left -= 1
            if left == 0:
                os.killpg(0, signal.SIGKILL)
sys.addaudithook(hook)
"""


@pytest.mark.slow
def test_killed_anywhere_twice(recipe, tmp_path, monkeypatch):
    """At moments that are counted in files touched: in the plan, in each phase of deduplication,
    between the files of a part and its JSON, before the folder gets its name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    steps = ["--set", "sources.web.steps=[{kind: minhash}]"]
    whole = tmp_path / "whole"
    done("data", "prepare", recipe, "--out", whole, *steps)
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    killed = 0
    for attempt in range(6):
        out, workers = tmp_path / f"cut{attempt}", ["--workers", str(1 + attempt % 2)]
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setenv("PYTHONPATH", str(tmp_path / "site"))
                patch.setenv("KILL_AFTER", str(int(2 ** rng.uniform(0, 9))))
                process = command("data", "prepare", recipe, "--out", out, *workers, *steps)
            process.communicate()
            assert process.returncode in (0, -signal.SIGKILL)
            killed += process.returncode != 0
        done("data", "prepare", recipe, "--out", out, *workers, *steps)
        assert contents(out) == contents(whole)
        shutil.rmtree(out)
    assert killed >= 4


@pytest.mark.slow
def test_a_kill_loses_the_parts_that_were_being_made(recipe, tmp_path):
    process = command("data", "prepare", recipe, "--out", tmp_path / "cut", "--workers", "2")
    while process.poll() is None:
        if len(list(tmp_path.glob("cut/data/.web-*/parts/*.json"))) >= 2:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()
    made = {p: p.stat().st_mtime_ns for p in tmp_path.glob("cut/data/.web-*/parts/*.json")}
    assert len(made) >= 2
    done("data", "prepare", recipe, "--out", tmp_path / "cut", "--workers", "2")
    (folder,) = tmp_path.glob("cut/data/web-*")
    assert made == {p: (folder / "parts" / p.name).stat().st_mtime_ns for p in made}


@pytest.mark.slow
def test_two_preparers_do_not_meet(recipe, tmp_path):
    """The second comes while the first waits in the user's own filter."""
    (tmp_path / "waits.py").write_text(
        "import pathlib, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def keep(text):\n"
        "    (here / 'begun').touch()\n"
        "    while not (here / 'go').exists():\n"
        "        time.sleep(0.02)\n"
        "    return True\n"
    )
    steps = "sources.web.steps=[{kind: function, options: {function: 'waits:keep'}}]"
    arguments = ["data", "prepare", recipe, "--out", tmp_path / "out", "--set", steps]
    os.environ["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    first = command(*arguments)
    while not (tmp_path / "begun").exists():
        assert first.poll() is None
        time.sleep(0.02)
    _, err = (second := command(*arguments)).communicate()
    (tmp_path / "go").touch()
    first.communicate()
    assert (first.returncode, second.returncode) == (0, 2)
    (line,) = err.strip().splitlines()
    assert f"in use by process {first.pid}" in line
    assert "1 sources are whole" in done("data", "verify", tmp_path / "out")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_goes_on(recipe, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "400k") as resize:
        for workers in ("1", "2"):
            process = command("data", "prepare", recipe, "--out", disk, "--workers", workers)
            _, err = process.communicate()
            assert process.returncode == 2
            (line,) = err.strip().splitlines()
            assert re.match(r"error: .*: the disk is full; free some space", line)
        resize("64m")
        done("data", "prepare", recipe, "--out", disk, "--workers", "2")
        done("data", "prepare", recipe, "--out", tmp_path / "plain")
        assert contents(disk) == contents(tmp_path / "plain")


@pytest.mark.slow
def test_what_is_damaged_is_counted_named_and_skipped(recipe, tmp_path):
    rows = [json.dumps({"text": f"Row {i} of the damaged files."}) for i in range(2000)]
    whole = "\n".join(rows).encode()
    (tmp_path / "row.jsonl").write_bytes(whole.replace(b'"Row 7 ', b'"Row 7 " '))
    (tmp_path / "encoding.jsonl").write_bytes(whole.replace(b"Row 9 ", b"R\xf6w 9 "))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"\n".join([whole] * 20))[:-2000])
    (tmp_path / "none.jsonl.bz2").write_bytes(b"BZh9 and no more")
    table = pyarrow.table({"text": [f"Row {i} of the table, {i * i}." for i in range(400)]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=100)
    with pyarrow.parquet.ParquetFile(tmp_path / "t.parquet") as file:
        column = file.metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    (tmp_path / "t.parquet").write_bytes(data)
    names = ["row.jsonl", "encoding.jsonl", "cut.jsonl.gz", "none.jsonl.bz2", "t.parquet"]
    files = ", ".join(repr(str(tmp_path / name)) for name in names)
    out = done(
        "data", "prepare", recipe, "--out", tmp_path / "out", "--workers", "2",
        "--set", "sources.web.kind=files", "--set", f"sources.web.files=[{files}]",
    )  # fmt: skip
    said = [line.strip() for line in out.splitlines() if "skipped" in line]
    for pattern in (
        r"1 documents skipped \(damaged JSON\): row.jsonl:8",
        r"1 documents skipped \(not UTF-8\): encoding.jsonl:10",
        r"1 documents skipped \(.*cut.jsonl.gz: cannot be read to its end",
        r"1 documents skipped \(.*none.jsonl.bz2: cannot be read to its end",
        r"1 documents skipped \(.*t.parquet: row group 1 cannot be read",
    ):
        assert sum(bool(re.match(pattern, line)) for line in said) == 1, (pattern, said)
    assert len(said) == 5
    (meta,) = (json.loads(p.read_text()) for p in tmp_path.glob("out/data/web-*/meta.json"))
    of_cut = meta["documents"] + meta["heldout"]["documents"] - 1999 - 1999 - 300
    assert 0 < of_cut < 20 * 2000


@pytest.mark.slow
def test_a_killed_worker_is_one_line(recipe, tmp_path):
    (tmp_path / "dies.py").write_text(
        "import os, signal\ndef keep(text):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    steps = "[{kind: function, options: {function: 'dies:keep'}}]"
    os.environ["PYTHONPATH"] = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    process = command(
        "data", "prepare", recipe, "--out", tmp_path / "out", "--workers", "2",
        "--set", f"sources.web.steps={steps}",
    )  # fmt: skip
    _, err = process.communicate()
    assert process.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: sources.web: a worker was killed")


@pytest.mark.slow
def test_slurm_is_handed_the_parts_and_what_puts_them_together(recipe, tmp_path, monkeypatch):
    """A stand-in for sbatch runs what it is given at once, as one task after another."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "scontrol").write_text("#!/bin/bash\necho localhost\n")
    (folder / "sbatch").write_text(
        """#!/bin/bash
for script; do :; done
export SLURM_NODELIST=localhost
tasks=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for i in $(seq 0 "$tasks"); do SLURM_ARRAY_TASK_ID=$i bash "$script" > /dev/null 2>> "$0.log"; done
echo "Submitted batch job 7"
"""
    )
    (folder / "srun").write_text(
        '#!/bin/bash\nuntil [[ $(command -v "$1") ]]; do shift; done\nexec "$@"\n'
    )
    for name in ("sbatch", "scontrol", "srun"):
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    out = done(
        "data", "prepare", recipe, "--out", tmp_path / "out", "--executor", "slurm",
        "--workers", "4", "--option", "time=1:00", "--option", "partition=cpu",
    )  # fmt: skip
    assert "web: submitted" in out
    done("data", "prepare", recipe, "--out", tmp_path / "here")
    assert contents(tmp_path / "out") == contents(tmp_path / "here")


def test_mistakes_are_one_line(recipe, tmp_path):
    for arguments, message in [
        (("--source", "wbe"), "no source 'wbe'; sources: web"),
        (("--executor", "slurm", "--option", "nothing"), "write it as key=value"),
    ]:
        process = command("data", "prepare", recipe, "--out", tmp_path / "out", *arguments)
        _, err = process.communicate()
        assert process.returncode == 2
        assert err.startswith("error: ")
        assert message in err
        assert len(err.splitlines()) == 1
