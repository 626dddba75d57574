"""litellm, by the provider whose API it is to speak."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
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

litellm.suppress_debug_info = True
PROVIDER = sys.argv[2]
BASE = sys.argv[1] + ("/v1" if PROVIDER in ("openai", "hosted_vllm") else "")
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather.", "parameters": SCHEMA},
}
# Of models that it does not know, the library says that they do not think.
NAMED = f"{PROVIDER}/{'claude-sonnet-4-5' if PROVIDER == 'anthropic' else 'tiny'}"


def ask(*more, text=HELLO, **options):
    messages = [{"role": "user", "content": text}, *more]
    given = {"model": NAMED, "messages": messages, "api_base": BASE, "api_key": "none"}
    return litellm.completion(**given, max_retries=0, max_tokens=2000, **options)


def chat():
    same(ask().choices[0].message.content, HELLO_SAID)


def streamed():
    same("".join(c.choices[0].delta.content or "" for c in ask(stream=True)), HELLO_SAID)


def tools(stream=False):
    first = ask(text=WEATHER, tools=[TOOL], stream=stream)
    if stream:
        first = litellm.stream_chunk_builder(list(first))
    message = first.choices[0].message
    [call] = message.tool_calls
    same(json.loads(call.function.arguments), {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": RESULT}
    for said in (message, message.model_dump()):
        last = ask(said, result, text=WEATHER, tools=[TOOL])
        same(last.choices[0].message.content, WEATHER_SAID)


def streamed_tools():
    tools(stream=True)


def structured():
    answer = ask(text=PLACE, response_format=Place)
    same(Place.model_validate_json(answer.choices[0].message.content), PLACE_SAID)


THINKING = {"reasoning_effort": "high"}
if PROVIDER in ("openai", "hosted_vllm"):
    THINKING["allowed_openai_params"] = ["reasoning_effort"]


def reasoning():
    answer = ask(**THINKING)
    same(answer.choices[0].message.reasoning_content.strip(), THOUGHT)


def sent_back():
    message = ask(**THINKING).choices[0].message
    for said in (message, message.model_dump()):
        last = ask(said, {"role": "user", "content": AGAIN})
        same(last.choices[0].message.content, AGAIN_SAID)


def overflow():
    try:
        ask(text="word " * 400_000)
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("another error, or none")


def embeddings():
    found = litellm.embedding(model=NAMED, input=[HELLO, PLACE], api_base=BASE, api_key="none")
    same(len(found.data), 2)


run(globals())
