"""Word of a run's end: what is told and when, and that no notice can harm a run or show a secret."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from smollm3.errors import UserError
from smollm3.recipe import load_recipe, notices
from smollm3.recipe.notices import VARIABLE, telling
from smollm3.recipe.runner import Events, Run
from smollm3.train.stop import Stopped


@pytest.fixture
def hook():
    """A web hook: its address with a secret, what it was told, the status that it answers, and a
    lock that holds its answers back."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.told.append((self.path, json.loads(body)))
            with server.gate:
                self.send_response(server.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.told, server.status, server.gate = [], 200, threading.Lock()
    server.environment = {VARIABLE: f"http://127.0.0.1:{server.server_port}/SECRET"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def end(names, environment, tmp_path, error=None):
    """Warnings of a run that ends so."""
    warnings = []
    with telling(names, "mine", tmp_path, warnings.append, environment):
        if error is not None:
            raise error
    return warnings


@pytest.mark.parametrize(
    ("error", "ended", "why"),
    [
        (None, "done", ""),
        (UserError("stages.sft: no row"), "failed", ": stages.sft: no row"),
        (RuntimeError("holds SECRETS"), "failed", ""),
        (Stopped(3, 2), "stopped", ""),
        (KeyboardInterrupt(), "stopped", ""),
    ],
)
def test_a_hook_is_told_how_a_run_ended(hook, tmp_path, error, ended, why):
    if error is None:
        assert end(["webhook"], hook.environment, tmp_path) == []
    else:
        with pytest.raises(type(error)):
            end(["webhook"], hook.environment, tmp_path, error)
    [(path, told)] = hook.told
    assert path == "/SECRET"
    assert (told["run"], told["ended"], told["folder"]) == ("mine", ended, str(tmp_path))
    assert told["text"] == told["content"]
    assert told["text"].startswith(f"mine {ended} after ")
    assert told["text"].endswith(f"s{why}")


def test_one_that_fails_is_a_warning_without_its_address(hook, tmp_path, monkeypatch):
    hook.status = 500
    assert end(["webhook"], hook.environment, tmp_path) == [
        "notify: webhook was not told how the run ended (HTTP 500)"
    ]
    [gone] = end(["webhook"], {VARIABLE: "http://127.0.0.1:1/SECRET"}, tmp_path)

    def says(address):
        raise OSError(f"no route to {address}")

    monkeypatch.setitem(notices._SENDERS, "desktop", lambda environment: says)
    [known] = end(["desktop"], {}, tmp_path)
    assert known == "notify: desktop was not told how the run ended (OSError)"
    monkeypatch.setattr(notices, "SECONDS", 0.05)
    with hook.gate:  # it takes the request and does not answer
        [slow] = end(["webhook"], hook.environment, tmp_path)
    slower = threading.Event()
    monkeypatch.setitem(notices._SENDERS, "desktop", lambda _: lambda notice: slower.wait(5))
    [late] = end(["desktop"], {}, tmp_path)
    assert late == "notify: desktop was not told how the run ended (no answer within 0 s)"
    slower.set()
    assert all(line.startswith("notify: webhook") for line in (gone, slow))
    assert "SECRET" not in gone + slow


@pytest.mark.parametrize("address", ["", "SECRET", "file:///etc/SECRET", "https://", "ftp://h/x"])
def test_an_address_that_is_none_is_said_before_anything_begins(tmp_path, address):
    with pytest.raises(UserError, match=rf"set {VARIABLE}") as error:
        end(["webhook"], {VARIABLE: address}, tmp_path, AssertionError("began"))
    assert "SECRET" not in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for the program")
@pytest.mark.parametrize(("system", "program"), [("linux", "notify-send"), ("darwin", "osascript")])
def test_a_notice_on_the_desktop(tmp_path, monkeypatch, system, program):
    """Its text is an argument, whatever stands in it."""
    monkeypatch.setattr(notices.sys, "platform", system)
    with pytest.raises(UserError, match="desktop"):
        end(["desktop"], {"PATH": str(tmp_path)}, tmp_path)
    script = tmp_path / program
    script.write_text(f'#!/bin/sh\nfor last; do :; done\nprintf %s "$last" > "{tmp_path}/told"\n')
    script.chmod(0o755)
    with pytest.raises(UserError):
        end(["desktop"], {"PATH": str(tmp_path)}, tmp_path, UserError('"; say $(id)'))
    assert (tmp_path / "told").read_text().endswith(': "; say $(id)')
    script.write_text("#!/bin/sh\nexit 1\n")
    [warning] = end(["desktop"], {"PATH": str(tmp_path)}, tmp_path)
    assert "notify: desktop was not told" in warning


def test_a_run_tells_how_it_ended(hook, tmp_path, monkeypatch):
    """And its files do not hold the address."""
    for name, value in hook.environment.items():
        monkeypatch.setenv(name, value)
    recipe = load_recipe("smoke").model_copy(update={"notify": ["webhook"]})
    none = lambda *_: None  # noqa: E731
    run = Run(recipe, tmp_path / "run", Events(none, none, none, none, none))
    with pytest.raises(UserError, match="no stage 'x'"):
        run.execute(only="x")
    monkeypatch.setattr(Run, "_stage", none)
    monkeypatch.setattr(Run, "_publish_results", none)
    run.execute()
    assert [told["ended"] for _, told in hook.told] == ["failed", "done"]
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files
    assert not any(b"SECRET" in path.read_bytes() for path in files)
