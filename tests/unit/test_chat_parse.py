"""parse: what a model may write, and that it undoes what the template writes."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.chat import Message, Renderer, ToolCall, default_template, parse

CALL = ToolCall("add", {"a": 1, "b": [True, None]})
CALL_TEXT = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [true, null]}}\n</tool_call>'


def answer(content="", reasoning=None, *calls):
    return Message("assistant", content, reasoning, calls)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", answer()),
        ("7", answer("7")),
        ("<think>\nhm\n</think>\n7", answer("7", "hm")),
        (f"{CALL_TEXT[:-13]}\n{CALL_TEXT}", answer("", None, CALL, CALL)),
        ("<think>\n\n</think>\n7", answer("7")),
        ("<think>\nnot done", answer("", "not done")),
        ("\n<think>a</think>b", answer("b", "a")),
        ("see <think>x</think>", answer("see <think>x</think>")),
        (CALL_TEXT, answer("", None, CALL)),
        (f"ok\n{CALL_TEXT}\n{CALL_TEXT}", answer("ok", None, CALL, CALL)),
        (f"<think>\n{CALL_TEXT}\n</think>\nno", answer("no", CALL_TEXT)),
        (f"<think>\n{CALL_TEXT}", answer("", CALL_TEXT)),
        (CALL_TEXT.removesuffix("\n</tool_call>"), answer("", None, CALL)),
        (
            "<tool_call>{'name': 'add', 'arguments': {'a': 1, 'b': [True, None]}}</tool_call>",
            answer("", None, CALL),
        ),
        (
            "<tool_call>{'name': 'add', 'arguments': {'a': 1, 'b': [True, None]}}",
            answer("", None, CALL),
        ),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
            answer("", None, ToolCall("add", {"a": 1})),
        ),
        (
            '<tool_call>{"name": "say", "arguments": {"t": "</tool_call>"}}</tool_call>',
            answer("", None, ToolCall("say", {"t": "</tool_call>"})),
        ),
        ('<tool_call>{"name": "now"}</tool_call>', answer("", None, ToolCall("now", {}))),
    ],
)
def test_reads(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "body",
    [
        "hello",
        '{"name": "add", "arguments": {"a": 1}',
        '{"name": 3, "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"arguments": {}}',
        "[1]",
        "{'name': 'add', 'arguments': {'a': {1, 2}}}",
        "{'name': __import__('os').getcwd()}",
        "{" * 5000,
        '{"name": "add", "arguments": ' + "[" * 100_000,
    ],
)
def test_what_is_no_call_stays_text(body):
    text = f"<tool_call>{body}</tool_call>"
    assert parse(text) == answer(text)


def test_calls_are_read_only_in_the_styles_offered():
    text = f"<code>\nprint(add(1, 2))\n</code>\n{CALL_TEXT}"
    code = ToolCall("python", {"code": "print(add(1, 2))"})
    assert parse(text, xml=False) == answer(text)
    assert parse(text, xml=True) == answer(text.partition("\n<tool_call>")[0], None, CALL)
    assert parse(text, xml=True, python=True) == answer("", None, code, CALL)
    assert parse("<code>1 + 1", python=True).tool_calls == (ToolCall("python", {"code": "1 + 1"}),)
    assert parse("<code></code>", python=True) == answer("<code></code>")


def test_many_openings_are_read_in_linear_time():
    text = "<tool_call>{" * 20_000
    start = time.process_time()
    assert parse(text).content == text
    assert time.process_time() - start < 8  # 2 s; 14 s where each opening reads to the end


tags = ("<think", "</think", "<tool_call", "</tool_call", "<code", "</code")
texts = st.text(st.characters(codec="utf-8"), max_size=30).filter(
    lambda t: t == t.strip("\r\n") and not any(tag in t for tag in tags)
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)  # fmt: skip
calls = st.builds(
    ToolCall,
    st.text(st.characters(codec="utf-8"), max_size=10),
    st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), values, max_size=3),
)
python_calls = st.builds(
    lambda code: ToolCall("python", {"code": code}), texts.filter(lambda t: t.strip())
)
messages = st.builds(
    Message,
    st.just("assistant"),
    texts,
    st.none() | texts.filter(bool),
    st.lists(calls | python_calls, max_size=3).map(tuple),
)
RENDERER = Renderer(
    default_template("Nano"),
    {"<|im_start|>": True, "<|im_end|>": True, **dict.fromkeys((t + ">" for t in tags), False)},
    ["<|im_end|>"],
    {},
)


def text_of(message, **options):
    """What the template writes between the header and the stop token."""
    rendering = RENDERER.render([message], add_generation_prompt=False, **options)
    assert rendering.problem is None
    stop = "<|im_end|>"
    written = "".join(piece.text for piece in rendering.pieces if piece.generated)
    assert written.endswith(stop)
    return written.removesuffix(stop).translate(rendering.restore)


@settings(max_examples=100, deadline=None)
@given(messages)
def test_parse_undoes_render(message):
    assert parse(text_of(message, python_tools=["def f()"]), python=True) == message


@settings(max_examples=100, deadline=None)
@given(messages.filter(lambda m: m.reasoning is None))
def test_parse_undoes_render_without_thinking(message):
    assert parse(text_of(message, enable_thinking=False)) == message


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([*[t + ">" for t in tags], "{", '"name": "f"', "}", "\n", "a"])))
def test_no_text_breaks_it(parts):
    message = parse("".join(parts), python=True)
    json.dumps(message.to_dict())


def test_message_as_openai_spells_it():
    message = Message("assistant", "x", "hm", (ToolCall("f", {"a": 1}, id="call_1"),))
    assert message.to_dict() == {
        "role": "assistant",
        "content": "x",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "f", "arguments": {"a": 1}},
            }
        ],
    }
