"""Constraints: what may be written under each, in vocabularies with and without the tags."""

import datetime
import json
import random
import sys
import threading
import time

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.checkpoint import load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer.constrain.masks import (
    Choice,
    Constraints,
    Grammar,
    Json,
    Regex,
    Tools,
)
from smollm3.infer.constrain.thinking import reasoning_of

TODAY = datetime.date(2025, 7, 8)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "kind": {"enum": ["red", "green"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 100},
    },
    "required": ["name", "kind", "n"],
    "additionalProperties": False,
}
GOOD = '{"name": "Ann", "kind": "green", "n": 42}'
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer"}},
        "required": ["city"],
        "$defs": {"city": {"type": "string"}},
    },
}
ODD = {"type": "function", "function": {"name": 'ö"\\d'}}
CITY = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
NOTHING = '<tool_call>\n{"name": "ö\\"\\\\d", "arguments": {}}\n</tool_call>'
PRINT = "<code>\nprint('<b>')\n</code>"
THOUGHT = '<think>\nIs it {"a"} or <tool_call>? 日本\n</think>\n'
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n"
OPEN = "<|im_start|>assistant\n<think>\n"
HEADER = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def real(exact_tokenizer):
    """SmolLM3's: each tag is a token."""
    return exact_tokenizer


@pytest.fixture(scope="module")
def spelled():
    """SmolLM2's: tags are letters. Its template says nothing of reasoning; this one does."""
    tokenizer = load_tokenizer(locate("smollm2-135m"))
    return tokenizer.with_template("<|im_start|>assistant\n<think>")


@pytest.fixture(scope="module", params=["tokenizer", "real", "spelled"])
def vocabulary(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def made(vocabulary):
    return Constraints(vocabulary, vocabulary.vocab_size)


@pytest.fixture(scope="module")
def small(tokenizer):
    return Constraints(tokenizer, tokenizer.vocab_size)


def allowed(mask) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def allows(constraint, token) -> bool:
    mask = constraint.mask()
    return mask is None or bool(mask[token // 32] >> token % 32 & 1)


def ends(constraint, tokenizer) -> bool:
    """Whether the answer may end here; all stop tokens are alike."""
    [may] = {allows(constraint, stop) for stop in tokenizer.stop_ids}
    assert not constraint.finished or allowed(constraint.mask()) == set(tokenizer.stop_ids)
    return may


def reads(constraint, ids, tokenizer) -> bool:
    """Whether an answer may be just these tokens."""
    assert constraint.fitting(ids) <= len(ids)
    for i, token in enumerate(ids):
        if not allows(constraint, token):
            assert constraint.fitting(ids[i:]) == 0
            return False
        constraint.accept(token)
    return ends(constraint, tokenizer)


def check(made, tokenizer, spec, prompt, text) -> bool:
    constraint = made.start(spec, tokenizer.encode_markup(prompt))
    return reads(constraint, tokenizer.encode_markup(text), tokenizer)


T = Tools([WEATHER, ODD])
CASES = {
    "schema": (Json(SCHEMA), [GOOD], ['{"name":"Ann"}', GOOD + " ", "\n" + GOOD, GOOD[:-1], "{}"]),
    "schema as text": (Json(json.dumps(SCHEMA)), [GOOD], ["{}"]),
    "any object": (Json(), ["{}", '{"a": [1, null, {"b": []}]}'], ["[]", "1", '{"a":1}']),
    "any value": (Json({}), ["1", "[true]", "{}"], ["", "x"]),
    "constants": (Json({"const": {"é": [1, {"b": None}]}}), ['{"é": [1, {"b": null}]}'], ["{}"]),
    "regex": (Regex("[a-z]+(/|\\/\n)\\d{2}"), ["ab/12", "ab/\n12"], ["ab/1", "ab/12 ", "AB/12", ""]),
    "grammar": (Grammar('start: "a" start "b" |'), ["aabb", ""], ["aab", "abb"]),
    "choice": (Choice(["yes", "yes, sir", '"\n\\']), ["yes", "yes, sir", '"\n\\'], ["no", "ye", ""]),
    "tools": (
        T,
        ["Hi <b>", "", CITY, f"Well.\n{CITY}", f"{NOTHING}\n{CITY}\n", "the <code> of"],
        [
            CITY[:-1],
            f"{CITY}{CITY}",
            f"{CITY} Done.",
            f"x {CITY.replace('city', 'town')}",
            CITY.replace("weather", "whether"),
            "<think> x",
            "x <tool_call> y",
        ],
    ),
    "one call": (Tools([WEATHER], parallel=False), ["Hi", CITY, f"a\n{CITY}"], [f"{CITY}\n{CITY}"]),
    "calls": (Tools([WEATHER, ODD], "required"), [CITY, f"{NOTHING}\n{CITY}"], ["", "Hi", f"a\n{CITY}"]),
    "this tool": (Tools([WEATHER, ODD], {"name": 'ö"\\d'}), [NOTHING], [CITY, "Hi"]),
    "code": (
        Tools([WEATHER], python=True),
        [PRINT, CITY, f"Look:\n{PRINT}\n{CITY}", "Hi"],
        ["<code>\n</code>", PRINT[:-1], f"{PRINT}x", f"x {CITY.replace('city', 'town')}"],
    ),
    "some call": (Tools([WEATHER], "required", python=True), [PRINT, CITY], ["Hi"]),
    "only code": (Tools([], {"name": "python"}, python=True), [PRINT], [CITY, "Hi"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_may_be_written(case, made, vocabulary):
    spec, good, bad = CASES[case]
    for text in good:
        assert check(made, vocabulary, spec, CLOSED, text), text
    for text in bad:
        assert not check(made, vocabulary, spec, CLOSED, text), text


@pytest.mark.parametrize("case", CASES)
def test_the_grammar_begins_after_reasoning(case, made, vocabulary):
    spec, good, _ = CASES[case]
    for text in good:
        assert check(made, vocabulary, spec, HEADER, text), text
        assert check(made, vocabulary, spec, HEADER, THOUGHT + text), text
        assert check(made, vocabulary, spec, OPEN, THOUGHT[8:] + text), text
        assert not check(made, vocabulary, spec, OPEN, THOUGHT[8:-10]), text
        assert not check(made, vocabulary, spec, HEADER, THOUGHT[:-10]), text


def test_calls_read_back_as_they_were_meant(made, vocabulary):
    constraint = made.start(T, vocabulary.encode_markup(HEADER))
    ids = vocabulary.encode_markup(f"{THOUGHT}Let me see.\n{CITY}\n{NOTHING}")
    assert reads(constraint, ids, vocabulary)
    message = vocabulary.parse([*ids, vocabulary.stop_ids[0]])
    assert message.reasoning == THOUGHT[8:-10]
    assert message.content == "Let me see."
    assert [(call.name, call.arguments) for call in message.tool_calls] == [
        ("weather", {"city": "Köln"}),
        ('ö"\\d', {}),
    ]


def test_the_gate_opens_wherever_tokens_end(made, vocabulary):
    """However the text is cut into tokens: no stop before the content, the content as asked."""
    text = "hm </thin </think>\n" + GOOD
    for at in range(0, text.index(GOOD) + 1, 2 if vocabulary.vocab_size > 100_000 else 1):
        ids = vocabulary.encode(text[:at]) + vocabulary.encode(text[at:])
        if "</think>" in vocabulary.tags:  # spelled in letters it would not be the tag to the model
            place = text.index("</think>")
            parts = (text[:place], text[place + 8 :])
            ids = vocabulary.encode(parts[0][:at]) + vocabulary.encode(parts[0][at:])
            ids += vocabulary.encode_markup("</think>") + vocabulary.encode(parts[1])
        constraint = made.start(Json(SCHEMA), vocabulary.encode_markup(OPEN))
        for token in ids:
            assert allows(constraint, token)
            assert not ends(constraint, vocabulary)
            constraint.accept(token)
        assert constraint.finished


def test_tags_are_not_spelled_in_letters(tokenizer, small):
    """Whoever reads the answer as a text would take them for the tags."""
    for spec, prompt, text in [
        (Json(), OPEN, "a </think>"),
        (T, CLOSED, "a <tool_call> b"),
        (Tools([], python=True), CLOSED, "a <code> b"),
    ]:
        constraint = small.start(spec, tokenizer.encode_markup(prompt))
        ids = tokenizer.encode(text)
        assert text[: text.index(">")] == tokenizer.decode(ids[: constraint.fitting(ids)])


# masks are consistent


def schemas():
    texts = st.text('ab é"\\\n', max_size=4)
    leaves = st.one_of(
        st.integers(-50, 50).flatmap(
            lambda low: st.integers(low, 99).map(
                lambda high: {"type": "integer", "minimum": low, "maximum": high}
            )
        ),
        st.integers(0, 6).map(lambda n: {"type": "string", "maxLength": n}),
        st.sampled_from(
            [
                {"type": "boolean"},
                {"type": ["null", "boolean"]},
                {"type": "string", "format": "date"},
                {"type": "string", "pattern": "^[a-c]{1,3}x?$"},
                {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            ]
        ),
        st.lists(
            st.one_of(texts, st.integers(-(2**53), 2**53), st.none()), min_size=1, max_size=3
        ).map(lambda values: {"enum": values}),
        st.dictionaries(texts, st.integers(0, 9), max_size=2).map(lambda value: {"const": value}),
    )

    def deeper(inner):
        objects = st.dictionaries(texts, inner, max_size=3).flatmap(
            lambda properties: st.sets(st.sampled_from([*properties, "a"])).map(
                lambda required: {
                    "type": "object",
                    "properties": properties
                    | {key: {"const": 1} for key in required - {*properties}},
                    "required": sorted(required),
                    "additionalProperties": False,
                }
            )
        )
        arrays = st.tuples(inner, st.integers(0, 2), st.integers(0, 2)).map(
            lambda t: {"type": "array", "items": t[0], "minItems": t[1], "maxItems": t[1] + t[2]}
        )
        return st.one_of(objects, arrays, st.lists(inner, min_size=1, max_size=2).map(lambda s: {"anyOf": s}))  # fmt: skip

    return st.recursive(leaves, deeper, max_leaves=5)


def walk(constraint, rng, tokenizer, steps=600) -> list[int]:
    """Tokens of a random answer, its stop token left out."""
    ids = []
    while not constraint.finished and len(ids) < steps:
        choices = sorted(allowed(constraint.mask()))
        token = rng.choice(choices)
        if token in tokenizer.stop_ids:
            break
        ids.append(token)
        constraint.accept(token)
    return ids


@settings(max_examples=60)
@given(schemas(), st.randoms(use_true_random=False))
def test_whatever_is_drawn_is_valid(small, tokenizer, schema, rng):
    constraint = small.start(Json(schema), [])
    ids = walk(constraint, rng, tokenizer)
    if len(ids) < 600:  # digits of a number may go on for long
        jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)


@settings(max_examples=40)
@given(st.sampled_from([*CASES]), st.sampled_from([HEADER, OPEN, CLOSED]), st.integers(0, 9), st.randoms(use_true_random=False))  # fmt: skip
def test_going_back_is_as_if_never_gone(small, tokenizer, case, prompt, budget, rng):
    """Masks, forced tokens and the end depend on the accepted tokens alone."""
    spec, start = CASES[case][0], tokenizer.encode_markup(prompt)
    constraint = small.start(spec, start, budget)
    ids: list[int] = []
    for _ in range(40):
        again = small.start(spec, start, budget)
        for token in ids:
            again.accept(token)
        if rng.random() < 0.5:
            assert constraint.forced() == again.forced()
        assert np.array_equal(constraint.mask(), again.mask())
        assert constraint.forced() == again.forced()
        assert constraint.finished == again.finished
        choices = sorted(allowed(constraint.mask()) - set(tokenizer.stop_ids))
        if rng.random() < 0.3 or not choices:
            n = rng.randint(0, len(ids))
            constraint.rollback(n)
            del ids[len(ids) - n :]
        else:
            ids.append(rng.choice(choices))
            constraint.accept(ids[-1])


def test_forced_tokens_are_the_only_ones_and_canonical(made, vocabulary):
    for spec, prompt, budget in [
        (Json(SCHEMA), CLOSED, None),
        (Tools([WEATHER], "required"), CLOSED, None),
        (Choice(["Nothing else will do: été 日本"]), CLOSED, None),
        (Json(SCHEMA), OPEN, 0),
    ]:
        constraint = made.start(spec, vocabulary.encode_markup(prompt), budget)
        forced = constraint.forced()
        assert len(forced) > 1
        assert constraint.fitting(forced) == len(forced)
        assert constraint.fitting([forced[0], forced[0]]) == 1
        text = vocabulary.decode(forced)
        assert vocabulary.encode_markup(text) == forced
        for token in forced:
            assert allowed(constraint.mask()) == {token}
            constraint.accept(token)


def test_a_models_spare_entries_are_never_allowed(tokenizer):
    for spare in (1, 28, 100):
        made = Constraints(tokenizer, tokenizer.vocab_size + spare)
        constraint = made.start(Regex(r"(?s:.*)"), [])
        assert constraint.mask().size == (tokenizer.vocab_size + spare + 31) // 32
        assert max(allowed(constraint.mask())) < tokenizer.vocab_size
        assert len(allowed(constraint.mask())) > 190


# thinking budgets


def answer(made, tokenizer, prompt, budget, said, spec=None):
    """What comes of a model that would say `said`."""
    constraint = made.start(spec, tokenizer.encode_markup(prompt), budget)
    ids: list[int] = []
    rest = list(said)
    while rest or constraint._budget.forced:
        if constraint._budget.forced:
            [token] = allowed(constraint.mask())
            assert token == constraint.forced()[0]
        else:
            token = rest.pop(0)
            assert allows(constraint, token)
        ids.append(token)
        constraint.accept(token)
    return ids


@pytest.mark.parametrize("spec", [None, Json(SCHEMA)], ids=["alone", "with a schema"])
@pytest.mark.parametrize("budget", [1, 2, 7])
def test_a_budget_closes_the_block(made, vocabulary, budget, spec):
    thought = vocabulary.encode("one two three four five six seven eight nine ten")[:budget]
    content = vocabulary.encode(GOOD)
    ids = answer(made, vocabulary, OPEN, budget, [*thought, *content], spec)
    said = vocabulary.decode(ids)
    assert said == f"{vocabulary.decode(thought)}\n</think>\n{GOOD}"
    opened = vocabulary.encode_markup("<think>")
    ids = answer(made, vocabulary, HEADER, budget, [*opened, *thought, *content], spec)
    assert vocabulary.decode(ids) == "<think>" + said
    message = vocabulary.parse(ids)
    assert message.reasoning == vocabulary.decode(thought)
    assert message.content == GOOD


@pytest.mark.parametrize("spec", [None, Json(SCHEMA)], ids=["alone", "with a schema"])
def test_no_budget_writes_the_block_empty(made, vocabulary, spec):
    content = vocabulary.encode(GOOD)
    empty = vocabulary.encode_markup("<think>\n\n</think>\n")
    assert answer(made, vocabulary, HEADER, 0, content, spec) == [*empty, *content]
    ids = answer(made, vocabulary, OPEN, 0, content, spec)
    assert vocabulary.decode(ids) == f"\n</think>\n{GOOD}"


def test_a_line_that_has_ended_is_not_ended_twice(made, vocabulary):
    thought = vocabulary.encode("a\n")
    ids = answer(made, vocabulary, OPEN, len(thought), [*thought, *vocabulary.encode("b")])
    assert vocabulary.decode(ids) == "a\n</think>\nb"


def test_a_budget_does_not_cut_a_character(small, tokenizer):
    thought = tokenizer.encode("😀")
    assert len(thought) == 4
    for budget in range(1, 5):
        ids = answer(small, tokenizer, OPEN, budget, [*thought, *tokenizer.encode("b")])
        assert tokenizer.decode(ids) == "😀\n</think>\nb"
    broken = [thought[0]] * 9  # never a character: three more tokens, and an end
    ids = answer(small, tokenizer, OPEN, 1, broken[:4])
    assert len(ids) == 4 + len(tokenizer.encode_markup("\n</think>\n"))


def test_a_block_closed_in_time_is_left_alone(made, vocabulary):
    said = vocabulary.encode_markup(
        "<think>\na\n</think>\n\nb, and then a good deal more than that"
    )
    assert answer(made, vocabulary, HEADER, 12, said) == said
    said = vocabulary.encode("No thoughts, but a good deal more than the budget")
    assert answer(made, vocabulary, HEADER, 5, said) == said


def test_drafts_do_not_reach_past_the_budget(small, tokenizer):
    constraint = small.start(None, tokenizer.encode_markup(OPEN), 3)
    ids = tokenizer.encode("abcdefgh")
    assert constraint.fitting(ids) == 3
    assert constraint.mask() is None
    assert not constraint.finished
    constraint.accept(ids[0])
    assert constraint.fitting(ids) == 2


def test_nothing_to_constrain(small, tokenizer):
    assert small.start(None, tokenizer.encode_markup(HEADER)) is None
    assert small.start(None, tokenizer.encode_markup(CLOSED), 5) is None
    assert small.start(None, tokenizer.encode("Once"), 0) is None


def test_what_prompts_say_of_reasoning(tokenizer, real, spelled):
    ask = [{"role": "user", "content": "What is </think> or <think>?"}]
    for each in (tokenizer, real):
        for think, state in ((True, "may open"), (False, "closed")):
            ids = each.render(ask, enable_thinking=think, date=TODAY).ids
            assert reasoning_of(each, ids) == state
    plain = load_tokenizer(locate("smollm2-135m"))
    assert reasoning_of(plain, plain.render(ask).ids) == "closed"
    for each in (tokenizer, real, spelled):
        for text, state in {
            HEADER: "may open",
            OPEN: "open",
            CLOSED: "closed",
            OPEN + "I think": "open",
            HEADER + "Sure, I": "closed",
            CLOSED + "{": "closed",
            "<|im_start|>user\nHi<|im_end|>": "closed",
            "<|im_start|>user\nHi<|im_end|>\n": "closed",
            "Once upon": "closed",
            "": "closed",
        }.items():
            assert reasoning_of(each, each.encode_markup(text)) == state, text


# mistakes and hostility


def nested(depth, inner):
    schema = inner
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


BAD = {"name": "f", "parameters": {"properties": {"x": {"type": "strin"}}}}
MISTAKES = {
    "no string fits": (Json({"type": "string", "minLength": 3, "maxLength": 2}), "schema: .*minLength"),
    "false": (Json({"type": "object", "properties": {"a": False}, "required": ["a"]}), "schema: .*'a'"),
    "unsupported": (Json({"$dynamicRef": "#x", "$defs": {"x": {"$dynamicAnchor": "x"}}}), 'schema: .*dynamicRef'),
    "endless": (Json(nested(1, {"$ref": "#"})), "schema: no finite value"),
    "circular": (Json({"type": "object", "not": {"anyOf": [{"$ref": "#"}]}}), "schema: .* leads to itself"),
    "elsewhere": (Json({"not": {"$ref": "http://localhost:1/x"}}), "schema: .*http://localhost:1/x"),
    "bounds beyond": (Json({"type": "integer", "minimum": 2**60}), "schema: minimum: .* beyond exact"),
    "unknown type": (Json({"type": "strin"}), "schema: .*strin"),
    "misspelled": (Json({"type": "object", "propertys": {}}), "schema: propertys: .*'properties'"),
    "misspelled within": (Json({"type": "object", "properties": {"x": {"minimun": 3}}}), "schema: properties.x.minimun: .*'minimum'"),
    "bad reference": (Json({"$ref": "#/$defs/x"}), "schema: .*x"),
    "remote": (Json({"$ref": "http://example.org/x"}), "schema: .*http"),
    "no pattern": (Json({"type": "string", "pattern": "(?=a)["}), "schema: .*regex"),
    "not JSON": (Json("{"), "schema: not JSON"),
    "not an object": (Json("[1]"), "schema: must be an object"),
    "too many digits": (Json({"enum": [[2**53 + 1]]}), "schema: enum: whole numbers"),
    "too many digits within": (Json({"properties": {"a": {"anyOf": [{"const": {"b": -(2**60)}}]}}}), r"schema: properties.a.anyOf\[0\].const: whole numbers"),
    "NaN": (Json({"const": float("nan")}), "schema: not JSON"),
    "deep": (Json(nested(200, {"type": "null"})), "schema: "),
    "very deep": (Json(nested(100_000, {"type": "null"})), "schema: "),
    "huge": (Json({"enum": ["x" * 1000 + str(i) for i in range(1000)]}), "schema: .*more than"),
    "allOf of anyOf": (Json({"allOf": [{"anyOf": [{"properties": {f"{c}{i}": {"const": 1}}, "required": [f"{c}{i}"]} for c in "ab"]} for i in range(40)]}), "schema: "),
    "empty regex": (Regex(""), "regex: must be a text"),
    "no regex": (Regex("(a"), "regex: .*unclosed"),
    "nothing matches": (Regex("[a&&b]"), "regex: no text satisfies it"),
    "nested regex": (Regex("(" * 5000 + "a" + ")" * 5000), "regex: "),
    "no rule": (Grammar("start: foo"), "grammar: .*foo"),
    "endless grammar": (Grammar('start: start "a"'), "grammar: no text satisfies it"),
    "no start": (Grammar('a: "b"'), "grammar: "),
    "nested grammar": (Grammar("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), "grammar: "),
    "max_tokens": (Grammar("start: x\nx[max_tokens=3]: /a+/"), "grammar: max_tokens= is not supported"),
    "no choices": (Choice([]), "choice: "),
    "empty choice": (Choice(["a", ""]), "choice: "),
    "no tools": (Tools([]), "tools: there are none"),
    "nameless": (Tools([{"type": "function"}]), "tools: no name"),
    "no tool": (Tools([3]), "tools: must be objects"),
    "text": (Tools(["{"]), "tools: no JSON"),
    "twice": (Tools([WEATHER, WEATHER]), "tools: weather: declared twice"),
    "not of an object": (Tools([{"name": "f", "parameters": {"type": "string"}}], "required"), "tools: f: parameters: must be"),
    "bad parameters": (Tools([WEATHER, BAD], strict=True), "tools: f: parameters: .*strin"),
    "bad parameters of the one": (Tools([WEATHER, BAD], {"name": "f"}), "tools: f: parameters: .*strin"),
    "bad parameters of the only one": (Tools([BAD], "required"), "tools: f: parameters: .*strin"),
    "unknown tool": (Tools([WEATHER], {"name": "whether"}), "tool choice: 'whether' is none of weather"),
    "unknown choice": (Tools([WEATHER], "any"), "tool choice: 'any'"),
    "all together": (Tools([{"name": f"f{i}", "parameters": {"properties": {"x": {"enum": ["y" * 100_000]}}}} for i in range(9)]), "tools: together"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_line_and_soon(mistake, small):
    spec, message = MISTAKES[mistake]
    for prompt in ([], small._tokenizer.encode_markup(HEADER)):
        start = time.process_time()
        with pytest.raises(UserError, match=message):
            small.start(spec, prompt)
        assert time.process_time() - start < 3


HEAVY = {
    "complements": Grammar("start: A\nA: ~(/.*a.{20}/ & /.*b.{20}/ & ~/.*c.{18}/) & /(.*d.{15}.*)+/"),
    "repetition": Regex("((a{1,1000}){1,1000}){1,1000}"),
    "distance": Regex("(.*a.{30}){20}"),
    "alternatives": Regex("|".join(f"x{i}.*y{i}" for i in range(3000))),
    "ambiguity": Grammar('start: start start | "a" |'),
    "right recursion": Grammar('start: "a" start | "a"'),
    "wide": Json({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000)}}),
    "long": Json({"type": "array", "minItems": 10**6, "items": {"type": "string", "minLength": 10**6}}),
    "references": Json({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/a"}}, {"type": "string"}]}}}),
    "patterns": Json({"type": "object", "patternProperties": {"^(a|b)*c{3,400}$": {"type": "string", "pattern": "^(.*x.{40}){3}$"}}}),
}  # fmt: skip


@pytest.mark.parametrize("heavy", HEAVY)
def test_hostile_grammars_are_bounded(heavy, small, tokenizer):
    """They go on in bounded steps or end in one line; the worst step seen takes 40 ms."""
    start = time.process_time()
    slowest = 0.0
    try:
        constraint = small.start(HEAVY[heavy], [])
        rng = random.Random(0)
        for _ in range(150):
            if constraint.finished or time.process_time() - start > 1.5:
                break
            before = time.process_time()
            choices = sorted(allowed(constraint.mask()) - set(tokenizer.stop_ids))
            if not choices:
                break
            constraint.accept(rng.choice(choices))
            slowest = max(slowest, time.process_time() - before)
    except UserError as e:
        assert str(e).isprintable()
        assert len(str(e)) < 300
    assert slowest < 0.5
    assert time.process_time() - start < 4


def test_budgets_are_numbers(small):
    for budget in (-1, True, 2.5, "3"):
        with pytest.raises(UserError, match="thinking_budget: must be a whole number"):
            small.start(None, [], budget)


def test_what_does_not_fit_is_refused(small, tokenizer):
    constraint = small.start(Json(), [])
    with pytest.raises(UserError, match="does not fit"):
        constraint.accept(tokenizer.encode("x")[0])


def test_without_the_library_one_line_says_so(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    made = Constraints(tokenizer, tokenizer.vocab_size)
    for spec in (Json(), Regex("a")):
        with pytest.raises(UserError, match=r"smollm3\[structured\]"):
            made.start(spec, [])
    assert made.start(None, tokenizer.encode_markup(OPEN), 3)


def test_grammars_are_compiled_once_and_from_any_thread(tokenizer):
    made = Constraints(tokenizer, tokenizer.vocab_size)
    masks: list = []

    def run() -> None:
        for i in range(40):
            constraint = made.start(Regex(f"[a-c]{{{i + 1}}}"), [])
            masks.append((i, constraint.mask().tobytes()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(masks) == 120
    assert len(set(masks)) == 40
    assert len(made._ready) == 32
