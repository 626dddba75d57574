"""`smollm3 serve`: what is refused before a model is loaded, and the settings in force."""

import socket
import sys

import pytest

from smollm3.cli import main
from smollm3.cli.serving import read_settings
from smollm3.errors import UserError
from smollm3.serve.run import address, listening
from smollm3.serve.settings import Settings


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
        ("port: 0\nqueu: 3\n", f"{config}:2: queu: no such setting; did you mean 'queue'?"),
        ("port: many\n", f"{config}:1: port: "),
        ("- 1\n", "must be a mapping"),
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
