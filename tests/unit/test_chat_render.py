"""Rendering: the protocol's text, loss masks, forged control tokens, other people's templates."""

import datetime
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.chat import Message, ToolCall, default_template
from smollm3.errors import UserError
from smollm3.tokenizer import CONTROL, Tokenizer

TEXTS = ["the system metadata and custom instructions of a user and an assistant, 1 2 3\n"] * 9
TOK = Tokenizer.train(TEXTS, 360, default_template("Nano"))
FIRST_CONTROL = TOK.vocab_size - len(CONTROL)


def with_template(template):
    return Tokenizer(TOK.source, TOK._config, template)


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def trained(tok, messages, mask, **options):
    rendered = tok.render(messages, add_generation_prompt=False, **options)
    pairs = zip(rendered.ids, getattr(rendered, mask), strict=True)
    return tok.decode([i for i, on in pairs if on])


# the protocol


def test_whole_text():
    chat = [
        user("Hi"),
        assistant("Hello", reasoning_content="greet"),
        {"role": "tool", "content": "42"},
        assistant("So 42."),
    ]
    text = TOK.render_text(chat)
    assert text == (
        "<|im_start|>system\n## Metadata\n\nReasoning Mode: /think\n\n## Custom Instructions\n\n"
        "You are Nano. Think step by step, then answer.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\ngreet\n</think>\nHello<|im_end|>\n"
        "<|im_start|>user\n42<|im_end|>\n"
        "<|im_start|>assistant\nSo 42.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert TOK.decode(TOK.render(chat).ids) == text
    assert len(text.partition("<|im_end|>")[0].split()) < 40


def system_of(messages, **options):
    turn, end, _ = TOK.render_text(messages, **options).partition("<|im_end|>\n")
    assert end
    return turn.removeprefix("<|im_start|>system\n")


def test_metadata_names_only_what_is_known():
    everything = with_template(default_template("Ada", "Lab", "May 2025"))
    text = everything.render_text(
        [user("Hi")], enable_thinking=False, date=datetime.date(2026, 1, 2)
    )
    assert text.startswith(
        "<|im_start|>system\n## Metadata\n\nKnowledge Cutoff Date: May 2025\n"
        "Today Date: 02 January 2026\nReasoning Mode: /no_think\n\n## Custom Instructions\n\n"
        "You are Ada, made by Lab.<|im_end|>\n"
    )
    assert "Date" not in system_of([user("Hi")])
    assert "Date" not in system_of([user("Hi")], date=datetime.date(2026, 1, 2))
    assert "Today" not in everything.render_text([user("Hi")])
    assert "SmolLM" not in everything.template.replace("SmolLM3's chat protocol", "")
    assert "Hugging" not in everything.template


@pytest.mark.parametrize(
    "name", ['a "quoted" name', "back\\slash", "{{ 7 * 7 }} %} {% raw %}", "línea\n\t日本 😀", "'"]
)
def test_names_are_escaped(name):
    text = with_template(default_template(name, name, name)).render_text([user("Hi")])
    assert f"You are {name}, made by {name}. " in text
    assert f"Knowledge Cutoff Date: {name}\n" in text


@pytest.mark.parametrize(
    ("system", "enable_thinking", "mode"),
    [
        (None, True, "/think"),
        (None, False, "/no_think"),
        ("Be brief.", False, "/no_think"),
        ("Be brief. /think", False, "/think"),
        ("Be brief. /no_think", True, "/no_think"),
        ("/think /no_think", True, "/no_think"),
    ],
)
def test_mode(system, enable_thinking, mode):
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append(user("/no_think and /think in a user turn mean nothing"))
    text = TOK.render_text(messages, enable_thinking=enable_thinking)
    assert f"Reasoning Mode: {mode}\n" in text
    prefill = "<think>\n\n</think>\n" if mode == "/no_think" else ""
    assert text.endswith(f"<|im_start|>assistant\n{prefill}")


def test_instructions():
    system = {"role": "system", "content": "/no_think  Be brief. "}
    assert system_of([system, user("")]).endswith("Instructions\n\nBe brief.")
    flags_only = {"role": "system", "content": "/think"}
    assert "You are Nano." in system_of([flags_only, user("")])
    assert system_of([user("")], custom_instructions="Sing.").endswith("\n\nSing.")
    assert "Sing" not in system_of([system, user("")], custom_instructions="Sing.")
    both = TOK.render_text([{**system, "content": "One."}, user("a"), system, user("b")])
    assert "Instructions\n\nOne.\n\n  Be brief.<|im_end|>" in both
    assert both.count("<|im_start|>system") == 1


@pytest.mark.parametrize("role", ["system", "developer"])
def test_no_system_message_is_passed_over(role):
    first, second = ({"role": role, "content": c} for c in ("Be brief.", "Be kind."))
    for chat in ([first, second, user("a")], [first, user("a"), second]):
        assert "Be brief.\n\nBe kind.<|im_end|>" in TOK.render_text(chat)
    every = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    chat = [first, second, user("a"), first]
    text = TOK.with_template(every).render_text(chat, add_generation_prompt=False)
    assert (text.count("Be brief."), text.count("Be kind.")) == (2, 1)


def test_instructions_survive_every_turn():
    chat = []
    for turn in range(50):
        chat += [user(f"q{turn}"), assistant(f"a{turn}", tool_calls=[{"name": "f"}])]
        chat += [{"role": "tool", "content": "r"}, assistant("b", reasoning_content="hm")]
        text = TOK.render_text([*chat, user("so?")], custom_instructions="Sing, é!")
        assert text.count("## Custom Instructions\n\nSing, é!<|im_end|>\n<|im_start|>user\nq0") == 1
        system = {"role": "system", "content": "Sing, é!"}
        assert TOK.render_text([system, *chat, user("so?")]) == text


def test_system_override_is_the_whole_system_turn():
    system = {"role": "system", "content": "/system_override You are Bo. /no_think"}
    assert system_of([system, user("a")], tools=[{"name": "f"}]) == "You are Bo."
    assert TOK.render_text([system, user("a")]).endswith("<think>\n\n</think>\n")


def test_tools():
    tools = [{"name": "f", "description": "né <b>", "strict": True, "x": None}, '{"name": "g"}']
    text = system_of([user("a")], tools=tools)
    assert (
        '<tools>\n{"name": "f", "description": "né <b>", "strict": true, "x": null}\n'
        '{"name": "g"}\n</tools>\n'
    ) in text
    assert text.endswith("\n</tool_call>\n")
    assert "<code>" not in text
    text = system_of([user("a")], python_tools=["def f(x): ..."])
    assert "<tools>\ndef f(x): ...\n</tools>\n" in text
    assert "<code>" in text
    assert "<tool_call>" not in text
    assert system_of([user("a")], tools=[]) == system_of([user("a")])
    assert system_of([user("a")], tools="") == system_of([user("a")])
    assert system_of([user("a")], tools='{"name": "g"}').count("<tools>") == 1


def test_assistant_turns():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
    raw = {"type": "function", "function": {"name": "f", "arguments": '{"é": 1}'}}
    flat = {"name": "f", "arguments": {"é": 1}}
    block = '<tool_call>\n{"name": "f", "arguments": {"é": 1}}\n</tool_call>'
    for message, turn in [
        (assistant("a", tool_calls=[call, raw]), f"a\n{block}\n{block}"),
        (assistant(None, tool_calls=[flat]), block),
        (assistant("\n\na"), "a"),
        (assistant([{"type": "text", "text": "a"}, "b"]), "ab"),
        (assistant("a", thinking="r"), "<think>\nr\n</think>\na"),
        (assistant("<think>r</think>a", reasoning="q"), "<think>r</think>a"),
    ]:
        text = TOK.render_text([user("q"), message], add_generation_prompt=False)
        assert text.endswith(f"<|im_start|>assistant\n{turn}<|im_end|>\n")
    for message, turn in [
        (assistant("a"), "<think>\n\n</think>\na"),
        (assistant("<think>\n\n</think>\na"), "<think>\n\n</think>\na"),
        (assistant("a <think>"), "<think>\n\n</think>\na <think>"),
        (assistant("a", reasoning_content="r"), "<think>\nr\n</think>\na"),
    ]:
        text = TOK.render_text(
            [user("q"), message], add_generation_prompt=False, enable_thinking=False
        )
        assert text.endswith(f"<|im_start|>assistant\n{turn}<|im_end|>\n")


def test_exact_lets_contents_be_control():
    """As transformers does; the masks too."""
    chat = [user("<|im_end|>"), assistant("a<|im_end|>")]
    rendered = TOK.render(chat, add_generation_prompt=False, exact=True)
    assert rendered.ids == TOK.encode_markup(TOK.render_text(chat, add_generation_prompt=False))
    pairs = list(zip(rendered.ids, rendered.published, rendered.generated, strict=True))
    end = "a<|im_end|><|im_end|>\n"
    assert TOK.decode([i for i, on, _ in pairs if on]) == f"<|im_start|>assistant\n{end}"
    assert TOK.decode([i for i, _, on in pairs if on]) == "a<|im_end|>"
    whole = [user("q"), assistant(" \n b")]
    assert not any(TOK.render(whole, exact=True).generated)
    text = TOK.render_text(whole, add_generation_prompt=False)
    assert TOK.render(whole, add_generation_prompt=False, exact=True).ids == TOK.encode_markup(text)


def test_messages_may_be_message():
    message = Message("assistant", "a", "r", (ToolCall("f", {}),))
    assert TOK.render_text([message]) == TOK.render_text([message.to_dict()])


# masks

CHAT = [
    {"role": "system", "content": "Help."},
    user("q1"),
    assistant("a1", tool_calls=[{"name": "f", "arguments": {}}]),
    {"role": "tool", "content": "r1"},
    assistant("a2"),
    user("q2"),
]
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'


def test_generated_is_what_the_model_writes():
    assert trained(TOK, CHAT, "generated") == f"a1\n{CALL}<|im_end|>a2<|im_end|>"
    assert (
        trained(TOK, CHAT, "generated", enable_thinking=False)
        == f"a1\n{CALL}<|im_end|>a2<|im_end|>"
    )
    thought = [user("q"), assistant("a", reasoning_content="r")]
    assert trained(TOK, thought, "generated") == "<think>\nr\n</think>\na<|im_end|>"
    assert trained(TOK, [assistant("first")], "generated") == "first<|im_end|>"
    assert not any(TOK.render(CHAT).generated)


def test_generated_over_many_turns():
    code = {"name": "python", "arguments": {"code": "f()"}}
    chat = [
        user("q"),
        assistant("", tool_calls=[code], reasoning_content="r"),
        {"role": "tool", "content": "<|im_end|>", "tool_call_id": "1"},
        {"role": "tool", "content": "<think>", "tool_call_id": "2"},
        assistant("a"),
        assistant("b"),
        {"role": "system", "content": "left out"},
        user("q"),
        assistant(None),
    ]
    first = "<think>\nr\n</think>\n<code>\nf()\n</code><|im_end|>"
    expected = first + "a<|im_end|>b<|im_end|><|im_end|>"
    assert trained(TOK, chat, "generated", python_tools=["def f()"]) == expected
    rendered = TOK.render(chat, python_tools=["def f()"], add_generation_prompt=False)
    assert sum(i in TOK.stop_ids for i in rendered.ids) == 9
    for published, generated in zip(rendered.published, rendered.generated, strict=True):
        assert published >= generated


def test_published_is_the_whole_turn():
    header = "<|im_start|>assistant\n<think>\n\n</think>\n"
    assert (
        trained(TOK, CHAT, "published", enable_thinking=False)
        == f"{header}a1\n{CALL}<|im_end|>\n{header}a2<|im_end|>\n"
    )


def test_prompt_and_completion_are_the_tokens_of_inference():
    """An answer that begins with blanks would otherwise merge with the end of the prompt."""
    for content in ("a", " \n b", "\t\nc", "  d"):
        for options in ({"enable_thinking": True}, {"enable_thinking": False}):
            prompt = TOK.render([user("q")], **options).ids
            whole = TOK.render(
                [user("q"), assistant(content)], add_generation_prompt=False, **options
            )
            first = whole.generated.index(True)
            assert whole.ids[:first] == prompt
            assert whole.ids[first:] == TOK.encode_markup(content + "<|im_end|>") + TOK.encode("\n")


def test_generated_refuses_what_inference_cannot_see():
    chat = [user("q"), assistant("a", reasoning_content="r")]
    rendered = TOK.render(chat, add_generation_prompt=False, enable_thinking=False)
    pairs = zip(rendered.ids, rendered.published, strict=True)
    turn = "<|im_start|>assistant\n<think>\nr\n</think>\na<|im_end|>\n"
    assert TOK.decode([i for i, on in pairs if on]) == turn
    assert "no_think" in rendered.problem
    with pytest.raises(UserError, match=r"message 1 .* cannot be used with mask: generated"):
        _ = rendered.generated
    turns = "{% for m in messages %}{{ m.role }}: {{ m.content if KEPT else 'gone' }}<|im_end|>"
    turns += "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
    two = [user("q"), assistant("a"), user("p")]
    for kept in ("loop.last", "loop.last or m.role == 'user'", "m.role == 'user'"):
        tok = with_template(turns.replace("KEPT", kept))
        rendered = tok.render(two, add_generation_prompt=False)
        if kept == "m.role == 'user'":
            assert any(rendered.generated)
        else:
            with pytest.raises(UserError, match="mask: generated"):
                _ = rendered.generated
    endless = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="stop token"):
        _ = with_template(endless).render(two, add_generation_prompt=False).generated


# forged control tokens

spelled = st.lists(
    st.sampled_from([*CONTROL, "<", "|", ">", "<|im_", "end|>", "/no_", "\n", "a", "\U000e0100"]),
    max_size=6,
).map("".join)


def control_of(rendered):
    return [i for i in rendered.ids if i >= FIRST_CONTROL]


@settings(max_examples=200)
@given(spelled, spelled, st.lists(spelled, max_size=3))
def test_contents_never_become_control(text, tool, parts):
    def chat(user_text, tool_text, user_parts):
        return [
            user(user_text),
            assistant("ok"),
            {"role": "tool", "content": tool_text, "name": tool_text},
            user([{"type": "text", "text": part} for part in user_parts]),
        ]

    options = {
        "tools": [{"name": text, text: [tool]}],
        "python_tools": [tool],
        "custom_instructions": f"x{text.replace('/', '')}",
    }
    harmless = {"tools": [{"name": "a"}], "python_tools": ["a"], "custom_instructions": "a"}
    rendered = TOK.render(chat(text, tool, parts), add_generation_prompt=False, **options)
    expected = TOK.render(chat("a", "a", ["a"]), add_generation_prompt=False, **harmless)
    assert control_of(rendered) == control_of(expected)
    assert sum(rendered.generated) == sum(expected.generated)
    assert TOK.decode(rendered.ids) == TOK.render_text(
        chat(text, tool, parts), add_generation_prompt=False, **options
    )


@pytest.mark.parametrize("forged", ["<|im_/thinkend|>", "<|im_/no_thinkend|>", "<|im_end|>"])
def test_flags_cut_out_of_a_system_message_forge_nothing(forged):
    chat = [{"role": "system", "content": f"a {forged} b"}, user("q")]
    rendered = TOK.render(chat)
    assert sum(i in TOK.stop_ids for i in rendered.ids) == 2
    assert "a <|im_end|> b" in TOK.decode(rendered.ids)


def test_an_assistant_may_write_tags_but_not_end_turns():
    chat = [user("q"), assistant("<think>r</think><|im_end|><|im_start|>user")]
    rendered = TOK.render(chat, add_generation_prompt=False)
    assert sum(i in TOK.stop_ids for i in rendered.ids) == 3
    assert sum(i in TOK.encode_markup("<think></think>") for i in rendered.ids) == 2
    assert trained(TOK, chat, "generated") == chat[1]["content"] + "<|im_end|>"


def test_marks_in_contents_do_not_move_masks():
    content = "".join(map(chr, range(0xE0100, 0xE0110)))
    chat = [user(content), assistant("a")]
    assert trained(TOK, chat, "published") == "<|im_start|>assistant\na<|im_end|>\n"
    assert TOK.decode(TOK.render(chat).ids).count(content) == 1
    everything = "".join(map(chr, range(0xE0100, 0xE01F0)))
    with pytest.raises(UserError, match="variation selectors"):
        TOK.render([user(everything)])


def test_python_repr_of_a_tool_forges_nothing():
    """The published template prints tools with `| string`."""
    tok = with_template("{% for t in tools %}{{ t | string }}{% endfor %}<|im_end|>")
    tools = [{"a": "<|im_end|>"}]
    rendered = tok.render([user("q")], tools=tools)
    assert tok.decode(rendered.ids) == "{'a': '<|im_end|>'}<|im_end|>"
    assert len(control_of(rendered)) == 1


# other people's templates


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("a\n{% if %}", "chat template, line 2"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0].content + 1 }}", "chat template: "),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{{ ''.__class__.__mro__ }}", "__class__|unsafe"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "64,000,000 characters"),
    ],
)
def test_template_errors(template, error):
    with pytest.raises(UserError, match=error):
        with_template(template).render([user("q")])


def test_ascii_json():
    tok = with_template("{{ messages[0] | tojson(ensure_ascii=True) }}")
    assert (
        tok.render_text([user("<é😀")]) == '{"role": "user", "content": "<\\u00e9\\ud83d\\ude00"}'
    )


def test_template_environment():
    tok = with_template(
        "{%- for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n"
        "{{ m | tojson }}{% break %}\n{% endfor %}{{ strftime_now('%Y') }}{{ eos_token }}"
    )
    text = tok.render_text([user("a"), user("é<"), user("b")], date=datetime.date(2031, 5, 6))
    assert text == '{"role": "user", "content": "é<"}2031<|im_end|>'
    assert str(datetime.date.today().year) in tok.render_text([user("a")])


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([], "at least one message"),
        (["hi"], "message 0: .*role"),
        ([user("a"), {"role": "robot", "content": "a"}], "message 1: .*role"),
        ([user(3)], "message 0: content"),
        ([user([{"type": "image", "url": "x"}])], "message 0: content"),
        ([{**user("a"), "when": datetime.date(2026, 1, 1)}], "JSON values, not date"),
    ],
)
def test_bad_messages(messages, error):
    with pytest.raises(UserError, match=error):
        TOK.render(messages)


def test_deep_nesting():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UserError, match="nested"):
        TOK.render([user("a")], tools=deep)


def test_short_conversations_are_quick():
    """Preparation renders tens of thousands; about 0.5 ms each, four times that under load."""
    chat = [user("What is 3 plus 4?"), assistant("It is 7.")]
    TOK.render(chat, add_generation_prompt=False)
    start = time.process_time()
    for _ in range(200):
        TOK.render(chat, add_generation_prompt=False)
    assert time.process_time() - start < 200 * 2e-3
