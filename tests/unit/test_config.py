"""Values from outside: each mistake is one line with its place, whatever the value was to be."""

from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from smollm3.config import Document, StrictModel, problems, read_document, suggestion
from smollm3.errors import UserError


class Text(StrictModel):
    kind: Literal["text"]
    text: str


class Picture(StrictModel):
    kind: Literal["picture"]
    width: int = Field(gt=0)
    kinds: tuple[int, ...] = ()


class Message(StrictModel):
    role: str
    content: str | list[Text]
    parts: tuple[Annotated[Text | Picture, Field(discriminator="kind")], ...] = ()
    names: dict[str, Picture] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _not_empty(self) -> "Message":
        if not self.role:
            raise ValueError("nobody says it")
        return self


GOOD = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("change", "key", "kind", "message"),
    [
        ({"rle": 1}, "rle", "unknown", "unknown key; did you mean 'role'?"),
        ({"role": 1}, "role", "invalid", "input should be a valid string"),
        ({"role": ""}, "", "invalid", "nobody says it"),
        ({"content": {}}, "content", "invalid", "input should be a valid string"),
        ({"content": [{"kind": "text"}]}, "content.0.text", "missing", "is required"),
        ({"content": [{"kind": "text", "txt": "x"}]}, "content.0.txt", "unknown", "unknown key; did you mean 'text'?"),
        ({"parts": [{"kind": "tex"}]}, "parts.0", "invalid", "unknown kind 'tex'; did you mean 'text'?; known: text, picture"),
        ({"parts": [{}]}, "parts.0", "invalid", "has no `kind`"),
        ({"parts": [{"kind": "picture"}]}, "parts.0.width", "missing", "is required"),
        ({"parts": [{"kind": "picture", "width": 0}]}, "parts.0.width", "invalid", "input should be greater than 0"),
        ({"parts": [{"kind": "picture", "width": 1, "kinds": 3}]}, "parts.0.kinds", "invalid", "input should be a valid list"),
        ({"names": {"a": {"kind": "picture", "widht": 1}}}, "names.a.widht", "unknown", "unknown key; did you mean 'width'?"),
        ({"names": {"a": 1}}, "names.a", "invalid", "input should be a valid dictionary or instance of Picture"),
    ],
)  # fmt: skip
def test_the_most_telling_mistake_comes_first(change, key, kind, message):
    value = GOOD | change
    with pytest.raises(ValidationError) as e:
        Message.model_validate(value)
    first = problems(e.value.errors(), value, Message)[0]
    assert (first.key, first.kind, first.message) == (key, kind, message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "parts", "kind", "x"]), inner)
    ),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.dictionaries(st.sampled_from(["role", "content", "parts", "names", "x"]), json_values))
def test_every_place_is_in_the_value_or_missing_from_it(value):
    try:
        Message.model_validate(value)
    except ValidationError as e:
        for problem in problems(e.errors(), value, Message):
            found, path = value, list(problem.path)
            last = path.pop() if problem.kind == "missing" else None
            for part in path:
                found = found[part]
            assert last is None or last not in found
            assert "\n" not in problem.message


def test_a_value_that_is_no_mapping_has_no_place():
    adapter = TypeAdapter(list[int])
    with pytest.raises(ValidationError) as e:
        adapter.validate_python(["x", 1, None])
    assert [p.path for p in problems(e.value.errors(), ["x", 1, None])] == [(0,), (2,)]


def test_a_document_names_the_line():
    document = read_document("role: user\n\ncontent: x\nparts:\n  - {kind: text}\n", "m.yaml", "?")
    with pytest.raises(UserError, match=r"^m.yaml:5: parts.0.text: is required$"):
        document.read(Message)
    assert document.place(("parts", 0, "text")) == "m.yaml:5: parts.0.text"
    assert document.place(("names",)) == "m.yaml: names"
    assert Document("", {}).place(("role",)) == "role"
    with pytest.raises(UserError, match=r"^m.yaml: holds messages$"):
        read_document("- 1\n", "m.yaml", "holds messages")


def test_values_are_quoted_and_the_others_counted():
    document = Document("m", {"role": None, "content": 1, "x": 2})
    with pytest.raises(UserError) as e:
        document.read(Message)
    assert str(e.value) == "m: x: unknown key (and 3 more)"
    with pytest.raises(UserError, match=r"^m: role: input should be a valid string, not None$"):
        Document("m", {"role": None, "content": ""}).read(Message)


def test_assignments():
    document = Document("m", dict(GOOD))
    document.set("role=[1, 2]")
    document.set("names.a.width=3")
    assert document.values == {"role": [1, 2], "content": "x", "names": {"a": {"width": 3}}}
    for bad in ("role", "=1", "content.x=1", "content.x.y=1"):
        with pytest.raises(UserError, match="--set"):
            document.set(bad)


def test_suggestions():
    assert suggestion("nan", ["nano", "smoke"]) == "; did you mean 'nano'?"
    assert suggestion("zzz", ["nano"]) == ""
