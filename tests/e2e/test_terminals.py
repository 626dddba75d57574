"""Every command that draws, on a real terminal: wide and narrow, with colour and without."""

import re
import sys

import pytest

from tests.support.noise import save_noise
from tests.support.terminal import Terminal

WIDE, NARROW = (110, {}), (44, {"NO_COLOR": "1"})

RECIPE = """
name: tiny
model: {layers: 1, hidden: 16, heads: 2, kv_heads: 1, ffn: 24}
sources:
  web: {kind: procedural, generator: web, documents: 60, holdout: 0.2}
stages:
  tokenizer: {kind: tokenizer, vocab: 320, mixture: {web: 1}, characters: 2e4}
  train: {kind: train, mixture: {web: 1}, context: 32, batch: 2, steps: 3, lr: {peak: 1e-3}}
  card:
    kind: eval
    documents: 4
    samples: 0
    claims: [{claim: It learns, metric: loss/web, model: train, at_most: 1}]
  export: {kind: export, to: [hf:float32]}
"""


@pytest.fixture(scope="module")
def place(tokenizer, tmp_path_factory):
    """A folder with a recipe, a model that says noise, and requests for it."""
    folder = tmp_path_factory.mktemp("terminals")
    (folder / "tiny.yaml").write_text(RECIPE)
    save_noise(folder / "noise", tokenizer, context=1024)
    (folder / "in.jsonl").write_text('{"prompt": "Rome"}\n{"prompt": "Paris"}\n')
    return folder


@pytest.fixture
def terminal(request, place):
    """terminal(words...) -> a terminal of this kind on which the command runs."""
    columns, environment = WIDE if request.param == "wide" else NARROW

    def start(*words):
        command = [sys.executable, "-m", "smollm3", *map(str, words)]
        state = {"XDG_STATE_HOME": str(place)}
        shown = Terminal(command, columns=columns, lines=24, cwd=place, **environment, **state)
        shown.coloured = not environment
        return shown

    return start


def whole(shown):
    """The program's end: its code, and all that the terminal showed, scrolled away or not."""
    code = shown.end()
    text = "\n".join([*shown.above, *shown.lines])
    assert "Traceback" not in text, text
    assert shown.coloured or not re.search(rb"\x1b\[(\d+;)*3\d", shown.raw)
    return code, text


def on(fast):
    """Runs on both kinds of terminal; what takes a process of its own on one of them in the fast
    tests."""
    kinds = [
        k if k in fast else pytest.param(k, marks=pytest.mark.slow) for k in ("wide", "narrow")
    ]
    return pytest.mark.parametrize("terminal", kinds, indirect=True)


@on("wide narrow")
def test_run(terminal, place, tmp_path):
    seen = set()

    def finished(lines):
        seen.update(w for w in ("learning", "preparing", "training") if w in " ".join(lines))
        return any("talk to" in line for line in lines)

    with terminal("run", "tiny.yaml", "--out", tmp_path / "run") as shown:
        shown.until(finished)
        code, text = whole(shown)
    assert code == 0, text
    for stage in ("tokenizer", "train", "card", "export"):
        assert f"✓ {stage}" in text
    # The bars were drawn while it worked, and are gone at the end.
    assert "preparing" in seen
    assert "━" not in text
    assert "score card" in text
    with terminal("run", "tiny.yaml", "--out", tmp_path / "run") as shown:
        code, text = whole(shown)
    assert code == 0
    assert text.count("(done before)") == 4


@on("narrow")
def test_a_mistake_in_a_recipe_is_one_line(terminal):
    with terminal("run", "tiny.yaml", "--set", "stages.train.stepps=3") as shown:
        code, text = whole(shown)
    assert code == 2
    assert "stepps" in text


def check(terminal, words, expected=""):
    with terminal(*words) as shown:
        code, text = whole(shown)
    assert code == 0, text
    assert expected in text


@on("narrow")
def test_dry_run(terminal):
    check(terminal, ["run", "tiny.yaml", "--dry-run"], "what each stage asks for")


@on("wide")
def test_generate(terminal):
    check(terminal, ["generate", "noise", "Rome", "--max-tokens", 4])


@on("narrow")
def test_generate_a_batch(terminal, tmp_path):
    words = ["generate", "noise", "--input", "in.jsonl", "--output", tmp_path / "out.jsonl"]
    check(terminal, words, "2 answers")


@on("")
def test_export(terminal, tmp_path):
    check(terminal, ["export", "noise", tmp_path / "out", "--to", "hf:float32"])


@on("")
def test_bench(terminal):
    words = ["bench", "noise", "--repeat", 1, "--tokens", 2, "--long", 64]
    check(terminal, words, "median")


@on("")
def test_conformance(terminal, tmp_path):
    check(terminal, ["conformance", "--make", tmp_path / "kit"])
    check(terminal, ["conformance", "ours"], "ours")


@on("")
def test_tokenizer_build(terminal, tmp_path):
    check(terminal, ["tokenizer", "build", tmp_path / "tokenizer"])


@on("narrow")
def test_chat(terminal):
    with terminal("chat", "noise", "--max-tokens", "4", "--no-think") as shown:
        shown.until(lambda lines: lines[-1:] == [">"])
        shown.type("Hello\r")
        shown.until(lambda lines: "cached" in "".join(lines) and lines[-1:] == [">"])
        shown.type("/exit\r")
        code, _ = whole(shown)
    assert code == 0


@on("wide")
def test_serve(terminal):
    with terminal("serve", "noise", "--port", "0") as shown:
        shown.until(lambda lines: "127.0.0.1:" in "".join(lines))
        shown.type("\x03")
        code, _ = whole(shown)
    assert code in (0, 130)
