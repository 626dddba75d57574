"""openai's client, chat completions."""

import sys

import openai
from trying import (
    AGAIN,
    AGAIN_SAID,
    GRAMMAR,
    HELLO,
    HELLO_SAID,
    INPUT,
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

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
}


def asked(*more, text=HELLO, **options):
    messages = [{"role": "user", "content": text}, *more]
    return dict(model="tiny", messages=messages, **options)


def chat():
    answer = client.chat.completions.create(**asked(), reasoning_effort="none")
    same(answer.choices[0].message.content, HELLO_SAID)
    assert answer.usage.completion_tokens


def streamed():
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked(), **options))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    same(text, HELLO_SAID)
    assert chunks[-1].usage.completion_tokens


def tools():
    first = client.chat.completions.create(**asked(text=WEATHER, tools=[TOOL]))
    message = first.choices[0].message
    same(first.choices[0].finish_reason, "tool_calls")
    [call] = message.tool_calls
    same(call.function.arguments, '{"city": "Paris"}')
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    last = client.chat.completions.create(**asked(message, result, text=WEATHER, tools=[TOOL]))
    same(last.choices[0].message.content, WEATHER_SAID)


def streamed_tools():
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}
    with client.chat.completions.stream(**asked(text=WEATHER, tools=[strict])) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.done" in kinds, kinds
    [call] = message.tool_calls
    same(call.function.parsed_arguments, {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    parsed = message.model_dump()
    last = client.chat.completions.create(**asked(parsed, result, text=WEATHER, tools=[strict]))
    same(last.choices[0].message.content, WEATHER_SAID)


def structured():
    answer = client.chat.completions.parse(**asked(text=PLACE), response_format=Place)
    same(answer.choices[0].message.parsed, PLACE_SAID)


def reasoning():
    answer = client.chat.completions.create(**asked(), reasoning_effort="high")
    same(answer.choices[0].message.reasoning_content.strip(), THOUGHT)
    assert answer.usage.completion_tokens_details.reasoning_tokens


def sent_back():
    first = client.chat.completions.parse(**asked(text=PLACE), response_format=Place)
    more = {"role": "user", "content": AGAIN}
    for message in (first.choices[0].message, first.choices[0].message.model_dump()):
        last = client.chat.completions.create(**asked(message, more, text=PLACE))
        same(last.choices[0].message.content, AGAIN_SAID)


def prediction():
    said = {"type": "content", "content": HELLO_SAID}
    answer = client.chat.completions.create(**asked(), prediction=said, reasoning_effort="none")
    same(answer.choices[0].message.content, HELLO_SAID)
    assert answer.usage.completion_tokens_details.accepted_prediction_tokens


def custom_tools():
    """The library's types of a stream know none; what it does not know it passes on."""
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": GRAMMAR}}
    tool = {"type": "custom", "custom": {"name": "weather", "format": form}}
    choice = {"type": "custom", "custom": {"name": "weather"}}
    whole = asked(text=WEATHER, tools=[tool], tool_choice=choice)
    message = client.chat.completions.create(**whole).choices[0].message
    [call] = message.tool_calls
    assert INPUT.fullmatch(call.custom.input), call
    result = {"role": "tool", "tool_call_id": call.id, "content": RESULT}
    last = client.chat.completions.create(**asked(message, result, text=WEATHER, tools=[tool]))
    same(last.choices[0].message.content, WEATHER_SAID)
    said = ""
    for chunk in client.chat.completions.create(**whole, stream=True):
        for part in chunk.choices[0].delta.tool_calls or ():
            said += part.model_dump()["custom"]["input"]
    assert INPUT.fullmatch(said), said


def embeddings():
    found = client.embeddings.create(model="tiny", input=[HELLO, PLACE])
    same(len(found.data), 2)
    assert abs(sum(x * x for x in found.data[0].embedding) - 1) < 1e-3


def models():
    same(next(model.id for model in client.models.list()), "tiny")
    same(client.models.retrieve("tiny").id, "tiny")


run(globals())
