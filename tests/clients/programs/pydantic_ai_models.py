"""pydantic-ai's models."""

import sys

from pydantic_ai import Agent, NativeOutput, PromptedOutput, TextOutput, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from trying import (
    AGAIN,
    AGAIN_SAID,
    HELLO,
    HELLO_SAID,
    PLACE,
    PLACE_SAID,
    THOUGHT,
    WEATHER,
    WEATHER_SAID,
    Place,
    run,
    same,
    weather,
)

BASE, API = sys.argv[1:3]
if API == "anthropic":
    known = "claude-sonnet-4-5"  # of others the library says that they have no formats
    MODEL = AnthropicModel(known, provider=AnthropicProvider(base_url=BASE, api_key="none"))
    THINK = {"anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}}
else:
    kind = OpenAIChatModel if API == "chat" else OpenAIResponsesModel
    MODEL = kind("tiny", provider=OpenAIProvider(base_url=f"{BASE}/v1", api_key="none"))
    THINK = {"openai_reasoning_effort": "high"}


def agent(**options):
    return Agent(MODEL, retries=0, model_settings={"max_tokens": 2000}, **options)


def chat():
    same(agent().run_sync(HELLO).output, HELLO_SAID)


async def streamed():
    async with agent().run_stream(HELLO) as result:
        same(await result.get_output(), HELLO_SAID)


def tools():
    same(agent(tools=[weather]).run_sync(WEATHER).output, WEATHER_SAID)


async def streamed_tools():
    async with agent(tools=[weather]).run_stream(WEATHER) as result:
        same(await result.get_output(), WEATHER_SAID)


def parsed(text: str) -> Place:
    return Place.model_validate_json(text)


def structured():
    """Every mode of output."""
    for kind in (ToolOutput(Place), NativeOutput(Place), PromptedOutput(Place)):
        same(agent(output_type=kind).run_sync(PLACE).output, PLACE_SAID)
    same(agent(output_type=TextOutput(parsed)).run_sync(PLACE).output, PLACE_SAID)


def reasoning():
    result = agent().run_sync(HELLO, model_settings=THINK)
    assert THOUGHT in str(result.all_messages())


def sent_back():
    for first in (
        agent().run_sync(HELLO, model_settings=THINK),
        agent(tools=[weather]).run_sync(WEATHER, model_settings=THINK),
        agent(output_type=Place).run_sync(PLACE),
    ):
        last = agent(tools=[weather]).run_sync(AGAIN, message_history=first.all_messages())
        same(last.output, AGAIN_SAID)


run(globals())
