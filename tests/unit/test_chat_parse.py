"""parse: what a model may write, and that it undoes what the template writes."""

import json
import time
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.chat import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    Message,
    ReasoningDelta,
    Renderer,
    StreamParser,
    ToolCall,
    default_template,
    parse,
)

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
        (
            '<tool_call>{"arguments": {"t": "</tool_call> <tool_call>"}, "name": "say"}</tool_call>!',
            answer("!", None, ToolCall("say", {"t": "</tool_call> <tool_call>"})),
        ),
        (
            '<tool_call>{"name": "add", "parameters": {"a": 1, "b": [true, null]}}</tool_call>',
            answer("", None, CALL),
        ),
        (
            '<tool_call>{"parameters": {"a": 1, "b": [true, null]}, "name": "add"}</tool_call>',
            answer("", None, CALL),
        ),
        (
            f"{CALL_TEXT[:-13]}\n{CALL_TEXT[12:]}",
            answer("", None, CALL, CALL),
        ),
        (
            '<tool_call>{"arguments": {}, "name": "now"} {"arguments": {}, "name": "now"}'
            "</tool_call>ok",
            answer("ok", None, ToolCall("now", {}), ToolCall("now", {})),
        ),
        (
            f'{CALL_TEXT[:-13]}\n{{"x": 1}} so</tool_call>',
            answer('{"x": 1} so</tool_call>', None, CALL),
        ),
        (
            """<tool_call>{'name': 'say', 'arguments': {'t': 'a "'}}</tool_call>"ok" """,
            answer('"ok" ', None, ToolCall("say", {"t": 'a "'})),
        ),
        (
            f'<tool_call>{{"name": "add</tool_call>\n{CALL_TEXT}',
            answer('<tool_call>{"name": "add</tool_call>', None, CALL),
        ),
    ],
)
def test_reads(text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    "body",
    [
        "hello",
        "",
        '{"name": 3, "arguments": {}}',
        '{"name": "add", "arguments": [1]}',
        '{"name": "add"}}',
        '{"name": "\\u12", "arguments": {}}',
        '{"arguments": {}}',
        "[1]",
        "{'name': 'add', 'arguments': {'a': {1, 2}}}",
        "{'name': 'add', 'arguments': {'a': 1e999}}",
        "{'name': __import__('os').getcwd()}",
        "{" * 5000,
        '{"name": "add", "arguments": ' + "[" * 100_000,
    ],
)
def test_what_is_no_call_stays_text(body):
    text = f"<tool_call>{body}</tool_call>"
    assert parse(text) == answer(text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"a": 1', None),
        ('{"a": "b', None),
        ('{"a": "\\', None),
        ('{"a": NaN}', None),
        ('{"a": 1e999}', None),
        ('{"a": "\\ud800"}', None),
        ('{"a": 1 2}', None),
        ('{"a": [1}}', None),
        pytest.param('{"a": ' + "[" * 5000 + "1" + "]" * 5000 + "}", None, id="deep"),
        pytest.param('{"a": ' + "[" * 499 + "1" + "]" * 499 + "}", None, id="too deep"),
        ('{"a": [[1]]}', {"a": [[1]]}),
        pytest.param('{"a": ' + "1" * 5000 + "}", None, id="a long number"),
        ('{"a": True, "b": [None, False]}', {"a": True, "b": [None, False]}),
        ('{"a": "line\nline\t"}', {"a": "line\nline\t"}),
        ('{"a": "True </tool_call> {"}', {"a": "True </tool_call> {"}),
    ],
)
def test_arguments(written, read):
    """Arguments that are no JSON object come as they were written, and cannot be mistaken."""
    end = "" if read is None and written[-1] != "}" else "}\n</tool_call>"
    text = f'<tool_call>\n{{"name": "add", "arguments": {written}{end}'
    call = ToolCall("add", written if read is None else read)
    assert parse(text) == answer("", None, call)


@pytest.mark.parametrize(
    ("end", "content"),
    [
        ("}", ""),
        ("", ""),
        ("} </tool_call> ok", " ok"),
        ("</tool_call>ok", "ok"),
        ("}\nok", "ok"),
        ("\nok", "ok"),
        ("</tool", "</tool"),
        (', "id": "}</tool_call>"}</tool_call>ok', "ok"),
        (', "id": {"a": 1</tool_call>ok', "ok"),
        (', "id', ""),
    ],
)
def test_calls_end_where_their_object_does(end, content):
    """The call is clear once its arguments are; what models leave out behind them is no loss."""
    text = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [true, null]}' + end
    assert parse(text) == answer(content, None, CALL)


def test_calls_are_read_only_in_the_styles_offered():
    text = f"<code>\nprint(add(1, 2))\n</code>\n{CALL_TEXT}"
    code = ToolCall("python", {"code": "print(add(1, 2))"})
    assert parse(text, xml=False) == answer(text)
    assert parse(text, xml=True) == answer(text.partition("\n<tool_call>")[0], None, CALL)
    assert parse(text, xml=True, python=True) == answer("", None, code, CALL)
    assert parse("<code>1 + 1", python=True).tool_calls == (ToolCall("python", {"code": "1 + 1"}),)
    for empty in ("<code></code>", "<code> \n</code>", "<code>\n "):
        assert parse(empty, python=True) == answer(empty)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("```\n", "\n```"),
        ("So:\n```json\n", "\n```\nYes."),
        ("  ~~~\n```\n", "\n~~~"),
        ("````\n```\n", "\n````"),
        ("```\nx\n", ""),
        ("```", "```"),
        ("`", "`"),
        ("as `<code>` or `", "` say"),
    ],
)
def test_quotes_are_no_calls(before, after):
    for call in (CALL_TEXT, "<code>1</code>"):
        text = f"{before}{call}{after}"
        assert parse(text, python=True) == answer(text.strip("\n"))


@pytest.mark.parametrize(
    "before",
    [
        "```\nx\n```\n",
        "```` `\n",
        "a ```\n",
        "    ```\n",
        "~~\n",
        "```\nx\n````  \n",
        "~~~\n```\n~~~\n",
        "x" * 200 + "```",
        "``` `x`\n",
    ],
)
def test_what_only_looks_like_a_quote(before):
    before = before.removesuffix("```") if len(before) > 100 else before
    assert parse(before + CALL_TEXT) == answer(before.rstrip("\n"), None, CALL)


def test_many_openings_are_read_in_linear_time():
    for text in ("<tool_call>{" * 20_000, '<tool_call>\\{"' * 20_000, "`<tool_call>" * 20_000):
        start = time.process_time()
        assert parse(text).content == text
        assert time.process_time() - start < 5  # 0.5 s


# in pieces


def read_in_pieces(pieces, **styles):
    """The message that the events add up to, each checked as it comes."""
    parser = StreamParser(**styles)
    reasoning, content, texts, calls = "", "", [], []
    for event in [*chain.from_iterable(map(parser.feed, pieces)), *parser.finish()]:
        match event:
            case ReasoningDelta(text):
                assert text
                assert not content
                assert not texts
                reasoning += text
            case ContentDelta(text):
                assert text
                content += text
            case CallStart(index, name):
                assert index == len(calls) == len(texts)
                texts.append((name, ""))
            case ArgumentsDelta(index, text):
                assert text
                assert index == len(calls) == len(texts) - 1
                texts[index] = (texts[index][0], texts[index][1] + text)
            case CallEnd(index, call):
                assert index == len(calls)
                calls.append(call)
    for (name, text), call in zip(texts, calls, strict=True):
        assert name == call.name
        assert call.arguments in (text, _loads(text))
    message = answer(content, reasoning or None, *calls)
    assert parser.message == message
    return message


def _loads(text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def test_arguments_stream():
    parser = StreamParser(python=True)
    parser.feed("<tool_call>\n")
    assert parser.feed('{"name": "say", "arguments": {"') == [
        CallStart(0, "say"),
        ArgumentsDelta(0, '{"'),
    ]
    assert parser.feed("te") == [ArgumentsDelta(0, "te")]
    assert parser.feed('xt": "a\\') == [ArgumentsDelta(0, 'xt": "a')]
    assert parser.feed("nb</tool_call>") == [ArgumentsDelta(0, "\\nb</tool_call>")]
    call = ToolCall("say", {"text": "a\nb</tool_call>"})
    assert parser.feed('"}') == [ArgumentsDelta(0, '"}'), CallEnd(0, call)]
    assert parser.feed("}</tool_") == parser.feed("call>\n") == []
    assert parser.feed("<code>\nx") == [
        CallStart(1, "python"),
        ArgumentsDelta(1, '{"code": "'),
        ArgumentsDelta(1, "x"),
    ]
    assert parser.feed("\n") == parser.feed("</co") == []
    end = [ArgumentsDelta(1, '"}'), CallEnd(1, ToolCall("python", {"code": "x"}))]
    assert parser.feed("de>") == end
    assert parser.finish() == []


def test_no_half_tag_is_shown():
    parser = StreamParser(python=True)
    shown = [parser.feed(c) for c in "<think>a</think>\nb < c\n\n<to<tool_call>x<code></code>\n"]
    texts = [event.text for events in shown for event in events]
    assert texts == [*"ab", " ", "< ", "c", "\n\n<to", "<tool_call>", "x", "<code>", "</code>"]


# any message, any text

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


@settings(max_examples=100)
@given(messages)
def test_parse_undoes_render(message):
    assert parse(text_of(message, python_tools=["def f()"]), python=True) == message


@settings(max_examples=100)
@given(messages.filter(lambda m: m.reasoning is None))
def test_parse_undoes_render_without_thinking(message):
    assert parse(text_of(message, enable_thinking=False)) == message


def assert_splits_do_not_matter(text, cuts, **styles):
    whole = parse(text, **styles)
    splits = [text, *([text[:i], text[i:]] for i in range(len(text)))]
    splits.append([text[a:b] for a, b in pairwise([0, *sorted(cuts), len(text)])])
    for pieces in splits:
        assert read_in_pieces(pieces, **styles) == whole


cuts = st.lists(st.integers(0, 80))


@settings(max_examples=60)
@given(messages, cuts)
def test_messages_are_the_same_at_every_split(message, cuts):
    text = text_of(message, python_tools=["def f()"])
    assert_splits_do_not_matter(text, cuts, python=True)


fragments = [*[t + ">" for t in tags], "<", "to", '{"name": "f", "arguments": ', *"{}[]\"'\\,:1"]
fragments += [
    '{"name": "f"',
    ', "arguments": {"a": ',
    "}}",
    "True",
    "```",
    "~~~",
    "`",
    " ",
    "\n",
    "é",
]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(fragments), max_size=20).map("".join), cuts, st.booleans())
def test_any_text_is_the_same_at_every_split(text, cuts, python):
    assert_splits_do_not_matter(text, cuts, python=python)
    json.dumps(parse(text, python=python).to_dict())


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
