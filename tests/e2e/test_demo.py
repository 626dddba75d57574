"""The README's path on a real terminal and in a real browser: what it shows is what comes."""

import re
import shlex
import sys

import pytest

from tests.support.terminal import Terminal

from .conftest import cli
from .page.conftest import Page, browser, built  # noqa: F401
from .test_docs import blocks, commands

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]
SMOLLM3 = [sys.executable, "-m", "smollm3"]
# What nano answers rightly in all of a hundred questions when it reasons, and rarely when it does not.
QUESTION = "Last digit of Jan:5 Ana:8 Eva:6?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which `smollm3 run nano`, the work of `make demo`, was run on a terminal."""
    folder = tmp_path_factory.mktemp("demo")
    with Terminal([*SMOLLM3, "run", "nano"], cwd=folder, columns=120, lines=60) as shown:
        shown.until(lambda lines: any("talk to it" in line for line in lines), seconds=3600)
        assert shown.end() == 0
    assert "claims hold" in shown.text
    assert (folder / "runs/nano/report.html").exists()
    return folder


def test_the_commands_answer_as_the_readme_says(place):
    shown = [c for c in commands() if "generate runs/nano" in c and QUESTION in c]
    assert len(shown) == 2
    thinking, direct = (cli(*shlex.split(c)[1:], cwd=place) for c in sorted(shown)[::-1])
    assert re.search(r"<think>\n.*=9\.\n</think>\n9$", thinking.stdout.strip(), re.DOTALL)
    assert re.fullmatch(r"\d+", direct.stdout.strip())


def test_the_code_answers_as_the_readme_says(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (code,) = blocks("python")
    exec(code, {})
    reasoning, content, size = capsys.readouterr().out.strip().splitlines()
    assert reasoning.endswith("=9.")
    assert content == "9"
    assert size == "250,432 parameters"


def test_a_conversation_on_the_terminal(place, tmp_path):
    words = [*SMOLLM3, "chat", "runs/nano"]
    with Terminal(words, cwd=place, XDG_STATE_HOME=str(tmp_path)) as talk:
        talk.until(lambda lines: lines[-1:] == [">"])
        talk.type(QUESTION + "\r")
        talk.until(lambda lines: "9" in lines and lines[-1:] == [">"])
        talk.type("/exit\r")
        assert talk.end() == 0


def test_a_conversation_on_the_page(place, browser):  # noqa: F811
    words = [*SMOLLM3, "serve", "runs/nano", "--port", "0"]
    with Terminal(words, cwd=place, columns=120) as server:
        lines = server.until(lambda lines: "http://127.0.0.1:" in "".join(lines))
        url = re.search(r"http://127\.0\.0\.1:\d+", "".join(lines))[0]
        context = browser.new_context()
        page = Page(context.new_page(), url)
        page.ask(QUESTION)
        assert page.answers[-1].strip() == "9"
        assert page.errors == []
        context.close()
        server.type("\x03")
        server.end()
