"""ollama's client."""

import sys

import ollama
from trying import (
    AGAIN,
    AGAIN_SAID,
    HELLO,
    HELLO_SAID,
    PLACE,
    PLACE_SAID,
    RESULT,
    THOUGHT,
    WEATHER,
    WEATHER_SAID,
    Place,
    run,
    same,
    weather,
)

client = ollama.Client(host=sys.argv[1])


def asked(*more, text=HELLO, **options):
    messages = [{"role": "user", "content": text}, *more]
    return dict(model="tiny", messages=messages, **options)


def chat():
    same(client.chat(**asked(think=False)).message.content, HELLO_SAID)
    assert client.generate(model="tiny", prompt=HELLO, think=False).response == HELLO_SAID


def streamed():
    parts = list(client.chat(**asked(stream=True, think=False)))
    same("".join(part.message.content or "" for part in parts), HELLO_SAID)


def tools():
    first = client.chat(**asked(text=WEATHER, tools=[weather])).message
    [call] = first.tool_calls
    result = {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
    last = client.chat(**asked(first, result, text=WEATHER, tools=[weather]))
    same(last.message.content, WEATHER_SAID)


def streamed_tools():
    parts = list(client.chat(**asked(text=WEATHER, tools=[weather], stream=True)))
    [call] = [call for part in parts for call in part.message.tool_calls or ()]
    same(weather(**call.function.arguments), RESULT)


def structured():
    answer = client.chat(**asked(text=PLACE, format=Place.model_json_schema(), think=False))
    same(Place.model_validate_json(answer.message.content), PLACE_SAID)


def reasoning():
    same(client.chat(**asked(think=True)).message.thinking.strip(), THOUGHT)


def sent_back():
    first = client.chat(**asked(think=True)).message
    last = client.chat(**asked(first, {"role": "user", "content": AGAIN}))
    same(last.message.content, AGAIN_SAID)


def embeddings():
    same(len(client.embed(model="tiny", input=[HELLO, PLACE]).embeddings), 2)


def models():
    same(client.list().models[0].model.split(":")[0], "tiny")
    assert client.show("tiny").capabilities
    assert client.ps().models


run(globals())
