"""openai-agents, over both APIs."""

import sys

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.shared import Reasoning
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

set_tracing_disabled(True)
BASE, API = sys.argv[1:3]
client = AsyncOpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
kind = OpenAIChatCompletionsModel if API == "chat" else OpenAIResponsesModel


def agent(**options):
    return Agent("one", model=kind("tiny", openai_client=client), **options)


async def said(which, given):
    return (await Runner.run(which, given)).final_output


async def chat():
    same(await said(agent(instructions="Be brief."), HELLO), HELLO_SAID)


async def streamed():
    result = Runner.run_streamed(agent(), HELLO)
    kinds = {event.type async for event in result.stream_events()}
    assert "raw_response_event" in kinds
    same(result.final_output, HELLO_SAID)


async def tools():
    same(await said(agent(tools=[function_tool(weather)]), WEATHER), WEATHER_SAID)


async def streamed_tools():
    result = Runner.run_streamed(agent(tools=[function_tool(weather)]), WEATHER)
    names = {event.name async for event in result.stream_events() if hasattr(event, "name")}
    assert "tool_output" in names, names
    same(result.final_output, WEATHER_SAID)


async def structured():
    same(await said(agent(output_type=Place), PLACE), PLACE_SAID)


async def reasoning():
    settings = ModelSettings(reasoning=Reasoning(effort="high", summary="auto"))
    result = await Runner.run(agent(model_settings=settings), HELLO)
    same(result.final_output, HELLO_SAID)
    assert THOUGHT in str(result.raw_responses)


async def sent_back():
    first = await Runner.run(agent(tools=[function_tool(weather)]), WEATHER)
    more = [*first.to_input_list(), {"role": "user", "content": AGAIN}]
    same(await said(agent(), more), AGAIN_SAID)


run(globals())
