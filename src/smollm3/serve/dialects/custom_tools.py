"""OpenAI's custom tools, whose input is a text: to the model, functions with that one text."""

from __future__ import annotations

from typing import Literal

from pydantic_core import from_json

from smollm3.infer.constrain.grammars import INPUT, Grammar, Regex
from smollm3.serve.dialects.fields import Body
from smollm3.serve.service import Json


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
    try:
        given = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return arguments
    text = given.get(INPUT, "") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments
