"""`smollm3 eval` as a person uses it: offline, killed, gone on with, compared."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.support.eval_data import data_folder

from .conftest import cli

pytestmark = [pytest.mark.xdist_group("smoke"), pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"))


def words(smoke, data, out):
    return ["eval", smoke, "--tasks", "hellaswag,piqa", "--data", data, "--out", out]


def test_killed_twice_and_gone_on_with(smoke, data, tmp_path):
    whole = cli(*words(smoke, data, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert "acc_norm" in whole.stdout
    rng = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "smollm3", *map(str, words(smoke, data, tmp_path / "cut"))],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        file = tmp_path / "cut/items.jsonl"
        wanted = (file.read_bytes().count(b"\n") if file.exists() else 1) + rng.randint(1, 9)
        while process.poll() is None:
            if file.exists() and file.read_bytes().count(b"\n") >= wanted:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
    again = cli(*words(smoke, data, tmp_path / "cut"))
    assert again.returncode == 0, again.stderr
    for name in ("results.json", "samples_hellaswag.jsonl", "samples_piqa.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    compared = cli("eval", "compare", tmp_path / "whole", tmp_path / "cut")
    assert compared.returncode == 0, compared.stderr
    assert "0 / 0" in compared.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "boolq"], "datasets/aps/super_glue"),
        ([], "give either --tasks or --suite"),
        (["--suite", "bse"], "'bse' is not one of base"),
        (["--tasks", "piqa", "--think", "--no-chat"], "add --chat"),
        (["--tasks", "ruler_vt", "--lengths", "4q"], "--lengths: numbers of tokens"),
        (["--tasks", "ruler_vt", "--lengths", "1m"], "--lengths"),
    ],
)
def test_what_is_wrong_is_one_line(smoke, data, tmp_path, arguments, said):
    process = cli("eval", smoke, *arguments, "--data", data, "--out", tmp_path / "out")
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1
