"""Tools from functions: schemas, checked arguments, results and errors as texts."""

import asyncio
import dataclasses
import datetime
import enum
import json
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.agent import Tool, ToolError, load_tools, tool
from smollm3.agent.schema import inline, read_docstring
from smollm3.agent.tools import MAX_RESULT, ToolOutput, as_tools, to_json_value, to_text
from smollm3.errors import UserError


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


@dataclasses.dataclass
class Place:
    name: str
    height: float = 0.0


class Options(TypedDict):
    depth: int
    note: NotRequired[str]


class Node(TypedDict):
    value: int
    children: "list[Node]"


def weather(
    place: Place,
    unit: Unit = Unit.CELSIUS,
    days: int = 1,
    on: datetime.date | None = None,
    options: Options | None = None,
    tags: list[str] = (),
) -> dict[str, Any]:
    """The weather at a place.

    As it is expected.

    Args:
        place: Where.
        days (int): How many days,
            from today on.
        unit: Of temperatures.

    Returns:
        All of it.
    """
    return {"place": place, "unit": unit, "days": days, "on": on, "options": options, "tags": tags}


class TestSchemas:
    def test_all_of_it(self):
        assert tool(weather).parameters == {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "place": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "name": {"type": "string"},
                        "height": {"type": "number", "default": 0.0},
                    },
                    "required": ["name"],
                    "description": "Where.",
                },
                "unit": {
                    "enum": ["c", "f"],
                    "type": "string",
                    "default": "c",
                    "description": "Of temperatures.",
                },
                "days": {
                    "type": "integer",
                    "default": 1,
                    "description": "How many days, from today on.",
                },
                "on": {
                    "anyOf": [{"type": "string", "format": "date"}, {"type": "null"}],
                    "default": None,
                },
                "options": {
                    "anyOf": [
                        {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                "depth": {"type": "integer"},
                                "note": {"type": "string"},
                            },
                            "required": ["depth"],
                        },
                        {"type": "null"},
                    ],
                    "default": None,
                },
                "tags": {"type": "array", "items": {"type": "string"}, "default": []},
            },
            "required": ["place"],
        }
        assert tool(weather).description == "The weather at a place.\n\nAs it is expected."

    def test_declarations(self):
        made = tool(weather)
        assert made.declaration == {"type": "function", "function": made.signature}
        assert list(made.signature) == ["name", "description", "parameters"]

    def test_recursive_types_keep_their_reference(self):
        def walk(root: Node) -> int:
            """Walk."""
            return len(root["children"])

        schema = tool(walk).parameters
        assert set(schema["$defs"]) == {"Node"}
        assert (
            tool(walk).call({"root": {"value": 1, "children": [{"value": "2", "children": []}]}})
            == 1
        )

    def test_a_parameter_may_be_called_anything(self):
        def f(
            schema: int, model_config: str, self_: int = 0, copy: int = 1, title: str = ""
        ) -> str:
            return f"{schema} {model_config} {copy} {title}"

        assert list(tool(f).parameters["properties"]) == [
            "schema",
            "model_config",
            "self_",
            "copy",
            "title",
        ]
        assert tool(f).call({"schema": 1, "model_config": "x", "title": "t"}) == "1 x 1 t"

    def test_literal_optional_annotated_and_no_hints(self):
        def f(a: Literal["x", "y"], b: Optional[int] = None, c: Annotated[int, "note"] = 3, d=None):  # noqa: UP045
            return [a, b, c, d]

        made = tool(f)
        assert made.parameters["properties"]["a"] == {"enum": ["x", "y"], "type": "string"}
        assert made.parameters["properties"]["d"] == {"default": None}
        assert made.call({"a": "y", "b": "7"}) == ["y", 7, 3, None]

    @pytest.mark.parametrize(
        "text",
        [
            "Does it.\n\nParameters\n----------\nx : int\n    The first\n    one.\ny : str\n    Other.\n\nReturns\n-------\nint",
            "Does it.\n\n:param x: The first\n    one.\n:param int y: Other.\n:returns: a number",
            "Does it.\n\nArgs:\n    x: The first\n        one.\n    y (str, optional): Other.\n\nRaises:\n    z: no",
        ],
    )
    def test_docstrings(self, text):
        assert read_docstring(text) == ("Does it.", {"x": "The first one.", "y": "Other."})

    def test_a_docstring_with_colons_is_text(self):
        text = "Note: this is\n\nexample: that"
        assert read_docstring(text) == (text, {})

    def test_what_has_no_schema_is_said(self):
        class Odd:
            pass

        def f(x: Odd) -> None: ...
        def g(*args: int) -> None: ...
        def h(x: "Missing") -> None: ...  # noqa: F821

        with pytest.raises(UserError, match="tool f: its type hints give no JSON schema"):
            tool(f)
        with pytest.raises(UserError, match=r"tool g: \*args"):
            tool(g)
        with pytest.raises(UserError, match="tool h: .*Missing"):
            tool(h)
        with pytest.raises(UserError, match="letters"):
            Tool("ein Name", "", {}, print)

    def test_inline_leaves_properties_named_like_keywords(self):
        schema = {
            "properties": {
                "title": {"type": "string", "title": "Title"},
                "$defs": {"$ref": "#/$defs/A"},
            },
            "$defs": {"A": {"type": "integer", "title": "A", "default": {"title": "kept"}}},
        }
        assert inline(schema) == {
            "properties": {
                "title": {"type": "string"},
                "$defs": {"type": "integer", "default": {"title": "kept"}},
            }
        }


class TestCalls:
    def test_values_become_what_the_hints_say(self):
        found = tool(weather).call(
            {
                "place": {"name": 12, "height": "3"},
                "unit": "f",
                "days": "2",
                "on": "2026-01-02",
                "options": {"depth": "1"},
                "tags": ["a"],
            }
        )
        assert found == {
            "place": Place("12", 3.0),
            "unit": Unit.FAHRENHEIT,
            "days": 2,
            "on": datetime.date(2026, 1, 2),
            "options": {"depth": 1},
            "tags": ["a"],
        }

    def test_defaults_are_the_functions_own(self):
        sentinel = object()

        def f(x: Any = sentinel):
            return x is sentinel

        assert tool(f).call({}) is True

    def test_mistakes_are_told(self):
        with pytest.raises(ToolError) as e:
            tool(weather).call({"unit": "kelvin", "days": "many", "colour": 1})
        message = str(e.value)
        assert "place is missing" in message
        assert "unit: input should be 'c' or 'f', not \"kelvin\"" in message
        assert "days: " in message
        assert "there is no argument colour" in message
        with pytest.raises(ToolError, match="not a JSON object"):
            tool(weather).call('{"place": ')

    def test_many_mistakes_are_cut(self):
        def f(xs: list[int]): ...

        with pytest.raises(ToolError, match="and 95 more"):
            tool(f).call({"xs": ["x"] * 100})

    def test_what_a_function_raises_is_told_without_traceback(self):
        @tool
        def f(x: int) -> int:
            return 1 // x

        with pytest.raises(ToolError, match="^ZeroDivisionError: "):
            f.call({"x": 0})

        @tool
        def g():
            raise ToolError("closed on Sundays")

        with pytest.raises(ToolError, match="^closed on Sundays$"):
            g.call({})

        @tool
        def h():
            raise KeyError

        with pytest.raises(ToolError, match="^KeyError$"):
            h.call({})

    def test_coroutines_keywords_and_positions(self):
        @tool(read_only=True, name="later", description="Waits.")
        async def f(x: int) -> int:
            await asyncio.sleep(0)
            return x + 1

        assert (f.name, f.description, f.read_only, f.call({"x": 1})) == (
            "later",
            "Waits.",
            True,
            2,
        )

        @tool
        def g(a: int, b: int = 2, /, **others: int):
            return [a, b, others]

        assert g.call({"a": 1, "b": 3, "c": "4"}) == [1, 3, {"c": "4"}]
        assert g.call({"a": 1}) == [1, 2, {}]

    def test_methods_and_objects_that_can_be_called(self):
        class Counter:
            """Counts."""

            def __init__(self):
                self.n = 0

            def up(self, by: int = 1) -> int:
                """Count up."""
                self.n += by
                return self.n

            def __call__(self, to: int) -> int:
                self.n = to
                return to

        counter = Counter()
        assert tool(counter.up).call({"by": "2"}) == 2
        assert tool(counter).call({"to": 7}) == 7
        assert tool(counter).name == "Counter"

    def test_arguments_of_python_calls(self):
        made = tool(weather)
        assert made.named([1, 2], {"days": 3}) == {"place": 1, "unit": 2, "days": 3}
        with pytest.raises(ToolError, match="at most 6"):
            made.named(range(7), {})
        with pytest.raises(ToolError, match="two values for place"):
            made.named([1], {"place": 2})


class TestResults:
    def test_texts_and_json(self):
        assert to_text("as it is") == "as it is"
        assert to_text(None) == "done"
        assert (
            to_text({"é": [1, datetime.date(2026, 1, 2), Unit.CELSIUS]})
            == '{"é":[1,"2026-01-02","c"]}'
        )
        assert json.loads(to_text(Place("x"))) == {"name": "x", "height": 0.0}
        assert to_text(ToolOutput("said", [1])) == "said"
        assert to_json_value(ToolOutput("said", (1,))) == [1]
        assert to_json_value({1: {2}}) == {"1": [2]}

    def test_whatever_it_is_it_has_a_text(self):
        class Bad:
            def __repr__(self):
                raise ValueError

        loop: list[Any] = []
        loop.append(loop)
        for value in (Bad(), loop, object(), float("nan"), b"\xff", "\ud800", 10**100, lambda: 1):
            assert isinstance(to_text(value), str)
            to_text(value).encode()
            json.dumps(to_json_value(value), allow_nan=False)

    def test_long_ones_are_cut(self):
        text = to_text("a" + "x" * 10 * MAX_RESULT + "z")
        assert len(text) < MAX_RESULT + 100
        assert text[0] + text[-1] == "az"
        assert "left out" in text


JSON_TYPES = {
    int: st.integers(-(2**53), 2**53),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: st.text(),
    bool: st.booleans(),
    list[int]: st.lists(st.integers()),
    dict[str, float]: st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    Literal["a", "b"]: st.sampled_from(["a", "b"]),
    int | None: st.none() | st.integers(),
    list[list[str]]: st.lists(st.lists(st.text())),
}


@st.composite
def functions(draw):
    """A function with drawn parameters that returns its arguments, and such arguments."""
    hints = draw(st.lists(st.sampled_from(list(JSON_TYPES)), min_size=1, max_size=5))
    names = [f"p{i}" for i in range(len(hints))]
    scope: dict[str, Any] = {}
    exec(f"def f({', '.join(names)}): return dict(locals())", scope)
    scope["f"].__annotations__ = dict(zip(names, hints, strict=True))
    values = {name: draw(JSON_TYPES[hint]) for name, hint in zip(names, hints, strict=True)}
    return scope["f"], values


class TestProperties:
    @given(functions())
    def test_what_the_schema_allows_arrives_unchanged(self, case):
        function, values = case
        made = tool(function)
        assert made.parameters["required"] == list(values)
        sent = json.loads(json.dumps(values))
        got = made.call(sent)
        assert got == values
        assert [type(v) for v in got.values()] == [type(v) for v in values.values()] or any(
            isinstance(v, float) for v in values.values()
        )

    @settings(deadline=None)  # a busy machine is no error
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
            ),
            max_leaves=10,
        )
    )
    def test_anything_else_is_told_never_raised(self, value):
        made = tool(weather)
        arguments = value if isinstance(value, dict) else {"place": value, "days": value}
        try:
            made.call(arguments)
        except ToolError as e:
            assert str(e)
            assert len(str(e)) < 2000


class TestLoading:
    def test_from_a_file_and_a_module(self, tmp_path, monkeypatch):
        (tmp_path / "mine_a.py").write_text(
            "from smollm3.agent import tool\n"
            "def add(a: int, b: int) -> int:\n    'Add.'\n    return a + b\n"
            "@tool(read_only=True)\ndef now() -> str:\n    return 'now'\n"
            "both = [add, now]\nnumber = 3\n"
        )
        (tmp_path / "broken_a.py").write_text("import nothing_like_this")
        monkeypatch.chdir(tmp_path)
        [add] = load_tools("mine_a:add")
        assert add.call({"a": 1, "b": "2"}) == 3
        assert [t.read_only for t in load_tools(f"{tmp_path}/mine_a.py:both")] == [False, True]
        for target, said in {
            "mine_a": "MODULE:FUNCTION",
            "mine_a:none": "has no none",
            "mine_a:number": "must be a function, not int",
            "broken_a:x": "ModuleNotFoundError",
            "not_there.py:x": "there is no file",
            ":x": "MODULE:FUNCTION",
        }.items():
            with pytest.raises(UserError, match=said):
                load_tools(target)

    def test_names_are_unique(self):
        with pytest.raises(UserError, match="given twice"):
            as_tools([weather, tool(weather)])
