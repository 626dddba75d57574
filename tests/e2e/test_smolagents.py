"""smolagents' two agents finish a task against the server, with a model of 135M parameters; what it
cannot do by itself, constraints make up for."""

import re
from typing import Literal

import pytest

from .test_serve import serving

smolagents = pytest.importorskip("smolagents")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
TASK = "What is the temperature in Oslo?"


@pytest.fixture(scope="module")
def url():
    with serving("smollm2-135m") as server:
        yield f"{server.url}/v1"


tool = smolagents.tool
ASKED = []


@tool
def temperature(city: Literal["Paris", "Oslo"]) -> str:
    """The temperature in a city.

    Args:
        city: Its name.
    """
    ASKED.append(city)
    return "21 degrees" if city == "Paris" else "4 degrees"


def model(url, kind=smolagents.OpenAIModel, **options):
    return kind(
        "smollm2-135m", api_base=url, api_key="none", temperature=0, max_tokens=300, **options
    )


class Guided(smolagents.OpenAIModel):
    """Once it has called a tool, the model may only answer: left alone this one calls for ever."""

    def generate(self, messages, *args, **options):
        if any(message.role == "tool-response" for message in messages):
            options["tool_choice"] = {"type": "function", "function": {"name": "final_answer"}}
        return super().generate(messages, *args, **options)


def test_tool_calling_agent(url):
    ASKED.clear()
    agent = smolagents.ToolCallingAgent(
        [temperature], model(url, Guided), max_steps=4, verbosity_level=0
    )
    answer = agent.run(TASK)
    steps = agent.memory.steps
    calls = [call.name for step in steps for call in getattr(step, "tool_calls", None) or ()]
    assert calls[-1] == "final_answer"
    assert "temperature" in calls
    assert ["Oslo"] * len(ASKED) == ASKED
    assert answer


def test_code_agent(url):
    code = (
        r'Thought: [a-z ]{1,60}\.\n<code>\nfinal_answer\(temperature\("(Paris|Oslo)"\)\)\n</code>'
    )
    agent = smolagents.CodeAgent(
        [temperature],
        model(url, extra_body={"structured_outputs": {"regex": code}}),
        max_steps=3,
        verbosity_level=0,
    )
    answer = agent.run(TASK)
    assert ASKED
    assert re.fullmatch(r"(21|4) degrees", answer)
