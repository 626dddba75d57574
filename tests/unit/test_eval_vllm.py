"""`smollm3 eval --engine vllm`, by a stand-in for its program; with vLLM itself in tests/e2e."""

import json
import sys

import pytest
from click.testing import CliRunner
from tests.support.eval_data import data_folder
from tests.support.noise import save_noise

from smollm3.cli import cli

STAND_IN = """#!{python}
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
words = dict(w.lstrip("-").split("=", 1) for w in sys.argv if w.startswith("--") and "=" in w)
{first}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.say({{"data": [{{"id": "tiny"}}]}})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        places = list(range(len(body["prompt"])))
        chosen = [-float(i % 7) for i in places]
        self.say({{"choices": [{{"text": "", "logprobs": {{
            "token_logprobs": chosen, "text_offset": places,
            "top_logprobs": [{{"x": 0.0}} for _ in places]}}}}]}})
        with open({log!r}, "a") as file:
            file.write(json.dumps([words["port"], os.environ.get("VLLM_API_KEY")]) + "\\n")
    def say(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(words["port"])), Handler).serve_forever()
"""


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    save_noise(tmp_path / "tiny", tokenizer)
    data_folder(tmp_path / "sets")
    monkeypatch.setenv("SMOLLM3_VLLM", str(tmp_path / "vllm"))
    monkeypatch.setenv("SMOLLM3_API_KEY", "k" * 24)  # of a server that others reach
    return tmp_path


def program(place, first=""):
    text = STAND_IN.format(python=sys.executable, first=first, log=str(place / "asked"))
    (place / "vllm").write_text(text)
    (place / "vllm").chmod(0o755)


def evaluated(place, *words):
    words = ["eval", place / "tiny", "--engine", "vllm", "--tasks", "piqa", *words]
    words += ["--data", place / "sets", "--out", place / "out"]
    return CliRunner().invoke(cli, list(map(str, words)))


@pytest.mark.slow
def test_it_is_started_asked_and_ended(place):
    program(place)
    done = evaluated(place)
    assert done.exit_code == 0, done.output
    asked = [json.loads(line) for line in (place / "asked").read_text().splitlines()]
    assert len(asked) == 8
    assert asked[0][1] is None
    results = json.loads((place / "out/results.json").read_text())
    assert results["config"]["model"] == str(place / "tiny")
    again = evaluated(place)  # on another port, and nothing is asked
    assert again.exit_code == 0, again.output
    assert len((place / "asked").read_text().splitlines()) == 8
    other = evaluated(place, "--dtype", "float32")
    assert "was made with model" in str(other.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "words", "said"),
    [
        ("sys.exit('no card')", (), "vLLM ended with code 1: no card"),
        ("", ("--threads", "2"), "threads: is of our own engines, not of vLLM"),
    ],
)
def test_what_it_cannot_do_is_one_line(place, first, words, said):
    program(place, first)
    assert said in str(evaluated(place, *words).exception)


def test_without_vllm(place):
    assert "there is no program" in str(evaluated(place).exception)
