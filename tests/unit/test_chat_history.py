"""Conversations as OpenAI's API writes them, with templates that do not print all of that."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.templates import PUBLISHED

from smollm3.chat import Message, ToolCall, default_template
from smollm3.chat.history import Reads, probe
from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer

OURS = Tokenizer.train(["a user and an assistant\n"] * 9, 300, default_template("Nano"))
THEIRS = OURS.with_template(PUBLISHED)


def call(arguments, name="f", **more):
    function = {"name": name, "arguments": arguments}
    return {"id": "call_1", "type": "function", "function": function, **more}


ASK = {"role": "user", "content": "q"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call('{"é":1}'), call({})]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "r1"}
CALLS = (
    '<tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
)


def turns(tok, messages, **options):
    """The text behind the system block."""
    text = tok.render_text(messages, add_generation_prompt=False, **options)
    return text[text.index("<|im_start|>user") :]


def user_turn(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n"


def assistant_turn(text):
    return f"<|im_start|>assistant\n{text}<|im_end|>\n"


@pytest.mark.parametrize("tok", [OURS, THEIRS], ids=["ours", "published"])
def test_openai_history(tok):
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    parts = {"role": "user", "content": [{"type": "text", "text": "q"}, "!"]}
    assert turns(tok, [parts, CALLING, RESULT, RESULT, answer]) == (
        user_turn("q!")
        + assistant_turn(CALLS)
        + user_turn("r1") * 2
        + assistant_turn("<think>\nhm\n</think>\na")
    )
    talking = {**CALLING, "content": "I call.", "thinking": "hm"}
    text = f"<think>\nhm\n</think>\nI call.\n{CALLS}"
    assert turns(tok, [ASK, talking]) == user_turn("q") + assistant_turn(text)


@pytest.mark.parametrize("tok", [OURS, THEIRS], ids=["ours", "published"])
def test_calls_of_every_spelling(tok):
    for calls, block in [
        ([{"name": "f", "arguments": {"a": 1}}], '{"name": "f", "arguments": {"a": 1}}'),
        ([call(None)], '{"name": "f", "arguments": {}}'),
        ([call("")], '{"name": "f", "arguments": }'),
        ([call('{"a": 1')], '{"name": "f", "arguments": {"a": 1}'),
        ([call("[1]")], '{"name": "f", "arguments": [1]}'),
        ([call({"code": "1"}, "python")], '{"name": "python", "arguments": {"code": "1"}}'),
    ]:
        message = {"role": "assistant", "content": "", "tool_calls": calls}
        expected = assistant_turn(f"<tool_call>\n{block}\n</tool_call>")
        assert turns(tok, [ASK, message]) == user_turn("q") + expected
    code = {"role": "assistant", "content": "x", "tool_calls": [call({"code": "1"}, "python")]}
    written = turns(tok, [ASK, code], python_tools=["def f(): ..."])
    assert written == user_turn("q") + assistant_turn("x\n<code>\n1\n</code>")
    with_more = {**code, "tool_calls": [call({"code": "1", "n": 2}, "python")]}
    assert "<tool_call>" in turns(tok, [ASK, with_more], python_tools=["def f(): ..."])


@pytest.mark.parametrize("calls", ["f", ["f"], [{}], [{"function": {"arguments": {}}}], 7])
def test_bad_calls(calls):
    with pytest.raises(UserError, match="message 1: "):
        OURS.render([ASK, {"role": "assistant", "content": "", "tool_calls": calls}])


def test_exact_rewrites_nothing():
    chat = [ASK, {**CALLING, "content": "c", "reasoning_content": "hm"}, RESULT]
    expected = user_turn("q") + assistant_turn("c") + user_turn("r1")
    assert turns(THEIRS, chat, exact=True) == expected
    parts = [{"role": "user", "content": [{"type": "text", "text": "q"}]}]
    assert turns(THEIRS, parts, exact=True) == user_turn("")


EACH = "{% for m in messages %}[{{ m.role }}]BODY<|im_end|>{% endfor %}"
BODIES = {
    "no tool role": (
        "{{ raise_exception('roles!') if m.role == 'tool' }}{{ m.content }}",
        f"[user]q<|im_end|>[assistant]{CALLS}<|im_end|>[user]r1\nr1<|im_end|>",
    ),
    "calls as text": (
        "{% for c in m.tool_calls or [] %}{{ '<' + c.function.arguments + '>' }}{% endfor %}"
        "{{ m.content }}",
        '[user]q<|im_end|>[assistant]<{"é": 1}><{}><|im_end|>[tool]r1<|im_end|>[tool]r1<|im_end|>',
    ),
    "calls as text, printed as they are": (
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments }}{% endfor %}{{ m.content }}",
        '[user]q<|im_end|>[assistant]{"é": 1}{}<|im_end|>[tool]r1<|im_end|>[tool]r1<|im_end|>',
    ),
    "contents in parts": (
        "{% for p in m.content %}{{ p.text }}{% endfor %}",
        f"[user]q<|im_end|>[assistant]{CALLS}<|im_end|>[tool]r1<|im_end|>[tool]r1<|im_end|>",
    ),
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES)
def test_what_other_templates_miss(body, expected):
    tok = OURS.with_template(EACH.replace("BODY", body))
    assert tok.render_text([ASK, CALLING, RESULT, RESULT]) == expected


def test_a_model_without_the_tags_does_not_think_in_them():
    config = {"eos_token": "<|im_end|>"}
    parts = json.loads(OURS.source)
    parts["added_tokens"] = [t for t in parts["added_tokens"] if t["content"] != "<think>"]
    tok = Tokenizer(json.dumps(parts), config, PUBLISHED)
    answer = {"role": "assistant", "content": "a", "reasoning_content": "hm"}
    assert turns(tok, [ASK, answer]) == user_turn("q") + assistant_turn("a")


def test_a_template_that_prints_nothing():
    reads = Reads(parts=False, calls=None, reasoning=False, results=False, systems=False)
    assert probe(lambda chat: "") == reads


lines = st.text(st.characters(codec="utf-8", exclude_characters="<`~\r\n"), max_size=9)
codes = st.builds(lambda code: {"code": code}, lines.filter(lambda text: text.strip()))
messages = st.builds(
    Message,
    st.just("assistant"),
    lines,
    st.none() | lines.filter(bool),
    st.lists(
        st.builds(ToolCall, lines, st.dictionaries(lines, lines))
        | st.builds(ToolCall, st.just("python"), codes),
        max_size=3,
    ).map(tuple),
)


@settings(max_examples=60)
@given(messages, st.booleans(), st.booleans())
@pytest.mark.parametrize("tok", [OURS, THEIRS], ids=["ours", "published"])
def test_ids_of_a_turn_parse_to_its_message(tok, message, think, python):
    if not think:
        message = replace(message, reasoning=None)
    options = {"enable_thinking": think, "python_tools": ["def g(): ..."] if python else None}
    rendered = tok.render([ASK, message], add_generation_prompt=False, **options)
    pairs = zip(rendered.ids, rendered.generated, strict=True)
    assert tok.parse([i for i, on in pairs if on], python_tools=python) == message


@pytest.mark.parametrize("tok", [OURS, THEIRS], ids=["ours", "published"])
def test_a_message_that_is_no_example_is_context(tok):
    turns = [{"content": "one", "train": False}, {"content": "two"}]
    chat = [m for turn in turns for m in (ASK, {"role": "assistant", **turn})]
    made = tok.render(chat, add_generation_prompt=False)
    plain = [{k: v for k, v in m.items() if k != "train"} for m in chat]
    whole = tok.render(plain, add_generation_prompt=False)
    assert made.ids == whole.ids
    for kept, all_ in ((made.generated, whole.generated), (made.published, whole.published)):
        trained = tok.decode([i for i, k in zip(made.ids, kept, strict=True) if k])
        assert "two" in trained
        assert "one" not in trained
        assert sum(all_) > sum(kept)
