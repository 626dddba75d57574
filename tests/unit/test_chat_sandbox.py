"""Hostile templates: an error, in bounded time and memory, and the next one renders."""

import os
import signal
import threading
import time

import pytest

from smollm3.chat import default_template, sandbox
from smollm3.chat.template import is_ours
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer

TOK = Tokenizer.train(["a user and an assistant\n"] * 9, 300, default_template("Nano"))
CHAT = [{"role": "user", "content": "q"}]


def render(template, chat=CHAT, **options):
    return TOK.with_template(template).render_text(chat, **options)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{% set x = [0] * 10 ** 10 %}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'a'.center(10 ** 10) }}",
        "{{ '{:10000000000}'.format(1) }}",
        "{{ range(10 ** 10) | list }}",
        "{% set n = namespace(a='aa') %}{% for i in range(99) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for i in [1] %}" * 50 + "{% endfor %}" * 50,
        "{{ messages[0].content.replace('q', 'q' * 10 ** 6).replace('q', 'q' * 10 ** 6) }}",
    ],
    ids=lambda template: template[:40],
)
def test_bombs(template):
    with pytest.raises(UserError, match="^chat template: "):
        render(template)
    assert render("{{ messages[0].content }}") == "q"


LOOPS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
    "{{ n.a }}",
]


@pytest.mark.parametrize("template", LOOPS)
def test_endless(template, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    with pytest.raises(UserError, match=r"^chat template: not done after 0\.5 seconds$"):
        render(template)
    monkeypatch.undo()
    assert render("{{ messages[0].content }}") == "q"


def test_its_process_may_die():
    assert render("{{ 1 }}") == "1"
    os.kill(sandbox._current._process.pid, signal.SIGKILL)
    sandbox._current._process.wait()
    assert render("{{ 1 }}") == "1"


def test_death_in_the_midst(monkeypatch):
    errors = []

    def endless():
        with pytest.raises(UserError, match="its process was ended") as error:
            render(LOOPS[0])
        errors.append(error)

    thread = threading.Thread(target=endless)
    render("{{ 1 }}")
    thread.start()
    time.sleep(0.3)
    os.kill(sandbox._current._process.pid, signal.SIGKILL)
    thread.join(20)
    assert errors


def test_threads_share_one():
    texts = {}

    def ask(i):
        texts[i] = render("{{ messages[0].content }}", [{"role": "user", "content": str(i)}])

    threads = [threading.Thread(target=ask, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert texts == {i: str(i) for i in range(8)}


def test_a_fork_has_its_own():
    assert render("{{ 1 }}") == "1"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, render("{{ 2 }}").encode())
        sandbox._current.end()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 1) == b"2"
    os.close(reader)
    os.close(writer)
    assert render("{{ 3 }}") == "3"


def test_only_ours_runs_here():
    assert is_ours(default_template())
    assert is_ours(default_template('a "b" %}{{ 1 }}\\', "c", "d"))
    for other in (
        default_template() + " ",
        default_template()[1:],
        "{% set name = [1] * 9 %}\n" + default_template().partition("\n")[2],
        "{% set name = lipsum() %}\n" + default_template(),
        "",
    ):
        assert not is_ours(other)


def test_ours_renders_the_same_apart():
    chat = [*CHAT, {"role": "assistant", "content": "a", "reasoning_content": "\udcffé"}]
    here = TOK.render_text(chat)
    assert render(TOK.template + "{# apart #}", chat) == here


@pytest.mark.parametrize("end", ["", "{# apart #}"])
def test_long_lines(end):
    content = "<é" * 1_000_000
    assert content in render(TOK.template + end, [{"role": "user", "content": content}])


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a", "the ", "<|im_end|>", "é", "1", "\n"])
def test_lines_of_ten_megabytes(unit):
    content = unit * (10_000_000 // len(unit.encode()))
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "b"}]
    rendered = TOK.render(chat, add_generation_prompt=False)
    assert TOK.decode(rendered.ids).count(content) == 1


@pytest.mark.slow
def test_what_the_tokenizer_gives_up_on():
    with pytest.raises(UserError, match="gives up"):
        TOK.render([{"role": "user", "content": " " * 10_000_000}])
