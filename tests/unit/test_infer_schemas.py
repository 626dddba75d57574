"""JSON schemas of any kind: refused before anything is written, or the answer satisfies them."""

import json
import random
from decimal import Decimal, InvalidOperation

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.schemas import APPLICATIONS
from tests.unit.test_infer_constraints import allowed, allows

from smollm3.errors import UserError
from smollm3.infer.constrain.masks import Constraints, Json, Tools
from smollm3.infer.constrain.patterns import rust_pattern
from smollm3.infer.constrain.schemas import json_grammar

STEPS = 300
CLOSING = {*'",]}0123 ae'}


@pytest.fixture(scope="module")
def made(tokenizer):
    return Constraints(tokenizer, tokenizer.vocab_size)


def write(constraint, tokenizer, rng) -> str | None:
    """A random answer; None where it takes too long to end. Nothing may fail on the way."""
    ids = []
    near = {i for i in range(tokenizer.vocab_size) if tokenizer.decode([i]) in CLOSING}
    while not constraint.finished and len(ids) < STEPS:
        choices = allowed(constraint.mask())
        assert choices, tokenizer.decode(ids)
        if choices & {*tokenizer.stop_ids} and (rng.random() < 0.5 or len(choices) < 3):
            break
        choices -= {*tokenizer.stop_ids}
        choices = choices & near if choices & near and rng.random() < 0.7 else choices
        ids.append(rng.choice(sorted(choices)))
        constraint.accept(ids[-1])
    return tokenizer.decode(ids) if len(ids) < STEPS else None


def fits(constraint, ids) -> bool:
    """Whether an answer may begin with these tokens."""
    for token in ids:
        if not allows(constraint, token):
            return False
        constraint.accept(token)
    return True


def judged(schema, text):
    """What jsonschema says: with decimals, in which 0.3 is three times 0.1."""
    schema, value = (json.loads(t, parse_float=Decimal) for t in (json.dumps(schema), text))
    judge = jsonschema.validators.validator_for(schema)
    try:
        return next(iter(judge(schema).iter_errors(value)), None)
    except InvalidOperation:  # a multiple of a number of thousands of digits
        return None


def check(made, tokenizer, schema, seeds=3):
    """Whether it was accepted, and how often something was written to its end."""
    try:
        made.start(Json(schema), [])
    except UserError as e:
        assert str(e).isprintable()
        return False, 0
    written = 0
    for seed in range(seeds):
        constraint = made.start(Json(schema), [])
        text = write(constraint, tokenizer, random.Random(seed))
        if text is None:
            continue
        written += 1
        error = judged(schema, text)
        if error is not None:  # then somebody says so, and had said before that it might come
            assert constraint.warnings, (schema, text, error.message)
            assert constraint.checks[""].broken(text), (schema, text, error.message)
    return True, written


# Every keyword of the vocabularies of draft 2020-12 that says something, and those of older drafts.
NAMES = st.sampled_from(["a", "b", "é", "x-1"])
SMALL = st.integers(0, 3)
NUMBERS = st.one_of(
    st.integers(-9, 9),
    st.sampled_from([0.5, -(2**63), 2**63 - 1, 2**64 - 1, 1.7976931348623157e308]),
)
VALUES = st.sampled_from([None, True, 0, 1, 1.5, "", "a", "é", [], [1], {}, {"a": 1}])
PATTERNS = st.sampled_from(
    ["a", "^a", "^[a-c]{1,3}$", r"^\d+$", r"^\w+$", "^(?!b)[a-c]*$", "^(?=.*a).{1,3}$", r"\ba", "x$|^b"]
)  # fmt: skip
FORMATS = ["date", "uuid4", "uuid", "email", "password", "path", "int32", "date-time", "ipvanyaddress"]  # fmt: skip


def whole_vocabulary():
    leaves = {
        "const": VALUES,
        "enum": st.lists(VALUES, min_size=1, max_size=3, unique_by=json.dumps),
        "multipleOf": st.sampled_from([1, 2, 0.5, 0.1]),
        **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), NUMBERS),
        **dict.fromkeys(
            [
                "minLength",
                "maxLength",
                "minItems",
                "maxItems",
                "minContains",
                "maxContains",
                "minProperties",
                "maxProperties",
            ],
            SMALL,
        ),
        "pattern": PATTERNS,
        "format": st.sampled_from(FORMATS),
        "uniqueItems": st.booleans(),
        "required": st.lists(NAMES, max_size=2, unique=True),
        "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True)),
        "$ref": st.sampled_from(["#", "#/$defs/d", "#/properties/a"]),
        "title": st.just("t"),
        "default": VALUES,
        "examples": st.lists(VALUES, max_size=1),
        "contentEncoding": st.just("base64"),
        "nullable": st.booleans(),
        "discriminator": st.just({"propertyName": "a"}),
    }

    def deeper(inner):
        keys = {
            **leaves,
            **dict.fromkeys(
                [
                    "additionalProperties",
                    "propertyNames",
                    "items",
                    "contains",
                    "not",
                    "if",
                    "then",
                    "else",
                    "unevaluatedItems",
                    "unevaluatedProperties",
                ],
                inner,
            ),
            **dict.fromkeys(
                ("allOf", "anyOf", "oneOf", "prefixItems"), st.lists(inner, min_size=1, max_size=2)
            ),
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
            "dependentSchemas": st.dictionaries(NAMES, inner, max_size=2),
            "$defs": st.fixed_dictionaries({"d": inner}),
        }
        return schemas(keys, 4)

    return st.recursive(st.one_of(st.booleans(), schemas(leaves, 3)), deeper, max_leaves=6)


def schemas(keys, most):
    """Mostly of one type with keywords that belong to it, as people's are; sometimes of any."""
    types = st.sampled_from(["object", "object", "array", "string", "integer", "number", "boolean", "null"])  # fmt: skip
    chosen = st.lists(st.sampled_from(sorted(keys)), max_size=most, unique=True)
    made = chosen.flatmap(lambda names: st.fixed_dictionaries({n: keys[n] for n in names}))
    typed = st.tuples(types, made).map(lambda t: {"type": t[0], **t[1]})
    return st.one_of(typed, typed, made)


@settings(max_examples=120, derandomize=True)
@given(whole_vocabulary().filter(lambda s: isinstance(s, dict)))
def test_what_is_accepted_is_satisfied(made, tokenizer, schema):
    check(made, tokenizer, schema)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(whole_vocabulary().filter(lambda s: isinstance(s, dict)))
def test_what_is_accepted_is_satisfied_often(made, tokenizer, schema):
    check(made, tokenizer, schema)


@pytest.mark.parametrize("name", APPLICATIONS)
def test_schemas_of_applications(made, tokenizer, name):
    accepted, _ = check(made, tokenizer, APPLICATIONS[name], seeds=2)
    assert accepted
    constraint = made.start(
        Tools([{"name": "f", "parameters": APPLICATIONS[name]}], "required"), []
    )
    assert not any("instead" in line for line in constraint.warnings)


ENFORCED = [
    ({"propertyNames": {"type": "string"}}, '{"a": 1}', None),
    ({"propertyNames": {"enum": ["a"]}, "additionalProperties": {"type": "integer"}}, '{"a": 1}', '{"b'),
    ({"propertyNames": {"minLength": 2}}, '{"ab": 1}', '{"a":'),
    ({"propertyNames": {"pattern": "^x"}}, '{"xa": 1}', '{"a'),
    ({"properties": {"x": {"type": "string", "format": "uuid4"}}}, '{"x": "6f1e1d5a-8f7e-4c29-9c3a-0a1b2c3d4e5f"}', '{"x": "6f1e1d5a-8f7e-1'),
    ({"properties": {"x": {"type": "integer", "maximum": 2**64 - 1}}}, '{"x": 9007199254740991}', '{"x": 9007199254740992'),
    ({"properties": {"x": {"type": "integer", "minimum": 0, "exclusiveMinimum": True}}}, '{"x": 1}', '{"x": 0,'),
    ({"properties": {"x": {"type": "array", "items": [{"type": "integer"}], "additionalItems": False}}}, '{"x": [1]}', '{"x": [1,'),
    ({"required": ["y"]}, '{"y": 1}', "{}"),
    ({"properties": {"x": {"oneOf": [{"type": "integer"}, {"type": "string"}]}}}, '{"x": 1}', '{"x": t'),
    ({"properties": {"x": {"const": 1}}, "unevaluatedProperties": False}, '{"x": 1}', '{"y'),
    ({"properties": {"x": {"type": "string", "pattern": r"^\w$"}}}, '{"x": "a"}', '{"x": "é'),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), ENFORCED)
def test_what_can_be_enforced_is(made, tokenizer, schema, good, bad):
    schema = {"type": "object", **schema}
    constraint = made.start(Json(schema), [])
    assert not constraint.warnings
    assert fits(constraint, tokenizer.encode(good))
    if bad:
        assert not fits(made.start(Json(schema), []), tokenizer.encode(bad))


CHECKED = [
    ({"items": {"type": "integer"}, "type": "array", "uniqueItems": True}, "[1, 2]", "[1, 1]", "uniqueItems"),
    ({"type": "string", "pattern": "^(?!a).*$"}, '"b"', '"ab"', "pattern"),
    ({"type": "string", "not": {"const": ""}}, '"b"', '""', "not"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, '"bb"', '"b"', "if"),
    ({"dependencies": {"a": ["b"]}}, '{"b": 1}', '{"a": 1}', "dependentRequired"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1.5", "1", "oneOf"),
    ({"type": "array", "contains": {"const": 1}}, "[1]", "[2]", "contains"),
    ({"type": "object", "minProperties": 2}, '{"a": 1, "b": 1}', '{"a": 1, "a": 1}', "minProperties"),
    ({"type": "number", "not": {"type": "integer"}}, "1.5", "1e999", "not"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad", "keyword"), CHECKED)
def test_the_rest_is_checked_and_said(made, tokenizer, schema, good, bad, keyword):
    constraint = made.start(Json(schema), [])
    assert constraint.warnings == [f"schema: {keyword} is not enforced while writing"]
    for text in (good, bad):
        assert fits(made.start(Json(schema), []), tokenizer.encode(text))
    assert constraint.checks[""].broken(good) is None
    assert constraint.checks[""].broken(bad)


def test_a_bad_tool_hurts_only_who_must_call_it(made, tokenizer):
    good = {"name": "good", "parameters": {"properties": {"x": {"type": "integer"}}}}
    bad = {"name": "bad", "parameters": {"properties": {"x": {"type": "strin"}}}}
    call = '<tool_call>\n{"name": "bad", "arguments": {"x": [1]}}\n</tool_call>'
    for choice in ("auto", "required"):
        for _ in range(2):  # the second is one that was kept
            constraint = made.start(Tools([good, bad], choice), [])
            [warning] = constraint.warnings
            assert warning.startswith("tools: bad: parameters: ")
            assert warning.endswith("any object is allowed instead")
            assert fits(constraint, tokenizer.encode_markup(call))
            wrong = tokenizer.encode_markup(call.replace("bad", "good"))
            assert not fits(made.start(Tools([good, bad], choice), []), wrong)
    made.start(Tools([good, bad], {"name": "good"}), [])
    with pytest.raises(UserError, match="tools: bad: parameters"):
        made.start(Tools([good, bad], {"name": "bad"}), [])


def test_only_calls_that_must_be_right_are_checked(made):
    unique = {"properties": {"x": {"type": "array", "uniqueItems": True}}}
    tools = [{"name": "f", "parameters": unique}, {"name": "g"}]
    for options, names in (
        ({}, set()),
        ({"strict": True}, {"f"}),
        ({"choice": {"name": "f"}}, {"f"}),
    ):
        constraint = made.start(Tools(tools, **options), [])
        assert {*constraint.checks} == names
        assert constraint.warnings == [
            "tools: f: parameters: properties.x.uniqueItems is not enforced while writing"
        ]


@pytest.mark.parametrize(
    ("pattern", "told", "exact"),
    [
        (r"^\d{3}[\w.-]+\s$", r"^[0-9]{3}[A-Za-z0-9_.-]+[\t\n\v\f\r ]$", True),
        (r"(?:a|(b))[()(?!]\(?!", r"(?:a|(b))[()(?!]\(?!", True),
        (r"^(?!.*(a|[)]))b(?<=c)(?<n>d)$", r"^b(?<n>d)$", False),
        (r"(a)\1\k<n>\b", r"(a)[\s\S]*[\s\S]*", False),
        (r"a\Z", "a$", True),
        ("[^\\w]", "[^\\w]", True),
    ],
)
def test_patterns(pattern, told, exact):
    assert rust_pattern(pattern) == (told, exact)


def test_a_pattern_that_takes_for_ever_is_given_up():
    found = json_grammar("schema", {"type": "string", "pattern": r"^(?=((a+)+)+\1b)a+$"})
    assert found.check.broken(json.dumps("a" * 60))
