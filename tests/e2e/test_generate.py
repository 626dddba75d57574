"""`smollm3 generate` and `chat` as a person uses them: killed, interrupted, on a terminal."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.terminal import Terminal

from .conftest import cli

pytestmark = pytest.mark.xdist_group("smoke")
SMOLLM3 = [sys.executable, "-m", "smollm3"]


def words(smoke, source, out):
    return ["generate", smoke, "--input", source, "--output", out, "--temperature", "1"]


@pytest.fixture(scope="module")
def batch(smoke, tmp_path_factory):
    """Requests, some of them bad, and the answers of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("batch")
    source = folder / "x.jsonl"
    with source.open("w") as file:
        for i in range(100):
            request = {"prompt": f"def f{i}(", "max_tokens": 20 + i * 37 % 130}
            if i % 4 == 1:
                request["messages"] = [{"role": "user", "content": request.pop("prompt")}]
            if i % 50 == 7:
                request["max_tokens"] = -1
            file.write(json.dumps(request) + "\n")
    process = cli(*words(smoke, source, folder / "whole.jsonl"))
    assert process.returncode == 2
    places = [line.split(": ")[1] for line in process.stderr.splitlines()]
    assert places == [f"{source}:{n}" for n in (8, 58)]
    rows = [json.loads(line) for line in (folder / "whole.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(1, 101))
    return source, folder / "whole.jsonl"


def kill(smoke, source, out, after):
    """SIGKILL once `after` more answers are in the file or beside it; how many there are then."""
    journal = out.with_name(f".{out.name}.partial")

    def answers():
        return sum(f.read_bytes().count(b"\n") for f in (out, journal) if f.exists())

    before = answers()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*SMOLLM3, *map(str, words(smoke, source, out))],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    while answers() < before + after and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert answers() >= before
    return answers()


def check(smoke, batch, out, kills):
    source, whole = batch
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    rng = random.Random(seed)
    for _ in range(kills):
        done = kill(smoke, source, out, rng.randrange(60 // kills))
    process = cli(*words(smoke, source, out))
    assert process.returncode == 2
    assert out.read_bytes() == whole.read_bytes()
    assert not list(out.parent.glob(".*"))
    tokens = sum(json.loads(x).get("completion_tokens", 0) for x in whole.read_text().splitlines())
    made = int(re.search(r"([\d,]+) tokens in", process.stdout)[1].replace(",", ""))
    assert done <= 2 or made < tokens  # it went on, not over; two of the answers are errors


def test_killed_and_started_again(smoke, batch, tmp_path):
    check(smoke, batch, tmp_path / "y.jsonl", kills=1)


@pytest.mark.slow
def test_killed_many_times(smoke, batch, tmp_path):
    check(smoke, batch, tmp_path / "y.jsonl", kills=8)


def test_a_batch_on_a_terminal(smoke, batch, tmp_path):
    """A bar; Ctrl-C ends it with a word on how to go on."""
    source, whole = batch
    out = tmp_path / "y.jsonl"
    with Terminal([*SMOLLM3, *map(str, words(smoke, source, out))]) as terminal:
        terminal.until(lambda lines: re.search(r"\d+ answers.* tokens/s .*0:00", "\n".join(lines)))
        terminal.type("\x03")
        assert terminal.end() == 130
        assert terminal.lines[-1] == "stopped; run again to go on"
        assert f"error: {source}:8: max_tokens" in terminal.text
    # What it left is the beginning of the whole.
    assert out.read_bytes() != whole.read_bytes()
    assert whole.read_bytes().startswith(out.read_bytes())


def test_a_conversation_with_a_model(smoke, tmp_path):
    command = [*SMOLLM3, "chat", str(smoke), "--max-tokens", "24", "--no-think"]
    with Terminal(command, XDG_STATE_HOME=str(tmp_path)) as talk:
        talk.until(lambda lines: lines[-1:] == [">"])
        for _ in range(2):
            talk.type("Total of Ana:3 Jan:5?\r")
            lines = talk.until(lambda lines: len(lines) > 2 and "cached" in lines[-2])
            talk.until(lambda lines: lines[-1:] == [">"])
            talk.type("/new\r")
            talk.until("a new conversation")
            talk.type("\x0c")
            talk.until(lambda lines: lines == [">"])
        # The second time the prompt's full blocks are there.
        cached = int(re.search(r"(\d+) cached", "\n".join(lines))[1])
        assert cached >= 32
        talk.type("/exit\r")
        assert talk.end() == 0
