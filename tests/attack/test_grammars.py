"""Grammars have a budget a step: an ambiguous one fails its own request.

Bound: a step under a second (0.1 where nothing else runs; the third of these stood for minutes).
"""

import time

import pytest

from smollm3.errors import UserError
from smollm3.infer.constrain.grammars import Grammar, Json, Regex, Tools
from smollm3.infer.constrain.masks import Constraints

pytestmark = pytest.mark.xdist_group("attack")
STEP = 3.0  # seconds of processor time


def doubled(word, end):
    """Definitions of which each names the next one twice: 2**40 when written out."""
    defs = {f"d{i}": {word: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)}
    return Json({"$defs": {**defs, "d40": end}, "$ref": "#/$defs/d0"})


MANY = "\n".join(f's{i}: s s{(i + 1) % 200} | s s | "a"' for i in range(200))
HOSTILE = {
    "two": (Grammar('start: s\ns: s s | "a"'), "a" * 260),
    "three": (Grammar('start: s\ns: s s s | s s | "a" | '), "a" * 300),
    "many": (Grammar(f"start: s\ns: {' | '.join(f's{i}' for i in range(200))}\n{MANY}"), "aaa"),
    "brackets": (Grammar('start: s\ns: "(" s ")" s | s s | "" | "()"'), "(" * 100 + ")" * 100),
    "states": (Regex("|".join(f"(a|b)*a(a|b){{{i}}}" for i in range(12, 17))), "ab" * 200),
    "any": (doubled("anyOf", {"type": "string"}), '"aa'),
    "all": (doubled("allOf", {"type": "string"}), '"aa'),
    "quoted": (
        Tools(
            [{"name": f"t{i}"} for i in range(60)],
            texts={
                f"t{i}": Grammar(
                    "start: a\na: "
                    + " | ".join(f'/(.*{chr(97 + j)}.{{{i + 9}}}"){{4}}/' for j in range(26))
                )
                for i in range(60)
            },
        ),
        "a",
    ),
    "long": (Json({"type": "string", "minLength": 99_999, "maxLength": 100_000}), '"' + "a" * 200),
}


QUICK = ("three", "all", "quoted")


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HOSTILE],
)
def test_steps_are_short(tokenizer, name):
    spec, text = HOSTILE[name]
    constraints = Constraints(tokenizer, tokenizer.vocab_size)
    longest = 0.0
    try:
        begun = time.process_time()
        constraint = constraints.start(spec, tokenizer.encode_markup("<think>\n\n</think>\n"))
        for token in tokenizer.encode(text):
            longest, begun = max(longest, time.process_time() - begun), time.process_time()
            constraint.mask()
            constraint.accept(token)
            constraint.forced()
    except UserError as e:
        assert "\n" not in str(e)
    assert max(longest, time.process_time() - begun) < STEP
