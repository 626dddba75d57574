"""instructor's modes."""

import sys
from collections.abc import Iterable

import anthropic
import instructor
import openai
from trying import PLACE, PLACE_CALL, PLACE_SAID, Place, run, same

BASE = sys.argv[1]


def made(mode):
    if "ANTHROPIC" in mode:
        client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
        return instructor.from_anthropic(client, mode=instructor.Mode[mode])
    client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
    return instructor.from_openai(client, mode=instructor.Mode[mode])


def structured():
    mode = sys.argv[2]
    many = "PARALLEL" in mode
    messages = [{"role": "user", "content": PLACE_CALL if many else PLACE}]
    wanted = Iterable[Place] if many else Place
    limit = {"max_tokens": 2000} if "RESPONSES" not in mode else {}
    found = made(mode).create(
        model="tiny", messages=messages, response_model=wanted, max_retries=0, **limit
    )
    found = next(iter(found)) if many else found
    same(found.model_dump(), PLACE_SAID.model_dump())


run(globals())
