"""Batches of requests on a stand-in for the engine, which answers in an order of its own."""

import datetime
import io
import json
import random
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.batch import answers
from smollm3.batch import run as batch
from smollm3.batch.answers import Answers
from smollm3.batch.run import BatchRun, BatchSettings, read_requests
from smollm3.console import generate as batch_console
from smollm3.console.generate import batch_on_console
from smollm3.errors import UserError
from smollm3.infer import SamplingParams
from smollm3.infer.generation import Channel, Generation, Step

SETTINGS = BatchSettings(SamplingParams(max_tokens=8))


class StandIn:
    """Answers with words that follow from the prompt and the seed; `hold` says how many requests
    later a request ends."""

    def __init__(self, tokenizer, hold=lambda text: 0):
        self.tokenizer, self.hold = tokenizer, hold
        self.asked, self.waiting, self.held = [], [], []
        self.most = self.cancelled = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, prompt, params, **hold):
        self.held.append(hold)
        text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)
        if "refuse" in text:
            raise UserError("the prompt is refused")
        self.asked.append(text)
        channel = Channel(len(text))
        self.waiting.append((self.hold(text), channel, text, params))
        self.most = max(self.most, len(self.waiting))
        generation = Generation(channel, self, self.cancel)
        self.pass_time()
        return generation

    def cancel(self):
        self.cancelled += 1

    def pass_time(self):
        waiting, self.waiting = self.waiting, []
        for wait, channel, text, params in waiting:
            if wait > 0:
                self.waiting.append((wait - 1, channel, text, params))
            elif "break" in text:
                channel.fail(ValueError("a bug"))
            else:
                words = random.Random(f"{text}{params.seed}").choices(["a", "bé", "c\n"], k=4)
                for i, word in enumerate(words):
                    tops = ((i, -0.5),) if params.logprobs else ()
                    channel.push(Step(i, word, -0.5, tops), "stop" if i == 3 else None)


class View:
    def __init__(self):
        self.errors = []

    def error(self, message):
        self.errors.append(message)

    def progress(self, tally):
        pass


def lines(values):
    return b"".join(json.dumps(v).encode() + b"\n" for v in values)


def run(engine, data, path, defaults=SETTINGS, concurrency=4):
    view = View()
    with pytest.MonkeyPatch.context() as patch, Answers(path) as answers:
        patch.setattr(batch.time, "sleep", lambda _: engine.pass_time())
        requests = read_requests(io.BytesIO(data), "x.jsonl", defaults)
        tally = BatchRun(engine, answers, view, concurrency).run(requests)
    return tally, view.errors


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def stagger(text):
    return random.Random(text).choice([0, 0, 0, 3, 11])


REQUESTS = [{"prompt": f"number {i}"} for i in range(60)]


def test_answers_come_in_the_order_of_the_requests(tokenizer, tmp_path):
    engine = StandIn(tokenizer, stagger)
    out = tmp_path / "y.jsonl"
    tally, errors = run(engine, lines(REQUESTS), out)
    rows = read(out)
    assert [row["id"] for row in rows] == list(range(1, 61))
    assert (tally.done, tally.errors, errors, engine.most) == (60, 0, [], 4)
    assert tally.tokens == 240
    assert list(tmp_path.iterdir()) == [out]
    assert rows[3].keys() == {
        "id", "text", "finish_reason", "seed", "prompt_tokens", "completion_tokens", "key",
    }  # fmt: skip
    # Lines differ in their random numbers; the command line can make any of them again.
    assert [row["seed"] for row in rows] == list(range(60))


class Killed(BaseException):
    pass


@given(kills=st.lists(st.integers(1, 40), max_size=6), torn=st.integers(0, 30))
@settings(max_examples=40)
def test_killed_anywhere_is_the_same_file(tokenizer, tmp_path_factory, kills, torn):
    """A kill cuts a write short, after some of its bytes."""
    folder = tmp_path_factory.mktemp("batch")
    data = lines([*REQUESTS[:20], {"prompt": "refuse"}, {"promt": "x"}, *REQUESTS[20:]])
    run(StandIn(tokenizer, stagger), data, folder / "whole.jsonl")
    asked = 0
    write = answers._write
    for writes in kills:
        left = iter(range(writes, 0, -1))

        def dying(file, piece, left=left):
            if next(left, 0) <= 1:
                write(file, piece[:torn])
                raise Killed
            write(file, piece)

        engine = StandIn(tokenizer, stagger)
        with pytest.MonkeyPatch.context() as patch, suppress(Killed):
            patch.setattr(answers, "_write", dying)
            run(engine, data, folder / "killed.jsonl")
        asked += len(engine.asked)
    engine = StandIn(tokenizer, stagger)
    tally, errors = run(engine, data, folder / "killed.jsonl")
    assert (folder / "killed.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert (tally.done, tally.errors, len(errors)) == (62, 2, 2)
    assert sorted(p.name for p in folder.iterdir()) == ["killed.jsonl", "whole.jsonl"]
    # Each kill loses what was running and what was being written.
    assert asked + len(engine.asked) <= 60 + 5 * len(kills)


def test_a_finished_batch_is_not_done_again(tokenizer, tmp_path):
    out = tmp_path / "y.jsonl"
    run(StandIn(tokenizer), lines(REQUESTS), out)
    before = out.read_bytes()
    engine = StandIn(tokenizer)
    tally, _ = run(engine, lines(REQUESTS), out)
    assert (engine.asked, tally.done, tally.tokens) == ([], 60, 0)
    more = [*REQUESTS, {"prompt": "one more"}]
    tally, _ = run(engine, lines(more), out)
    assert (engine.asked, tally.done) == (["one more"], 61)
    assert out.read_bytes().startswith(before)


@pytest.mark.parametrize(
    "change",
    [
        lambda values, s: ([*values[:30], {"prompt": "new"}, *values[30:]], s),
        lambda values, s: (values[:-1], s),
        lambda values, s: (values, replace(s, model="another")),
        lambda values, s: (
            values,
            replace(s, params=SamplingParams(temperature=0.1, max_tokens=8)),
        ),
        lambda values, s: (values, replace(s, as_chat=True)),
    ],
    ids=["inserted", "shorter", "model", "params", "chat"],
)
def test_answers_to_something_else_are_not_touched(tokenizer, tmp_path, change):
    out = tmp_path / "y.jsonl"
    run(StandIn(tokenizer), lines(REQUESTS), out)
    before = out.read_bytes()
    values, changed = change(REQUESTS, SETTINGS)
    engine = StandIn(tokenizer)
    with pytest.raises(UserError, match="choose another --output"):
        run(engine, lines(values), out, changed)
    assert (engine.asked, out.read_bytes()) == ([], before)


@pytest.mark.parametrize("held", [0, 7], ids=["all written", "some in the journal"])
def test_mended_lines_are_done_and_the_others_stay(tokenizer, tmp_path, held):
    out = tmp_path / "y.jsonl"
    values = [{"prompt": "a"}, {"promt": "b"}, {"prompt": "c"}, {"prompt": "d", "n": 0}]
    run(StandIn(tokenizer), lines(values), out)
    mended = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": "d", "n": 1}]
    engine = StandIn(tokenizer, lambda _: held)
    tally, errors = run(engine, lines(mended), out)
    assert sorted(engine.asked) == ["b", "d"]
    assert (tally.done, tally.errors, errors) == (4, 0, [])
    run(StandIn(tokenizer), lines(mended), tmp_path / "fresh.jsonl")
    assert out.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()


def test_what_the_engine_failed_on_is_tried_again(tokenizer, tmp_path):
    out = tmp_path / "y.jsonl"
    values = [{"prompt": "a"}, {"prompt": "break"}, {"prompt": "c"}]
    tally, errors = run(StandIn(tokenizer), lines(values), out)
    assert (tally.done, tally.errors) == (3, 1)
    assert "ValueError: a bug" in errors[0]
    engine = StandIn(tokenizer)
    run(engine, lines(values), out)
    assert engine.asked == ["break"]


BAD = [
    (b"{", "not valid JSON"),
    (b"\xff\xfe", "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b"[1]", "must be a JSON object"),
    (b'{"prompt": "x", "max_token": 3}', "did you mean 'max_tokens'?"),
    (b"{}", "either prompt or messages"),
    (b'{"prompt": "x", "messages": []}', "either prompt or messages"),
    (b'{"prompt": 3}', "prompt: must be"),
    (b'{"prompt": [1, true]}', "prompt: must be"),
    (b'{"prompt": "x", "id": [1]}', "id: must be"),
    (b'{"prompt": "x", "temperature": NaN}', "temperature: must be a number"),
    (b'{"prompt": "x", "logit_bias": {"a": 1}}', "logit_bias: keys"),
    (b'{"prompt": "x", "tools": []}', "tools: only for messages"),
    (b'{"prompt": "\\ud800"}', "lone surrogate"),
    (b'{"messages": 3}', "messages: must be a list"),
    (b'{"messages": []}', "at least one message"),
    (b'{"messages": [3]}', ""),
    (b'{"messages": [{"role": "user", "content": "x"}], "enable_thinking": 1}', "enable_thinking"),
    (b'{"prompt": "' + b"x" * 300 + b'"}', "longer than 0 MiB"),
]


def test_bad_lines_are_named_and_the_others_answered(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_JSON_BYTES", 300)
    good = b'{"prompt": "good", "id": "g"}\n\n'
    data = b"".join(good + line[:400] + b"\n" for line, _ in BAD) + b'{"prompt": "no end"}'
    data = data.replace(BAD[2][0][:400], BAD[2][0][:200])
    tally, errors = run(StandIn(tokenizer), data, tmp_path / "y.jsonl")
    rows = read(tmp_path / "y.jsonl")
    assert tally.errors == len(BAD) == len(errors)
    assert len(rows) == 2 * len(BAD) + 1
    for i, (_, words) in enumerate(BAD):
        assert rows[2 * i]["id"] == "g"
        assert words in rows[2 * i + 1]["error"]
        assert errors[i].startswith(f"x.jsonl:{3 * i + 3}: ")
    assert rows[-1]["id"] == 3 * len(BAD) + 1


def test_deep_nesting_is_an_error_too(tokenizer, tmp_path):
    tally, _ = run(StandIn(tokenizer), b"[" * 100_000 + b"\n" + lines(REQUESTS[:1]), tmp_path / "y")
    assert (tally.done, tally.errors) == (2, 1)


def test_conversations(tokenizer, tmp_path):
    asked = {"role": "user", "content": "Hi"}
    values = [
        {"messages": [asked], "enable_thinking": False, "id": 7},
        {"prompt": "Hi", "n": 2, "seed": 9, "logprobs": 1},
        {"messages": [{"role": "system", "content": "My own."}, asked]},
    ]
    engine = StandIn(tokenizer)
    settings = replace(SETTINGS, as_chat=True, system="Be brief.")
    _, errors = run(engine, lines(values), tmp_path / "y.jsonl", settings)
    assert errors == []
    assert ["Be brief." in text for text in engine.asked] == [True, True, True, False]
    assert "<think>" in engine.asked[0]  # closed at once
    assert "<think>" not in engine.asked[1]
    first, second, _ = read(tmp_path / "y.jsonl")
    assert (first["id"], first["message"]["role"]) == (7, "assistant")
    assert second["choices"][0]["seed"] == 9
    assert second["choices"][0]["logprobs"] == [-0.5] * 4
    assert second["choices"][1]["top_logprobs"] == [[[i, -0.5]] for i in range(4)]


def test_the_day_is_that_of_the_beginning(tokenizer, tmp_path, monkeypatch):
    """What a chat template is told must not change between a kill and the next morning."""

    class Day(datetime.date):
        shown = "2026-01-02"

        @classmethod
        def today(cls):
            return cls.fromisoformat(cls.shown)

    monkeypatch.setattr(batch.datetime, "date", Day)
    values = [{"messages": [{"role": "user", "content": f"Hi {i}"}]} for i in range(2)]
    out = tmp_path / "y.jsonl"
    run(StandIn(tokenizer), b"bad\n" + lines(values[:1]), out)
    Day.shown = "2026-01-03"
    run(StandIn(tokenizer), b"bad\n" + lines(values), out)
    assert [row.get("date") for row in read(out)] == [None, "2026-01-02", "2026-01-02"]


def test_memory_is_bounded_by_the_window(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "WINDOW", 10)
    engine = StandIn(tokenizer, lambda text: 500 if text == "number 0" else 0)
    most = 0
    start = batch.Line.start

    def started(request, *rest):
        nonlocal most
        most = max(most, request.id)
        assert most <= 11 or "number 0" not in [text for _, _, text, _ in engine.waiting]
        return start(request, *rest)

    monkeypatch.setattr(batch.Line, "start", started)
    run(engine, lines(REQUESTS), tmp_path / "y.jsonl")
    assert most == 60


def test_an_interrupted_batch_cancels_what_runs(tokenizer, tmp_path):
    engine = StandIn(tokenizer, lambda _: 1000)

    def interrupt():
        raise KeyboardInterrupt

    engine.pass_time_really, engine.pass_time = engine.pass_time, lambda: None
    with Answers(tmp_path / "y.jsonl") as kept, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.time, "sleep", lambda _: interrupt())
        requests = read_requests(io.BytesIO(lines(REQUESTS)), "x", SETTINGS)
        with pytest.raises(KeyboardInterrupt):
            BatchRun(engine, kept, View(), 5).run(requests)
    assert engine.cancelled == 5


@pytest.mark.parametrize("content", ["Dear diary\n", '{"id": 3}\n', '{"id": 3, "key": 4}\n', "{"])
def test_other_peoples_files_are_left_alone(tmp_path, tokenizer, content):
    out = tmp_path / "y.jsonl"
    out.write_text(content)
    if content == "{":  # what a kill can leave of a line
        run(StandIn(tokenizer), lines(REQUESTS), out)
        assert len(read(out)) == 60
        return
    with pytest.raises(UserError, match=r"y.jsonl:1: no answer of this command"):
        run(StandIn(tokenizer), lines(REQUESTS), out)
    assert out.read_text() == content


def test_one_process_at_a_time(tmp_path):
    with Answers(tmp_path / "y.jsonl"), pytest.raises(UserError, match="another process"):
        Answers(tmp_path / "y.jsonl")


def test_a_journal_is_read_as_far_as_it_is_whole(tmp_path):
    (tmp_path / ".y.jsonl.partial").write_bytes(b'2 {"id": 1, "key": "k"}\n\0\0\0\n3 {}\n')
    with Answers(tmp_path / "y.jsonl") as kept:
        assert [kept.old(i) for i in range(4)] == [None, None, {"id": 1, "key": "k"}, None]


def test_on_the_console(tokenizer, tmp_path, capsys, monkeypatch):
    source = tmp_path / "x.jsonl"
    source.write_bytes(lines([*REQUESTS, {"prompt": 3}]))
    out = tmp_path / "new" / "y.jsonl"
    monkeypatch.setattr(batch_console, "LOG_SECONDS", -1.0)
    monkeypatch.setattr(batch, "SYNC_SECONDS", 1e9)
    assert batch_on_console(StandIn(tokenizer), str(source), out, SETTINGS, 8) == 2
    shown = capsys.readouterr()
    assert shown.err == f"error: {source}:61: prompt: must be a text or a list of token ids\n"
    first, *_, last = shown.out.splitlines()
    assert first.startswith("61 answers, 1 of them errors, ")
    assert last.startswith(f"{out}: 61 answers, 1 of them errors; 240 tokens in")
    assert batch_on_console(StandIn(tokenizer), str(source), out, SETTINGS, 8) == 2
    assert "nothing left to do" in capsys.readouterr().out


def test_from_standard_input(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines(REQUESTS))))
    assert batch_on_console(StandIn(tokenizer), "-", tmp_path / "y", SETTINGS, 8) == 0
    assert len(read(tmp_path / "y")) == 60


def test_files_that_cannot_be(tokenizer, tmp_path):
    source = tmp_path / "x.jsonl"
    with pytest.raises(UserError, match="cannot be read"):
        batch_on_console(StandIn(tokenizer), str(source), tmp_path / "y", SETTINGS, 8)
    assert not (tmp_path / "y").exists()
    source.write_bytes(lines(REQUESTS))
    with pytest.raises(UserError, match="is the input too"):
        batch_on_console(StandIn(tokenizer), str(source), source, SETTINGS, 8)
