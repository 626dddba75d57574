"""Whatever the contents: the control tokens are those of the same conversation with harmless ones.

For our template, the double of the published one, and every template inside trl, with a tokenizer
for which everything that looks like a control token in any of them is one.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.templates import PUBLISHED, tokenizer_for, trl_templates

from smollm3.chat import default_template
from smollm3.tokenizer import CONTROL

TEMPLATES = {"ours": default_template("Nano", "Lab", "June 2025"), "published": PUBLISHED}
TEMPLATES |= trl_templates()
TOK = tokenizer_for(list(TEMPLATES.values()))
TOKENIZERS = {name: TOK.with_template(source) for name, source in TEMPLATES.items()}
FIRST = min(TOK.encode_markup(token)[0] for token in CONTROL)
TOKENS = [TOK.decode([index]) for index in range(FIRST, TOK.vocab_size)]
HALVES = ["<", "|", "think>", "im_end|>", "<|im_", "/no_thinkend|>", "[INST", "]", ">", "</"]
HALVES += ["a", " ", "\n", '"', "{", "\\", "\U000e0100", "tool_call>"]
contents = st.lists(st.sampled_from(TOKENS + HALVES * 4), max_size=4).map("".join)
# The modes are what a system message may choose.
modeless = contents.filter(lambda text: "/no_think" not in text and "/think" not in text)


def user(content):
    return {"role": "user", "content": content}


def assistant(content="ok", **more):
    return {"role": "assistant", "content": content, **more}


def result(content):
    return {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": content}


FUNCTION = {"name": "f", "arguments": {"x": 1}}
CALL = assistant(tool_calls=[{"id": "call00001", "type": "function", "function": FUNCTION}])
SHAPES = [
    lambda a, b: [user(a)],
    lambda a, b: [user([{"type": "text", "text": a}, {"type": "text", "text": b}])],
    lambda a, b: [user(a), assistant(), user(b)],
    lambda a, b: [user(a), CALL, result(b), assistant(), user(a)],
    lambda a, b: [user(a), assistant(reasoning_content="hm"), user(b), assistant()],
]


def tool(text):
    properties = {"x": {"type": "integer", "description": text, "title": text}}
    parameters = {"type": "object", "properties": properties, "required": ["x"]}
    function = {"name": "f", "description": text, "parameters": parameters}
    return {"type": "function", "function": function}


def harmless(text):
    """Templates may ask whether there is a text, and leave white space out."""
    return "a" if text.strip() else text


def control(rendered):
    return [index for index in rendered.ids if index >= FIRST]


def assert_nothing_forged(tok, shape, texts, system, tools, enable_thinking):
    def chat(change):
        before = [] if system is None else [{"role": "system", "content": change(system)}]
        options = {} if tools is None else {tools: [tool(change(texts[1]))]}
        messages = before + shape(*map(change, texts))
        return tok.render(messages, enable_thinking=enable_thinking, **options)

    assert control(chat(str)) == control(chat(harmless))


given_chat = given(
    st.sampled_from(SHAPES),
    st.tuples(contents, contents),
    st.none() | modeless,
    st.sampled_from([None, "tools", "python_tools"]),
    st.booleans(),
)
# They refuse a system message, or tools without an image.
NO_SYSTEM = ("gemma.", "gemma_", "llava", "phi3.")


@settings(max_examples=150)
@given_chat
@pytest.mark.parametrize("name", ["ours", "published"])
def test_nothing_is_forged(name, shape, texts, system, tools, enable_thinking):
    assert_nothing_forged(TOKENIZERS[name], shape, texts, system, tools, enable_thinking)


@settings(max_examples=8)
@given_chat
@pytest.mark.parametrize("name", trl_templates())
def test_nothing_is_forged_in_other_templates(name, shape, texts, system, tools, enable_thinking):
    system = None if name.startswith(NO_SYSTEM) else system
    assert_nothing_forged(TOKENIZERS[name], shape, texts, system, tools, enable_thinking)


@pytest.mark.slow
@settings(max_examples=300)
@given_chat
@pytest.mark.parametrize("name", trl_templates())
def test_nothing_is_forged_in_other_templates_many(
    name, shape, texts, system, tools, enable_thinking
):
    system = None if name.startswith(NO_SYSTEM) else system
    assert_nothing_forged(TOKENIZERS[name], shape, texts, system, tools, enable_thinking)


@settings(max_examples=150)
@given(contents, contents, st.booleans())
def test_an_assistant_forges_no_turns(content, reasoning, enable_thinking):
    """Its own messages may hold the tags of reasoning and calls, not what ends or begins turns."""
    tok = TOKENIZERS["ours"]
    special = {i for i in range(FIRST, TOK.vocab_size) if not TOK.decode([i], skip_special=True)}

    def specials(*texts):
        chat = [user("a"), assistant(texts[0], reasoning_content=texts[1]), user("b")]
        rendered = tok.render(chat, enable_thinking=enable_thinking)
        return [index for index in rendered.ids if index in special]

    assert specials(content, reasoning) == specials("a", "a")
