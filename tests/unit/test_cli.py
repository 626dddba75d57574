"""The commands that run models, in this process: what they print, and how they refuse."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tests.support.noise import CONFIG, save_noise

from smollm3.bench import measure as bench
from smollm3.cli import main
from smollm3.errors import UserError


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A folder with a model that says different things."""
    folder = tmp_path_factory.mktemp("model")
    save_noise(folder, tokenizer, context=1024)
    return str(folder)


@pytest.fixture
def command(monkeypatch, capsys):
    """command(words...) -> exit code, standard output, standard error."""

    def run(*words, stdin=b""):
        monkeypatch.setattr(sys, "argv", ["smollm3", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as e:
            main()
        shown = capsys.readouterr()
        return e.value.code, shown.out, shown.err

    return run


MANY = ["generate", "<MODEL>", "x", "--max-tokens", "2"]
REFUSED = {
    "no prompt": (["generate", "<MODEL>"], "give either PROMPT"),
    "prompt and input": (
        ["generate", "<MODEL>", "x", "--input", "a", "--output", "b"],
        "give either",
    ),
    "input without output": (["generate", "<MODEL>", "--input", "a"], "give either"),
    "no such input": (["generate", "<MODEL>", "--input", "no.jsonl", "--output", "y"], "no.jsonl"),
    "input is a folder": (["generate", "<MODEL>", "--input", "<TMP>", "--output", "y"], "<TMP>"),
    "output is a folder": (
        ["generate", "<MODEL>", "--input", "<IN>", "--output", "<TMP>"],
        "<TMP>",
    ),
    "output below a file": (
        ["generate", "<MODEL>", "--input", "<IN>", "--output", "<IN>/y"],
        "<IN>",
    ),
    "concurrency": (["generate", "<MODEL>", "x", "--concurrency", "0"], "--concurrency"),
    "empty prompt": (["generate", "<MODEL>", ""], "the prompt is empty"),
    "prompt fills the context": (["generate", "<MODEL>", "x" * 3000], "do not fit"),
    "invalid UTF-8": (["generate", "<MODEL>", "\udcff"], "lone surrogate"),
    "invalid UTF-8 from stdin": (["generate", "<MODEL>", "-"], "standard input: not UTF-8"),
    "temperature": ([*MANY, "--temperature", "nan"], "temperature"),
    "temperature a word": ([*MANY, "--temperature", "hot"], "--temperature"),
    "top_p": ([*MANY, "--top-p", "1.5"], "top_p"),
    "top_k": ([*MANY, "--top-k", "-1"], "top_k"),
    "min_p": ([*MANY, "--min-p", "-1"], "min_p"),
    "repetition": ([*MANY, "--repetition-penalty", "0"], "repetition_penalty"),
    "presence": ([*MANY, "--presence-penalty", "inf"], "presence_penalty"),
    "frequency": ([*MANY, "--frequency-penalty", "1e9"], "frequency_penalty"),
    "stop": ([*MANY, "--stop", ""], "stop"),
    "n": ([*MANY, "--n", "0"], "n: must be at least 1"),
    "max tokens": (["generate", "<MODEL>", "x", "--max-tokens", "0"], "max_tokens"),
    "budget": ([*MANY, "--thinking-budget", "-1"], "thinking_budget"),
    "two constraints": ([*MANY, "--regex", "a", "--grammar", "<IN>"], "give one of"),
    "no schema": ([*MANY, "--json-schema", "no.json"], "no.json: no such file"),
    "bad schema": ([*MANY, "--json-schema", "<BAD>"], "<BAD>: not valid JSON"),
    "impossible schema": ([*MANY, "--json-schema", "<NEVER>"], "schema"),
    "regex": ([*MANY, "--regex", "("], "regex"),
    "grammar": ([*MANY, "--grammar", "<BAD>"], "grammar"),
    "no model": (["generate", "<TMP>/none", "x"], "none"),
    "engine": ([*MANY, "--engine", "warp"], "engine: 'warp'"),
    "device": ([*MANY, "--device", "mars"], "mars"),
    "dtype": ([*MANY, "--dtype", "float7"], "float7"),
    "threads": ([*MANY, "--threads", "0"], "--threads"),
    "cache type": ([*MANY, "--kv-cache-dtype", "int3"], "kv_cache_dtype"),
    "context": ([*MANY, "--context", "1000000"], "context"),
    "draft": ([*MANY, "--draft", "<TMP>/none"], "none"),
    "unknown option": ([*MANY, "--temprature", "1"], "--temperature"),
    "unknown command": (["generat", "x"], "generate"),
    "chat too long": (["chat", "<MODEL>"], "do not fit"),
    "bench of nothing": (["bench"], "give either MODEL or --shape"),
    "bench of both": (
        ["bench", "<MODEL>", "--shape", "smollm3-3b"],
        "give either MODEL or --shape",
    ),
    "bench of no shape": (["bench", "--shape", "huge"], "huge: not NAME:KIND"),
    "bench too long": (["bench", "<MODEL>", "--long", "5000"], "--long: 5000 tokens"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake_is_one_line(name, model, command, tmp_path, monkeypatch):
    words, expected = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requests.jsonl").write_text('{"prompt": "x", "max_tokens": 1}\n')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "never.json").write_text('{"type": "integer", "minimum": 2, "maximum": 1}')
    places = {
        "<MODEL>": model,
        "<TMP>": str(tmp_path),
        "<IN>": str(tmp_path / "requests.jsonl"),
        "<BAD>": str(tmp_path / "bad.json"),
        "<NEVER>": str(tmp_path / "never.json"),
    }

    def placed(text):
        for key, place in places.items():
            text = text.replace(key, place)
        return text

    stdin = b"\xff" if name.startswith("invalid") else b"y " * 3000
    code, _, err = command(*map(placed, words), stdin=stdin)
    assert code == 2
    [line] = err.strip().splitlines()
    assert line.startswith("error: ")
    assert placed(expected) in line


SHORT = ("--max-tokens", "8")


def test_one_seed_one_answer(command, model):
    words = ("generate", model, "the model", *SHORT, "--temperature", "1")
    answers = [command(*words, "--seed", seed) for seed in (1, 1, 2)]
    assert [code for code, _, _ in answers] == [0, 0, 0]
    assert answers[0] == answers[1] != answers[2]
    # The kernels and PyTorch agree, and so do one thread and two.
    assert command(*words, "--seed", 1, "--engine", "torch")[1] == answers[0][1]
    assert command(*words, "--seed", 1, "--threads", 2, "--no-speculation")[1] == answers[0][1]


def test_several_answers(command, model):
    code, out, _ = command("generate", model, "x", *SHORT, "--n", 3, "--temperature", 2)
    parts = out.split("--- ")
    assert (code, [part[:6] for part in parts]) == (0, ["", "1 of 3", "2 of 3", "3 of 3"])
    assert len({part[6:] for part in parts}) == 4


def test_answers_of_a_given_form(command, model, tmp_path):
    pytest.importorskip("llguidance")
    words = ("generate", model, "x", "--temperature", 0)
    assert command(*words, "--regex", "[a-c]{5}")[1].strip("abc") == "\n"
    (tmp_path / "g.lark").write_text('start: "yes" | "no"')
    assert command(*words, "--grammar", tmp_path / "g.lark")[1] in ("yes\n", "no\n")
    (tmp_path / "s.json").write_text('{"enum": [12, 13]}')
    assert command(*words, "--json-schema", tmp_path / "s.json")[1] in ("12\n", "13\n")


def test_a_thinking_budget(command, model):
    pytest.importorskip("llguidance")
    words = ("generate", model, "Hi", "--chat", *SHORT, "--thinking-budget", 0)
    assert command(*words)[1].startswith("<think>\n\n</think>\n")


def test_a_prompt_from_standard_input(command, model):
    assert command("generate", model, "-", *SHORT, stdin=b"abc") == command(
        "generate", model, "abc", *SHORT
    )


def test_stop_and_penalties_reach_the_sampler(command, model):
    words = ("generate", model, "x", "--temperature", 2, "--max-tokens", 20)
    _, plain, _ = command(*words)
    stop = plain[6:8]
    assert command(*words, "--stop", stop, "--stop", "no")[1] == plain.partition(stop)[0] + "\n"
    for name in ("repetition", "presence", "frequency"):
        words = ("generate", model, "x", "--temperature", 0, "--max-tokens", 30)
        _, changed, _ = command(*words, f"--{name}-penalty", 50)
        assert changed != command(*words)[1], name


def test_chat_in_a_pipe(command, model):
    code, out, err = command("chat", model, *SHORT, "--no-think", stdin=b"Hi\n/new\nHi\n")
    assert (code, err) == (0, "a new conversation\n")
    assert len(out.splitlines()) >= 2


def test_a_batch(command, model, tmp_path):
    source, out = tmp_path / "x.jsonl", tmp_path / "y.jsonl"
    lines = [
        {"prompt": "a", "id": "first", "seed": 7, "temperature": 1.0},
        {"messages": [{"role": "user", "content": "Hi"}], "enable_thinking": False},
        {"prompt": "b", "choice": ["yes", "no"]},
        {"prompt": "c", "json_schema": {"type": "integer"}, "regex": "a"},
        {"prompt": "d", "json_schema": {"minLength": 2, "type": "integer", "multipleOf": "x"}},
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("generate", model, "--input", source, "--output", out, *SHORT)
    code, shown, err = command(*words)
    assert code == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["first", 2, 3, 4, 5]
    assert rows[1]["message"]["role"] == "assistant"
    assert rows[2]["text"] in ("yes", "no")
    assert rows[3]["error"] == "json_schema: not together with regex"
    assert rows[4]["error"].startswith("schema: ")
    assert [line.split(": ")[1] for line in err.splitlines()] == [f"{source}:4", f"{source}:5"]
    assert shown.startswith(f"{out}: 5 answers, 2 of them errors; ")
    # What a line says can be said on the command line.
    alone = command("generate", model, "a", *SHORT, "--seed", 7, "--temperature", 1)[1]
    assert alone == rows[0]["text"] + "\n"
    # Done is done, with another engine refused.
    before = out.read_bytes()
    assert command(*words)[0] == 2
    code, _, err = command(*words, "--engine", "torch", "--dtype", "bfloat16")
    assert (code, out.read_bytes()) == (2, before)
    assert "choose another --output" in err


def test_bench(command, model, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "start_seconds", lambda *words: asked.append(words) or 1.5)
    monkeypatch.setattr(bench, "LEAST_READ", 1 << 16)
    monkeypatch.setattr(bench, "PRODUCT", 16)
    file = tmp_path / "new" / "b.json"
    words = ("--long", 64, "--repeat", 2, "--tokens", 4, "--threads", 1, "--no-weight-cache")
    code, out, err = command("bench", model, *words, "--json", file)
    assert (code, err) == (0, "")
    assert asked == [(model, ["--threads", "1", "--no-weight-cache", "--no-speculation"])]
    found = json.loads(file.read_text())
    rows = {row["name"]: row for row in found["rows"]}
    for name, unit, values in [
        ("start of a process to its first token", "s", 1),
        ("of that, loading the model", "s", 1),
        ("prefill of 510 tokens", "tok/s", 2),
        ("decode, one stream", "tok/s", 2),
        ("decode, 8 streams together", "tok/s", 2),
        ("prefill of 64 tokens", "tok/s", 1),
        ("decode behind 64 tokens", "tok/s", 2),
        ("memory, at most", "bytes", 1),
    ]:
        assert (rows[name]["unit"], len(rows[name]["values"])) == (unit, values)
        assert min(rows[name]["values"]) > 0
        assert name in out
    assert rows["start of a process to its first token"]["median"] == 1.5
    assert rows["memory, at most"]["median"] > 50e6
    assert rows["decode, one stream"]["share"] > 0
    assert found["machine"]["cores"]
    assert found["engine"] in ("native", "torch")


def test_bench_counts_what_a_token_reads(model):
    """Of an untied model the embedding is only looked up, a row for each token."""
    for tied in (True, False):
        config = replace(CONFIG, tied=tied)
        engine = SimpleNamespace(config=config)
        read = bench.Bench(engine, config.parameters * 4, 64, 1, 4).bytes_per_token
        assert read == (CONFIG.parameters) * 4


def test_a_start_that_fails(capfd):
    with pytest.raises(UserError, match="failed, see above"):
        bench.start_seconds("/nothing", [])
    assert "/nothing" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["chat", "generate", "bench"])
def test_help_needs_no_torch(name):
    process = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "smollm3", name, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage" in process.stdout
    assert not re.search(r"\| +(torch|numpy|pydantic|rich)$", process.stderr, re.MULTILINE)
