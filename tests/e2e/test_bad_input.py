"""What people do wrong gets one clear line and exit code 2."""

import fcntl
import json
import shutil

import pytest

from tests.support.small_disk import small_disk

from .conftest import cli

pytestmark = pytest.mark.xdist_group("smoke")


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "run")


def refused(process, *words):
    assert process.returncode == 2, process.stdout + process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_a_changed_recipe_over_an_old_folder(smoke):
    refused(
        cli("run", "smoke", "--out", smoke, "--set", "stages.sft.lr.peak=1e-3"),
        "stages.sft.lr.peak was 0.003, is 0.001", "--out", "--redo sft",
    )  # fmt: skip


def test_redo_makes_a_stage_and_its_children_again(copy):
    process = cli(
        "run", "smoke", "--out", copy, "--set", "stages.apo.steps=2", "--redo", "apo"
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("(done before)") == 5  # tokenizer, stage1, decay, long, sft
    assert json.loads((copy / "apo/stage.json").read_text())["config"]["steps"] == 2


def test_a_second_process_on_the_same_run(smoke):
    with (smoke / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(cli("run", "smoke", "--out", smoke), "in use by process")


def test_a_damaged_parent_is_named(copy):
    with (copy / "sft/model.safetensors").open("r+b") as f:
        f.seek(-100, 2)
        f.write(b"\xff" * 50)
    refused(cli("run", "smoke", "--out", copy, "--redo", "apo"), "sft", "--redo sft")


def test_an_unknown_stage(smoke):
    refused(cli("run", "smoke", "--out", smoke, "--only", "stft"), "no stage 'stft'")


def test_no_such_model(tmp_path):
    refused(cli("generate", tmp_path / "nothing", "x"), "nothing")


def test_an_empty_source(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    refused(
        cli("run", "smoke", "--out", tmp_path / "r", "--set", f"sources.web={{kind: text, files: ['{tmp_path}/empty.txt']}}"),
        "empty",
    )  # fmt: skip


def test_rows_longer_than_the_model(smoke, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""
name: r
sources: {{web: {{kind: procedural, generator: web, documents: 50}}}}
stages:
  more:
    {{kind: train, from: {smoke}/final, mixture: {{web: 1}}, context: 4096, batch: 1, steps: 1, lr: {{peak: 1e-3}}}}
""")
    refused(cli("run", recipe, "--out", tmp_path / "out"), "longer than the model", "rope_theta")


def test_continues_from_a_folder(smoke, tmp_path):
    recipe = tmp_path / "r.yaml"
    (tmp_path / "mine.jsonl").write_bytes(
        b"".join(
            json.dumps({"text": f"My own line {i} about cats. " * 10}).encode() + b"\n"
            for i in range(60)
        )
        + b"not json\n\xff\xfe\n"
    )
    recipe.write_text(f"""
name: r
sources: {{mine: {{kind: jsonl, files: ['{tmp_path}/*.jsonl']}}}}
stages:
  more:
    {{kind: train, from: {smoke}/final, mixture: {{mine: 1}}, context: 64, batch: 4, steps: 5, lr: {{peak: 1e-3}}}}
""")  # fmt: skip
    process = cli("run", recipe, "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
    assert (
        "2 documents skipped" in process.stdout or process.stdout.count("1 documents skipped") == 2
    )
    rows = [json.loads(x) for x in (tmp_path / "out/more/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, "3m") as resize:
        refused(cli("run", "smoke", "--out", disk / "run"), "No space left", "make room")
        done = {p.parent.name for p in (disk / "run").glob("*/stage.json")}
        assert "stage1" in done
        resize("64m")
        process = cli("run", "smoke", "--out", disk / "run")
        assert process.returncode == 0, process.stderr
        assert process.stdout.count("(done before)") == len(done)


@pytest.mark.slow
def test_continues_from_a_gguf(smoke, tmp_path):
    file = tmp_path / "smoke.gguf"
    assert cli("export", smoke, "--to", "gguf:f32", file).returncode == 0
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"""
name: r
sources: {{web: {{kind: procedural, generator: web, documents: 50}}}}
stages:
  more:
    {{kind: train, from: {file}, mixture: {{web: 1}}, context: 64, batch: 2, steps: 2, lr: {{peak: 1e-3}}}}
""")
    process = cli("run", recipe, "--out", tmp_path / "out")
    assert process.returncode == 0, process.stderr
