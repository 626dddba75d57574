"""What the programs of Python share: the questions, the tool, and how a result is told.

A program is called with the server's address, which of a library's ways to try, and features; each
is a function of that name. It tells a line of JSON for each.
"""

import asyncio
import inspect
import json
import re
import sys
import traceback

from pydantic import BaseModel

HELLO, HELLO_SAID = "please say hello", "Hello there."
WEATHER, WEATHER_SAID = "how is the weather in Paris", "It is 21 degrees in Paris."
THOUGHT = "The tool will know."
PLACE = "where does the tower stand"
PLACE_CALL = "call it with where the tower stands"
AGAIN, AGAIN_SAID = "and say goodbye", "Goodbye."
RESULT = "21 degrees"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class Place(BaseModel):
    city: str
    country: str


# Of a custom tool's input, and what it means.
GRAMMAR = 'start: "city: \\"" NAME "\\"\\n"\nNAME: /[A-Z][a-z]{0,8}/'
INPUT = re.compile('city: "[A-Z][a-z]{0,8}"\n')


FILE, BEFORE, AFTER = "a.txt", "alpha stands here", "beta stood there"
CHANGED = "The file is changed."


PLACE_SAID = Place(city="Paris", country="France")


def weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    assert city == "Paris", city
    return RESULT


def run(functions):
    """functions: the globals of a program."""
    loop = asyncio.new_event_loop()
    for feature in sys.argv[3:]:
        error = None
        try:
            done = functions[feature]()
            if inspect.isawaitable(done):
                loop.run_until_complete(done)
        except BaseException as e:
            traceback.print_exc()
            error = f"{type(e).__name__}: {e}".splitlines()[0][:300]
        print(json.dumps({"feature": feature, "error": error}), flush=True)


def same(found, expected):
    assert found == expected, f"{found!r} instead of {expected!r}"
