"""smolagents: its model and its two agents."""

import sys

import smolagents
from trying import HELLO, HELLO_SAID, PLACE, PLACE_SAID, RESULT, Place, run, same, weather

tool = smolagents.tool(weather)
model = smolagents.OpenAIModel("tiny", api_base=f"{sys.argv[1]}/v1", api_key="none")


def user(text):
    return [{"role": "user", "content": text}]


def chat():
    same(model.generate(user(HELLO)).content, HELLO_SAID)


def streamed():
    parts = model.generate_stream(user(HELLO))
    same("".join(part.content or "" for part in parts), HELLO_SAID)


def structured():
    schema = Place.model_json_schema() | {"additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": schema, "strict": True}}
    answer = model.generate(user(PLACE), response_format=form)
    same(Place.model_validate_json(answer.content), PLACE_SAID)


def loop():
    for kind, task in (
        (smolagents.ToolCallingAgent, "act with calls"),
        (smolagents.CodeAgent, "act with code"),
    ):
        agent = kind([tool], model, max_steps=3, verbosity_level=0)
        same(agent.run(task), RESULT)


run(globals())
