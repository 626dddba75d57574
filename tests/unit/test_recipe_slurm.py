"""Slurm's jobs of a recipe: what is sent, and what a batch file does with how a run ends."""

import os
import subprocess
import sys

import pytest

from smollm3.errors import TryAgain, UserError
from smollm3.recipe import load_recipe
from smollm3.recipe.slurm import RETRIES, SlurmOptions, jobs_of, parse_options, script, submit


def test_options():
    options = parse_options("nodes=48,gpus=8,time=1d12h30m,partition=hopper-prod,account=a1")
    assert (options.nodes, options.gpus, options.minutes) == (48, 8, 36 * 60 + 30)
    assert (options.partition, options.account, options.qos) == ("hopper-prod", "a1", None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nodes", "nodes: write it as key=value"),
        ("nodes=0", "nodes"),
        ("nodes=x", "nodes"),
        ("node=4", "did you mean 'nodes'"),
        ("time=tomorrow", "24h"),
        ("time=", "time"),
        ("partition=a b", "partition"),
        ("partition=$(reboot)", "partition"),
        ("account=x\n#SBATCH --uid=0", "account"),
    ],
)
def test_options_that_are_wrong_are_named(text, words):
    with pytest.raises(UserError, match=r"--slurm") as refused:
        parse_options(text)
    assert words in str(refused.value)


def test_training_has_all_nodes_and_the_rest_one():
    jobs = jobs_of(load_recipe("smollm3-3b"), "smollm3-3b", "runs/x", ["seed=3"])
    assert [(job.name, job.trains) for job in jobs] == [
        ("1-tokenizer", False),
        ("2-data", False),
        ("3-stage1", True),
        ("4-apo_soup", False),
    ]
    assert jobs[1].commands == [
        ["data", "prepare", "smollm3-3b", "--out", "runs/x", "--set", "seed=3"]
    ]
    assert [words[-1] for words in jobs[3].commands] == ["apo_soup", "final", "card", "export"]
    assert all(words[:2] == ["run", "smollm3-3b"] for words in jobs[2].commands)


def test_a_recipe_that_begins_with_training_prepares_its_data_first(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("""
name: r
sources: {a: {kind: text, files: [a.txt]}}
stages:
  one: {kind: train, from: org/model, mixture: {a: 1}, context: 64, batch: 2, steps: 2, lr: {peak: 1e-3}}
  both: {kind: merge, from: {one: 1}}
  two: {kind: train, mixture: {a: 1}, context: 64, batch: 2, steps: 2, lr: {peak: 1e-3}}
""")
    jobs = jobs_of(load_recipe(str(path)), "r.yaml", tmp_path, [])
    assert [job.name for job in jobs] == ["1-data", "2-one", "3-both", "4-two"]


def header(text):
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH --")]
    pairs = [line.removeprefix("#SBATCH --").partition("=") for line in lines]
    return {key: value for key, _, value in pairs}


def test_the_head_of_a_batch_file(tmp_path):
    recipe = load_recipe("smollm3-3b")
    jobs = jobs_of(recipe, "smollm3-3b", tmp_path, [])
    options = SlurmOptions(nodes=48, gpus=8, time="20h", partition="p", cpus=11)
    training = header(script(jobs[2], recipe, options, tmp_path))
    assert training["nodes"] == "48"
    assert training["ntasks-per-node"] == training["gpus-per-node"] == "8"
    assert (training["time"], training["signal"]) == ("1200", "USR1@300")
    assert (training["partition"], training["cpus-per-task"]) == ("p", "11")
    other = header(script(jobs[3], recipe, options, tmp_path))
    assert (other["nodes"], other["ntasks-per-node"], other["gpus-per-node"]) == ("1", "1", "1")
    on_cpus = header(script(jobs[2], recipe, SlurmOptions(nodes=2, tasks=3), tmp_path))
    assert on_cpus["ntasks-per-node"] == "3"
    assert "gpus-per-node" not in on_cpus


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """programs(name=shell code...): programs of these names come first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(**code):
        for name, text in code.items():
            (folder / name).write_text(f"#!/bin/bash\n{text}\n")
            (folder / name).chmod(0o755)

    return make


SAID = tuple(f"code {75}" for _ in range(RETRIES))


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Linux")
@pytest.mark.parametrize(
    ("code", "failures", "again", "left"),
    [
        (0, (), False, ()),
        (0, SAID[:1], False, ()),  # it went well after a failure
        (2, (), False, ()),
        (138, SAID, True, ()),  # the time is over, which is no failure
        (143, (), False, ()),
        (75, (), True, SAID[:1]),
        (75, SAID[:2], True, SAID[:3]),
        (75, SAID, False, (*SAID, "code 75")),
    ],
)
def test_what_a_batch_file_does_at_the_end(programs, tmp_path, code, failures, again, left):
    programs(srun=f"exit {code}", scontrol=f"echo $@ > {tmp_path}/again")
    recipe = load_recipe("smoke")
    job = jobs_of(recipe, "smoke", tmp_path, [])[0]
    path = tmp_path / "job.sbatch"
    path.write_text(script(job, recipe, SlurmOptions(), tmp_path))
    kept = tmp_path / "slurm" / f"{job.name}.failures"
    kept.parent.mkdir()
    if failures:
        kept.write_text("".join(f"{line}\n" for line in failures))
    ended = subprocess.run(["bash", path], env={**os.environ, "SLURM_JOB_ID": "7"}, check=False)
    assert (tmp_path / "again").exists() == again
    assert ended.returncode == (0 if again else code)
    assert tuple(kept.read_text().splitlines() if kept.exists() else ()) == left


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm runs on Linux")
def test_a_stage_after_one_that_failed_is_not_begun(programs, tmp_path):
    programs(srun=f"echo ${{@: -1}} >> {tmp_path}/begun; exit 2")
    recipe = load_recipe("smoke")
    job = next(job for job in jobs_of(recipe, "smoke", tmp_path, []) if len(job.commands) > 1)
    path = tmp_path / "job.sbatch"
    path.write_text(script(job, recipe, SlurmOptions(), tmp_path))
    assert subprocess.run(["bash", path], check=False).returncode == 2
    assert (tmp_path / "begun").read_text().split() == ["stage1"]


def test_each_job_waits_for_the_one_before(programs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    programs(sbatch=f"echo $@ >> {tmp_path}/sent; wc -l < {tmp_path}/sent")
    sent = submit(load_recipe("smoke"), "smoke", tmp_path / "out", [], SlurmOptions())
    assert [number for _, number in sent] == ["1", "2", "3", "4"]
    lines = (tmp_path / "sent").read_text().splitlines()
    assert "--dependency" not in lines[0]
    assert [f"--dependency=afterok:{n}" in line for n, line in enumerate(lines[1:], 1)] == [
        True
    ] * 3
    assert all((tmp_path / "out" / "slurm" / f"{job.name}.sbatch").exists() for job, _ in sent)


def test_sbatch_that_refuses_or_is_missing(programs, tmp_path, monkeypatch):
    programs(sbatch="echo invalid partition >&2; exit 1")
    with pytest.raises(UserError, match="invalid partition"):
        submit(load_recipe("smoke"), "smoke", tmp_path / "out", [], SlurmOptions())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="no sbatch"):
        submit(load_recipe("smoke"), "smoke", tmp_path / "out", [], SlurmOptions())


def test_a_lost_rank_is_no_mistake_of_the_users():
    assert (UserError("x").exit_code, TryAgain("x").exit_code) == (2, 75)
