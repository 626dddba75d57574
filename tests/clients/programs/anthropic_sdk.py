"""anthropic's client."""

import sys

import anthropic
from trying import (
    AGAIN,
    AGAIN_SAID,
    HELLO,
    HELLO_SAID,
    PLACE,
    PLACE_SAID,
    RESULT,
    SCHEMA,
    THOUGHT,
    WEATHER,
    WEATHER_SAID,
    Place,
    run,
    same,
)

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
TOOL = {"name": "weather", "description": "The weather.", "input_schema": SCHEMA}
THINKING = {"type": "enabled", "budget_tokens": 1024}


def asked(*more, text=HELLO, **options):
    messages = [{"role": "user", "content": text}, *more]
    return dict(model="tiny", max_tokens=2000, messages=messages, **options)


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def result_of(message):
    [use] = [block for block in message.content if block.type == "tool_use"]
    same(use.input, {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": RESULT}
    return {"role": "user", "content": [result]}


def chat():
    same(text_of(client.messages.create(**asked())), HELLO_SAID)
    assert client.messages.count_tokens(model="tiny", messages=asked()["messages"]).input_tokens


def streamed():
    with client.messages.stream(**asked()) as stream:
        same("".join(stream.text_stream), HELLO_SAID)


def tools():
    first = client.messages.create(**asked(text=WEATHER, tools=[TOOL]))
    same(first.stop_reason, "tool_use")
    said = {"role": "assistant", "content": first.content}
    last = asked(said, result_of(first), text=WEATHER, tools=[TOOL])
    same(text_of(client.messages.create(**last)), WEATHER_SAID)


def streamed_tools():
    with client.messages.stream(**asked(text=WEATHER, tools=[TOOL], thinking=THINKING)) as stream:
        kinds = {event.type for event in stream}
        first = stream.get_final_message()
    assert "input_json" in kinds, kinds
    said = {"role": "assistant", "content": [block.model_dump() for block in first.content]}
    last = asked(said, result_of(first), text=WEATHER, tools=[TOOL], thinking=THINKING)
    same(text_of(client.messages.create(**last)), WEATHER_SAID)


def structured():
    schema = Place.model_json_schema() | {"additionalProperties": False}
    form = {"type": "json_schema", "schema": schema}
    answer = client.messages.create(**asked(text=PLACE), output_config={"format": form})
    same(Place.model_validate_json(text_of(answer)), PLACE_SAID)
    parsed = client.messages.parse(**asked(text=PLACE), output_format=Place)
    same(parsed.parsed_output, PLACE_SAID)


def reasoning():
    answer = client.messages.create(**asked(thinking=THINKING))
    same(answer.content[0].thinking.strip(), THOUGHT)


def sent_back():
    first = client.messages.create(**asked(thinking=THINKING))
    for content in (first.content, [block.model_dump() for block in first.content]):
        said = {"role": "assistant", "content": content}
        last = asked(said, {"role": "user", "content": AGAIN}, thinking=THINKING)
        same(text_of(client.messages.create(**last)), AGAIN_SAID)


def models():
    same(next(model.id for model in client.models.list()), "tiny")
    same(client.models.retrieve("tiny").id, "tiny")


run(globals())
