"""OpenAI's custom tools, whose input is a text: to the model, functions with that one text."""

from __future__ import annotations

from typing import Literal

from pydantic_core import from_json

from smollm3.infer.constrain.grammars import INPUT, Grammar, Regex
from smollm3.serve.dialects.fields import Body
from smollm3.serve.service import Json

STRETCH = 256  # characters of arguments


class TextInput(Body):
    type: Literal["text"]


class InputGrammar(Body):
    """A regular expression in Rust's syntax, or a grammar in llguidance's Lark."""

    syntax: Literal["lark", "regex"]
    definition: str

    @property
    def constraint(self) -> Regex | Grammar:
        return Regex(self.definition) if self.syntax == "regex" else Grammar(self.definition)


def declared(name: str, description: str | None, grammar: InputGrammar | None) -> Json:
    """As the model is told of it."""
    about = [description]
    if grammar is not None:
        about.append(f"The input keeps to this {grammar.syntax} grammar:\n{grammar.definition}")
    told = "\n\n".join(filter(None, about))
    parameters = {
        "type": "object",
        "properties": {INPUT: {"type": "string"}},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return {"name": name, **({"description": told} if told else {}), "parameters": parameters}


def input_of(arguments: str) -> str:
    """The text, from the arguments of a call. Of a call that was cut off: what there is."""
    text = _begun(arguments)
    return arguments if text is None else text


def _begun(arguments: str) -> str | None:
    try:
        given = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return None
    text = given.get(INPUT, "") if isinstance(given, dict) else None
    return text if isinstance(text, str) else None


class InputStream:
    """The text of a call whose arguments are still coming, told in stretches: reading each of them
    anew takes time by the square of their length."""

    def __init__(self) -> None:
        self._arguments = ""
        self._new: list[str] = []
        self._waiting = 0
        self._told = ""

    def feed(self, piece: str) -> str:
        """What is there to be told after a piece more of the arguments."""
        self._new.append(piece)
        self._waiting += len(piece)
        return self._more(_begun(self._read()) or "") if self._waiting >= STRETCH else ""

    def end(self) -> str:
        """The rest of it."""
        return self._more(input_of(self._read()))

    def _read(self) -> str:
        self._arguments += "".join(self._new)
        self._new, self._waiting = [], 0
        return self._arguments

    def _more(self, text: str) -> str:
        if not text.startswith(self._told):  # no JSON any more, or it says its input twice
            return ""
        more, self._told = text[len(self._told) :], text
        return more
