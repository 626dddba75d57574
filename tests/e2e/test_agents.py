"""docs/agents.md does what it says; a real small model finishes a task with tools."""

import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

import smollm3
from smollm3.agent import ToolResult

from .conftest import cli

PAGE = (Path(__file__).parents[2] / "docs/agents.md").read_text()
MINE = 'def population(city: str) -> int:\n    "People who live in a city."\n    return 2_103_000\n'
SERVER = Path(__file__).parents[1] / "support" / "mcp_server.py"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_code(code, capsys):
    exec(code, {"__name__": "page"})
    out = capsys.readouterr().out
    assert out.strip()
    if "ToolCall" in code:
        assert "now\n42" in out
        assert "Error" in out


@pytest.mark.slow
@pytest.mark.parametrize("command", "".join(blocks("bash")).splitlines())
def test_command(command, tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    command = command.replace("smollm3-3b", "smollm2-135m --max-tokens 16 --temperature 0")
    command = re.sub(r'"npx.*"', f'"{sys.executable} {SERVER}"', command)
    done = cli(*shlex.split(command)[1:], cwd=tmp_path, stdin="How many people live in Paris?\n")
    assert done.returncode == 0, done.stderr
    assert "population" in done.stderr or "add, write (asks)" in done.stderr
    assert ("Python: " in done.stderr) == ("--python-tools" in command)


def test_a_small_model_finishes_a_task():
    """It can hardly call by itself; held to calls of the tools, it must still choose arguments."""
    asked = []

    @smollm3.tool(read_only=True)
    def temperature(city: Literal["Paris", "Oslo"]) -> str:
        """Temperature in a city."""
        asked.append(city)
        return "21 degrees" if city == "Paris" else "4 degrees"

    params = smollm3.SamplingParams(temperature=0, max_tokens=60)
    question = [{"role": "user", "content": "What is the temperature in Oslo? Call the tool."}]
    with (
        smollm3.load_engine("smollm2-135m") as engine,
        smollm3.Agent(engine, [temperature], params=params, max_steps=2) as agent,
    ):
        agent._constraint = replace(agent._constraint, choice="required", parallel=False)
        result = next(e for e in agent.stream(question) if isinstance(e, ToolResult))
    assert result.ok
    assert asked == ["Oslo"]
    assert result.text == "4 degrees"
