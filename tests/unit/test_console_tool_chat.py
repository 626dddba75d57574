"""A conversation with tools on the terminal, and piped."""

import io
import json
import sys

import pytest
from tests.support.stand_in import ScriptedEngine
from tests.support.terminal import Terminal

from smollm3.agent import Agent, tool
from smollm3.chat import ToolCall, default_template
from smollm3.console.tool_chat import AgentChat, chat_with_tools, clipped, described, shown_call
from smollm3.errors import UserError
from smollm3.infer import SamplingParams
from smollm3.tokenizer import Tokenizer


def call(name, **arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


@tool(read_only=True)
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@tool
def write(text: str) -> str:
    """Write it down."""
    return f"written: {text}"


ANSWERS = {
    "sum": ["Let me see.\n", call("add", a=2, b=3)],
    "5": ["It is 5."],
    "note": [call("write", text="milk")],
    "written: milk": ["Noted."],
    "Error: write was not called: the user did not allow it": ["As you like."],
    "Error: write was not called: it needs a person's consent, none is here": ["Nobody is here."],
    "code": ["<code>\nx = 6\nx * 7\n</code>"],
    "42": ["That is 42."],
    "again": ["<code>\nx\n</code>"],
    "6": ["Still 6."],
    "loop": [call("add", a=1)],
    "2": [call("add", a=1)],
    "broken": [call("add", a=41)],
}


def engine():
    return ScriptedEngine(
        Tokenizer.train(["the model"] * 4, 280, default_template()), dict(ANSWERS)
    )


@pytest.fixture
def chat():
    """chat(tools, **options) -> a conversation that nobody watches."""
    agents = []

    def make(*tools, **options):
        agents.append(Agent(engine(), tools, **options))
        return AgentChat(agents[-1], SamplingParams(), False, None, None, interactive=False)

    yield make
    for agent in agents:
        agent.close()


def test_calls_between_answers(chat, capsys):
    talk = chat(add, write)
    talk.say("sum")
    out, err = capsys.readouterr()
    assert out.endswith("</tool_call>\nIt is 5.\n")
    assert err.splitlines() == ["tools: add, write (asks)", '-> add {"a": 2, "b": 3}', "<- 5"]
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert talk.messages[2]["tool_call_id"] == talk.messages[1]["tool_calls"][0]["id"]
    # Another answer to the question, not to the result.
    talk.say("/retry")
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]


def test_nobody_is_asked_in_a_pipe(chat, capsys):
    talk = chat(write)
    talk.say("note")
    assert capsys.readouterr().out.endswith("Nobody is here.\n")


def test_steps_end(chat, capsys):
    talk = chat(add, max_steps=3)
    talk.say("loop")
    assert "stopped after 3 steps" in capsys.readouterr().err
    assert len(talk.messages) == 6


def test_what_fails_is_taken_back(chat):
    talk = chat(add)
    talk.engine.answers["42"] = [ValueError("a bug")]
    with pytest.raises(RuntimeError, match="a bug"):
        talk.say("broken")
    assert talk.messages == []


def test_ctrl_c_stops_a_call(chat):
    @tool(read_only=True)
    def wait() -> None:
        raise KeyboardInterrupt

    talk = chat(wait)
    talk.engine.answers |= {"go": [call("wait")], "Error: the user stopped this call": ["Fine."]}
    talk.say("go")
    assert talk.messages[-1]["content"] == "Fine."


def test_python_lasts_until_new(chat, capsys):
    talk = chat(python_tools=[add])
    talk.say("code")
    talk.say("again")
    assert [m["content"] for m in talk.messages if m["role"] == "tool"] == ["42", "6"]
    err = capsys.readouterr().err
    assert "in Python: add" in err
    assert "-> python\n   x = 6\n   x * 7\n<- 42" in err
    talk.say("/new")
    talk.engine.answers["again"] = ["<code>\n'x' in globals()\n</code>"]
    talk.say("again")
    assert talk.messages[2]["content"] == "False"


def test_conversations_with_calls_are_saved(chat, tmp_path):
    talk = chat(add)
    talk.say("sum")
    talk.say(f"/save {tmp_path / 'talk.jsonl'}")
    talk.say(f"/save {tmp_path / 'talk.md'}")
    row = json.loads((tmp_path / "talk.jsonl").read_text())
    assert row["messages"][2] == {
        "role": "tool",
        "tool_call_id": "call00001",
        "name": "add",
        "content": "5",
    }
    assert "- `add` {'a': 2, 'b': 3}" in (tmp_path / "talk.md").read_text()


def test_what_is_shown_is_short_and_harmless():
    assert clipped("a\x1b[2Jb\n" * 100).count("\n") == 11
    assert "\x1b" not in clipped("a\x1b[2Jb")
    assert clipped("x" * 5000).endswith(" ...")
    assert shown_call(ToolCall("f", '{"a": ')) == 'f {"a": '
    assert shown_call(ToolCall("python", {"code": "a\nb"})) == "python\n   a\n   b"
    assert described(Agent(engine())) == []


def test_tools_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine_c.py").write_text(
        "def add(a: int, b: int = 1) -> int:\n    'Add.'\n    return a + b\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"code\n/exit\n")))
    options = {"think": False, "system": None, "budget": None}
    chat_with_tools(
        engine(), SamplingParams(), **options, tool=["mine_c.py:add"], python_tools=True
    )
    out, err = capsys.readouterr()
    assert out.endswith("That is 42.\n")
    assert "in Python: add (asks)" in err
    with pytest.raises(UserError, match="given twice"):
        chat_with_tools(engine(), SamplingParams(), **options, tool=["mine_c.py:add"] * 2)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("home"))
    command = [sys.executable, "-m", "tests.unit.test_console_tool_chat"]
    with Terminal(command, XDG_STATE_HOME=home, HOME=home) as found:
        yield found
        found.until(lambda lines: lines[-1:] == [">"])
        found.type("\x04")
        assert found.end() == 0


def ask(program, text):
    program.until(lambda lines: lines[-1:] == [">"])
    program.type("\x0c")
    program.until(lambda lines: lines == [">"])
    program.type(text + "\r")


def test_it_asks_on_a_terminal(program):
    ask(program, "note")
    program.until("Allow it?")
    program.type("n\r")
    program.until("As you like.")
    ask(program, "note")
    program.until("Allow it?")
    program.type("always\r")
    program.until("Noted.")
    ask(program, "note")
    lines = program.until("Noted.")
    assert not any("Allow" in line for line in lines)
    # What was answered is not called back among the questions.
    program.until(lambda lines: lines[-1:] == [">"])
    program.type("\x1b[A")
    program.until(lambda lines: lines[-1:] == ["> note"])  # a line may come in two parts
    program.type("\x15")


def test_calls_are_shown_on_a_terminal(program):
    ask(program, "sum")
    lines = program.until("It is 5.")
    at = lines.index('-> add {"a": 2, "b": 3}')
    assert lines[at + 1] == "<- 5"
    assert "Let me see." in lines
    assert "<tool_call>" not in "\n".join(lines)


if __name__ == "__main__":
    with Agent(engine(), [add, write]) as agent:
        from smollm3.console.chat import converse

        converse(AgentChat(agent, SamplingParams(), False, None, None, interactive=True))
