"""`smollm3 serve`: what is refused before a model is loaded, and the settings in force."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smollm3.cli import main
from smollm3.cli.serving import read_settings
from smollm3.errors import UserError
from smollm3.serve import page
from smollm3.serve.run import address, listening, run
from smollm3.serve.settings import Settings
from smollm3.serve.vllm import become_vllm, command

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def serve(monkeypatch, capsys):
    """serve(words...) -> what a refused command says."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["smollm3", "serve", "/no/model", *map(str, words)])
        with pytest.raises(SystemExit) as e:
            main()
        assert e.value.code == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ")
        assert said.count("\n") == 1
        return said

    return run


@pytest.fixture
def taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_what_would_not_do_is_said_before_the_model_is_loaded(serve, taken, tmp_path):
    config = tmp_path / "serve.yaml"
    assert f"port {taken}" in serve("--port", taken)
    assert "needs a key" in serve("--host", "0.0.0.0")
    assert "host: no.such.host.invalid" in serve("--host", "no.such.host.invalid")
    assert "none.yaml" in serve("--config", tmp_path / "none.yaml")
    for text, said in (
        ("port: 0\nqueu: 3\n", f"{config}:2: queu: unknown key; did you mean 'queue'?"),
        ("port: many\n", f"{config}:1: port: "),
        ("- 1\n", "must be a mapping"),
        ("aliases: gpt\n", f"{config}:1: aliases: input should be a valid list"),
    ):
        config.write_text(text)
        assert said in serve("--config", config)
    assert "/no/model" in serve("--port", 0)


def test_the_command_line_goes_over_the_file(tmp_path):
    config = tmp_path / "serve.yaml"
    config.write_text("port: 9\nqueue: 3\nthink: false\naliases: [a, b*]\n")
    found = read_settings(config, {"port": 10, "think": True})
    assert (found.port, found.queue, found.think, found.aliases) == (10, 3, True, ("a", "b*"))
    assert read_settings(None, {}) == Settings()
    with pytest.raises(UserError, match="^port: "):
        read_settings(config, {"port": -1})


def test_what_is_missing_is_named(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "smollm3.serve.run", None)
    assert "pip install 'smollm3[server]'" in serve()


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "http://127."), ("::1", "http://[::1]:")]
)
def test_addresses(host, shown):
    with listening(Settings(host=host, port=0)) as listener:
        assert address(listener).startswith(shown)


STAND_IN = """#!{python}
import json, os, sys
keys = {{key: os.environ.get(key) for key in ("VLLM_API_KEY", "SMOLLM3_API_KEY")}}
print(json.dumps([sys.argv[1:], keys]))
"""


def test_vllm_is_handed_the_same_model(tmp_path, monkeypatch, capfd):
    """By a stand-in for its program, which this process would become."""
    program, model, key = tmp_path / "vllm", tmp_path / "tiny", "k" * 24
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    model.mkdir()
    words = ["serve", model, "--engine", "vllm", "--port", 9, "--alias", "gpt", "--no-think"]
    monkeypatch.setattr(sys, "argv", ["smollm3", *map(str, [*words, "--context", 4096])])
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SMOLLM3_API_KEY", key)

    def become(_, words, environment):
        subprocess.run(words, env=environment, check=True)
        sys.exit(0)

    monkeypatch.setattr(os, "execve", become)
    with pytest.raises(SystemExit):
        main()
    words, keys = json.loads(capfd.readouterr().out)
    assert words[:2] == ["serve", str(model)]
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 3] == ["tiny", "gpt"]
    assert {
        "--host=127.0.0.1",
        "--port=9",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
        "--reasoning-parser=qwen3",
        "--allowed-origins=[]",
        "--max-model-len=4096",
        '--default-chat-template-kwargs={"enable_thinking": false}',
    } <= set(words)
    assert key not in " ".join(words)
    assert keys == {"VLLM_API_KEY": key, "SMOLLM3_API_KEY": None}


def test_vllm_gets_one_key(tmp_path, monkeypatch):
    became = []
    monkeypatch.setattr(os, "execve", lambda *words: became.append(words))
    program, file, key = tmp_path / "mine", tmp_path / "keys", "k" * 24
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file.write_text(f"{key}\n")
    file.chmod(0o600)
    settings = Settings(api_key_file=str(file), running=9)
    environment = {"SMOLLM3_VLLM": str(program), "PATH": "/bin"}
    become_vllm(tmp_path, "x", settings, {}, environment)
    [(path, words, given)] = became
    assert path == str(program)
    assert given["VLLM_API_KEY"] == key
    assert "--max-num-seqs=9" in words
    with pytest.raises(UserError, match="one only"):
        become_vllm(tmp_path, "x", settings, {}, environment | {"SMOLLM3_API_KEY": "o" * 24})
    become_vllm(tmp_path, "x", Settings(), {}, environment)
    assert "VLLM_API_KEY" not in became[-1][2]


def test_what_vllm_is_not_told_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    plain, told = Settings(), {"name": "x", "settings": Settings(), "options": {}}
    assert command(tmp_path, "x", plain, {})[0] == "serve"
    for model, changed, said in (
        (file, {}, "folder"),
        (tmp_path, {"settings": Settings(queue=3)}, "queue: is not for vLLM"),
        (tmp_path, {"settings": Settings(aliases=("a*",))}, "whole names"),
        (tmp_path, {"options": {"threads": 2}}, "threads: is of our own engines"),
    ):
        with pytest.raises(UserError, match=said):
            command(model, **{**told, **changed})
    with pytest.raises(UserError, match="no program 'vllm'"):
        become_vllm(tmp_path, "x", plain, {}, {"PATH": str(tmp_path)})
    with pytest.raises(UserError, match="needs a key"):
        become_vllm(tmp_path, "x", Settings(host="0.0.0.0"), {}, {})


def test_the_deployed_settings_hold():
    found = read_settings(DEPLOY / "serve.yaml", {})
    assert found == Settings()
    unit = (DEPLOY / "smollm3.service").read_text()
    stop = int(re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[1])
    assert stop > found.grace_seconds
    assert "landlock_restrict_self" in unit  # else nothing could hold the model's Python
    assert re.search(r"^ExecStart=\S+/smollm3 serve \S+ --config ", unit, re.MULTILINE)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_reads_the_unit(tmp_path):
    unit = tmp_path / "smollm3.service"
    text = (DEPLOY / "smollm3.service").read_text()
    unit.write_text(text.replace("/opt/smollm3/bin/smollm3", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert "smollm3.service" not in done.stderr, done.stderr


@pytest.mark.parametrize("line", ["no chat page: make ui", ""])
def test_a_server_without_the_chat_page_says_how_to_get_it(line, monkeypatch, caplog):
    monkeypatch.setattr(page, "how_to_get", lambda: line)
    caplog.set_level("INFO", "smollm3.serve")
    with pytest.raises(UserError, match="no model"):
        run(lambda: (_ for _ in ()).throw(UserError("no model")), Settings(port=0), "m")
    assert [record.message for record in caplog.records] == ([line] if line else [])
