"""The conversation on a terminal, with a stand-in for the engine."""

import io
import json
import re
import sys

import pyte
import pytest
from tests.support.stand_in import ANSWERS, ScriptedEngine
from tests.support.terminal import Terminal

from smollm3.console import terminal
from smollm3.console.chat import Chat, chat_on_console
from smollm3.console.terminal import LineReader, Painter, rows_down
from smollm3.errors import UserError
from smollm3.infer import SamplingParams
from smollm3.visible import visible

STAND_IN = [sys.executable, "-m", "tests.support.stand_in"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def program(home):
    """One for all tests, as it takes seconds to start; it must survive each of them."""
    with Terminal(STAND_IN, XDG_STATE_HOME=str(home), HOME=str(home)) as found:
        yield found
        found.type("\x04")
        assert found.end() == 0


@pytest.fixture
def talk(program):
    """At an empty prompt of an empty screen, reasoning shown."""
    program.until(prompt_is_back)
    program.type("\x0c")
    program.until(lambda lines: lines == [">"])
    return program


def prompt_is_back(lines):
    return lines[-1:] == [">"]


def answered(lines):
    return len(lines) > 1 and "cached" in lines[-2] and lines[-1] == ">"


def test_a_conversation(talk, home):
    talk.type("quick\r")
    lines = talk.until(answered)
    at = lines.index("> quick")
    assert lines[at + 1 : at + 4] == ["idea 0", "idea 1", "idea 2"]
    assert re.fullmatch(r"thought for \d s, 6 tokens", lines[at + 4])
    assert lines[at + 5] == "the answer"
    note = r"\d+ tokens/s, first after 0\.\d s; [\d,]+ of 2,048 tokens of context, 3 cached"
    assert re.fullmatch(note, lines[at + 6])
    dimmed = talk.raw.index(b"\x1b[2m", talk.raw.index(b"quick"))
    assert talk.raw.index(b"idea 0") > dimmed
    # Tab on an empty line folds what stands there, and shows it again.
    talk.type("\t")
    folded = talk.until(lambda lines: "idea 0" not in lines and lines[-1:] == [">"])
    assert folded[at : at + 3] == ["> quick", lines[at + 4], "the answer"]
    assert folded[:at] == lines[:at]
    talk.type("\t")
    assert talk.until(lambda shown: shown == lines)
    # The next answers keep to it.
    talk.type("\t")
    talk.until(lambda lines: "idea 0" not in lines)
    talk.type("quick\r")
    lines = talk.until(lambda lines: lines[-1:] == [">"] and lines.count("the answer") == 2)
    assert "idea 0" not in lines
    # Lines can be edited and called back; commands are completed.
    talk.type("slop\x7fw\x15/he\t\r")
    talk.until("Ctrl-C stops")
    talk.type("\x1b[A\x1b[A\r")
    talk.until(answered)
    talk.type("\t")
    talk.until("idea 0")


def test_folding_while_it_thinks(talk):
    talk.type("slow\r")
    talk.until("idea 3")
    talk.type("\t")
    folded = re.compile(r"thinking for \d+ s, \d+ tokens \(Tab shows\)")
    talk.until(lambda lines: folded.fullmatch(lines[-1]) and "idea" not in "".join(lines))
    talk.type("\x12")
    talk.until(lambda lines: "idea 12" in lines and "thinking for" not in "".join(lines))
    talk.type("\x12typed ahead")
    lines = talk.until(lambda lines: lines[-1] == "> typed ahead")
    talk.type("\x15\t")
    talk.until("idea 3")
    assert lines[-5] == "> slow"
    assert re.fullmatch(r"thought for \d s, 43 tokens", lines[-4])
    assert lines[-3] == "the answer"


def test_reasoning_taller_than_the_screen(talk):
    talk.type("tall\r")
    lines = talk.until(answered)
    talk.type("\t")
    lines = talk.until(lambda lines: lines[-1:] == [">"] and "idea" not in "".join(lines))
    assert lines[0].startswith("thought for")
    assert lines[1] == "the answer"
    talk.type("\t")
    talk.until(lambda lines: "idea 29" in lines and lines[-1:] == [">"])
    assert talk.above[-1].startswith("idea")


def test_ctrl_c_stops_the_answer_only(talk):
    talk.type("endless\r")
    talk.until("so so so")
    talk.type("\x03")
    lines = talk.until(prompt_is_back)
    assert any("stopped; " in line for line in lines)
    talk.type("half a line")
    talk.until("half a line")
    talk.type("\x03")
    talk.until(prompt_is_back)
    talk.type("late\r")
    talk.until("reading for 1 s")
    talk.until(lambda lines: "here" in "".join(lines) and "reading" not in "".join(lines))
    talk.until(prompt_is_back)
    talk.type("a\\\rb\r")
    talk.until("b (0)")
    talk.until(prompt_is_back)


def test_what_goes_wrong_does_not_end_it(talk):
    talk.type("hostile\r")
    lines = talk.until(lambda lines: lines[-1:] == [">"] and "tab" in "".join(lines))
    assert "> hostile" in lines  # the screen was not cleared
    assert b"\x1b]0;title" not in talk.raw
    for typed, shown in {
        "too long": "error: 9,999 tokens do not fit",
        "broken": "error: the engine failed on this request",
        "/nothing": "no such command",
        "/save": "name a FILE",
        "/save x.txt": ".md, .jsonl or .json",
    }.items():
        talk.type(f"{typed}\r")
        talk.until(lambda lines, shown=shown: shown in "\n".join(lines) and lines[-1:] == [">"])


def test_history_is_kept(tmp_path):
    history = tmp_path / "smollm3/history"
    history.parent.mkdir()
    history.write_text("remember\n")
    with Terminal(STAND_IN, XDG_STATE_HOME=str(tmp_path)) as talk:
        talk.until(prompt_is_back)
        talk.type("\x1b[A this\r")
        talk.until("you said: remember this")
        talk.until(prompt_is_back)
        talk.type("/exit\r")
        assert talk.end() == 0
    assert history.read_text().splitlines() == ["remember", "remember this", "/exit"]


# without a terminal


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(tokenizer, ANSWERS, 4096)


@pytest.fixture
def chat(engine):
    return Chat(engine, SamplingParams(seed=5), True, "Be brief.", None, interactive=False)


def typed(monkeypatch, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_plain_answers_in_a_pipe(engine, monkeypatch, capsys):
    typed(monkeypatch, b"quick\n\n/no_think\nhello\n/exit\nnever read\n")
    chat_on_console(engine, SamplingParams())
    shown = capsys.readouterr()
    assert (
        shown.out == "<think>\nidea 0\nidea 1\nidea 2\n</think>\nthe answer\nyou said: hello (0)\n"
    )
    assert shown.err == "answers at once\n"
    assert "<think>\n\n</think>" in engine.asked[1][0]


def test_bad_input_in_a_pipe(engine, monkeypatch):
    typed(monkeypatch, b"hello\n\xff\n")
    with pytest.raises(UserError, match="standard input:2: not UTF-8"):
        chat_on_console(engine, SamplingParams())
    typed(monkeypatch, b"too long\n")
    with pytest.raises(UserError, match="do not fit"):
        chat_on_console(engine, SamplingParams())


def test_each_question_sees_the_turns_before_it(chat, engine, capsys):
    chat.say("one")
    chat.say("two")
    assert "you said: one (5)" in engine.asked[1][0]
    assert "Be brief." in engine.asked[1][0]
    chat.say("/system Be long.")
    chat.say("/new")
    chat.say("three")
    assert "you said" not in engine.asked[2][0]
    assert "Be long." in engine.asked[2][0]
    chat.say("/system")
    assert chat.prompt()[0]["role"] == "user"


def test_retry_draws_other_numbers(chat, engine):
    with pytest.raises(UserError, match="nothing was asked"):
        chat.say("/retry")
    chat.say("one")
    chat.say("/retry")
    chat.say("/retry")
    chat.say("two")
    assert [params.seed for _, params in engine.asked] == [5, 6, 7, 5]
    assert [m["content"] for m in chat.messages[::2]] == ["one", "two"]
    assert chat.messages[1]["content"] == "you said: one (7)"


def test_a_question_without_an_answer_is_taken_back(chat):
    chat.say("one")
    for words in ("too long", "broken"):
        with pytest.raises((UserError, RuntimeError)):
            chat.say(words)
    assert [m["content"] for m in chat.messages] == ["one", "you said: one (5)"]


def test_a_path_is_no_command(chat):
    chat.say("/etc/passwd is what?")
    assert chat.messages[1]["content"] == "you said: /etc/passwd is what? (5)"
    with pytest.raises(UserError, match="/ext: no such command"):
        chat.say("/ext")


def test_saved_conversations(chat, tmp_path, capsys):
    chat.say("quick")
    for suffix in ("md", "jsonl", "json"):
        chat.say(f"/save {tmp_path}/talk.{suffix}")
    text = (tmp_path / "talk.md").read_text()
    assert text == (
        "**system**\n\nBe brief.\n\n**user**\n\nquick\n\n"
        "**assistant**\n\n> idea 0\n> idea 1\n> idea 2\n\nthe answer\n"
    )
    row = json.loads((tmp_path / "talk.json").read_text())
    assert row == json.loads((tmp_path / "talk.jsonl").read_text())
    assert row["chat_template_kwargs"] == {"enable_thinking": True}
    assert row["messages"][2]["reasoning_content"] == "idea 0\nidea 1\nidea 2"
    chat.say(f"/save {tmp_path}/talk.md")  # its own file again
    (tmp_path / "mine.md").write_text("dear to me")
    for name, words in {
        "mine.md": "exists already",
        "x.txt": r"ends in '.txt'",
        "x": "nothing",
    }.items():
        with pytest.raises(UserError, match=words):
            chat.say(f"/save {tmp_path}/{name}")
    assert (tmp_path / "mine.md").read_text() == "dear to me"


@pytest.mark.parametrize(
    ("text", "rows"),
    [("", 0), ("a" * 10, 0), ("a" * 11, 1), ("a\n", 1), ("a" * 10 + "\n", 1), ("a" * 25, 2),
     ("日" * 5, 0), ("日" * 6, 1), ("a" + "日" * 5, 1), ("a日" * 9, 2), ("日" * 5 + "\nb", 1)],
)  # fmt: skip
def test_rows(text, rows):
    assert rows_down(text, 10) == rows
    if not text.isascii():
        return  # pyte lets a wide character begin in the last column, which terminals do not
    screen = pyte.Screen(10, 20)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    assert screen.cursor.y == rows


def test_text_that_a_terminal_would_obey():
    assert visible("a\x1b[2J\r\x9b\u202eb\tc\n") == "a\ufffd[2J\ufffd\ufffd\ufffdb    c\n"


def test_no_readline(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_readline", lambda: None)
    reader = LineReader(["/new"], lambda: None)
    typed(monkeypatch, b"one\\\ntwo\n")
    assert reader.read("> ") == "one\ntwo"
    assert "\x1b" not in capsys.readouterr().out


def test_completion(monkeypatch):
    monkeypatch.setattr(terminal, "_readline", lambda: None)
    pressed = []
    reader = LineReader(["/new", "/no_think", "/save"], lambda: pressed.append(1))
    assert [reader._complete("/n", i) for i in range(3)] == ["/new ", "/no_think ", None]
    assert reader._complete("hello", 0) is None
    assert pressed == []
    assert reader._complete("", 0) is None
    assert pressed == [1]


def test_a_status_line_does_not_stay(monkeypatch):
    out = io.StringIO()
    painter = Painter(out)
    painter.status("waiting")
    painter.status("waiting")
    painter.write("text")
    assert out.getvalue().count("waiting") == 1
    screen = pyte.Screen(80, 4)
    pyte.Stream(screen).feed(out.getvalue())
    assert screen.display[0].rstrip() == "text"
