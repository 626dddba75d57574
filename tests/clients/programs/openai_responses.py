"""openai's client, responses."""

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
TOOL = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}


def create(given, **options):
    return client.responses.create(model="tiny", input=given, **options)


def user(text):
    return {"role": "user", "content": text}


def chat():
    answer = create(HELLO, reasoning={"effort": "none"})
    same(answer.output_text, HELLO_SAID)
    same(client.responses.retrieve(answer.id).output_text, HELLO_SAID)


def streamed():
    text = [e.delta for e in create(HELLO, stream=True) if e.type == "response.output_text.delta"]
    same("".join(text), HELLO_SAID)


def tools():
    first = create(WEATHER, tools=[TOOL])
    [call] = [item for item in first.output if item.type == "function_call"]
    same(call.arguments, '{"city": "Paris"}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    same(create([user(WEATHER), *first.output, result], tools=[TOOL]).output_text, WEATHER_SAID)
    last = create([result], previous_response_id=first.id, tools=[TOOL])
    same(last.output_text, WEATHER_SAID)


def custom_tools():
    form = {"type": "grammar", "syntax": "lark", "definition": GRAMMAR}
    tool = {"type": "custom", "name": "weather", "format": form}
    asked = {"tools": [tool], "tool_choice": {"type": "custom", "name": "weather"}}
    answers = [create(WEATHER, **asked)]
    with client.responses.stream(model="tiny", input=WEATHER, **asked) as stream:
        deltas = [e.delta for e in stream if e.type == "response.custom_tool_call_input.delta"]
        answers.append(stream.get_final_response())
    for first in answers:
        [call] = [item for item in first.output if item.type == "custom_tool_call"]
        assert INPUT.fullmatch(call.input), call.input
        result = {"type": "custom_tool_call_output", "call_id": call.call_id, "output": RESULT}
        items = [user(WEATHER), *first.output, result]
        same(create(items, tools=[tool]).output_text, WEATHER_SAID)
    same("".join(deltas), call.input)


def streamed_tools():
    with client.responses.stream(model="tiny", input=WEATHER, tools=[TOOL]) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_response()
    assert "response.function_call_arguments.done" in kinds, kinds
    [call] = [item for item in answer.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    items = [user(WEATHER), *(item.model_dump() for item in answer.output), result]
    same(create(items, tools=[TOOL]).output_text, WEATHER_SAID)


def structured():
    answer = client.responses.parse(model="tiny", input=PLACE, text_format=Place)
    same(answer.output_parsed, PLACE_SAID)


def reasoning():
    answer = create(HELLO, reasoning={"effort": "high", "summary": "auto"})
    assert THOUGHT in answer.output[0].model_dump_json()
    assert answer.usage.output_tokens_details.reasoning_tokens


def sent_back():
    first = client.responses.parse(model="tiny", input=PLACE, text_format=Place)
    for items in (first.output, [item.model_dump() for item in first.output]):
        same(create([user(PLACE), *items, user(AGAIN)]).output_text, AGAIN_SAID)
    same(create(AGAIN, previous_response_id=first.id).output_text, AGAIN_SAID)
    kept = client.conversations.create(items=[user(PLACE)])
    same(create(AGAIN, conversation=kept.id).output_text, AGAIN_SAID)


run(globals())
