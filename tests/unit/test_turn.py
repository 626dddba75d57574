"""Requests, replies and the loop of tools, one at a time."""

import pytest
from tests.support.said import said

from smollm3.chat import ContentDelta
from smollm3.errors import UserError
from smollm3.infer import SamplingParams
from smollm3.infer.constrain.grammars import Json, Tools
from smollm3.infer.errors import UnsupportedConstraint
from smollm3.infer.generation import Channel, Generation, Step
from smollm3.turn import End, Part, Reply, Request, ToolLoop, ToolResult, Usage, submit, wait_all

ASK = [{"role": "user", "content": "What is it?"}]
ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
PYTHON = "<code>\nprint(1)\n</code>"


class Engine:
    """Keeps what it is asked; answers `texts` in turn."""

    def __init__(self, tokenizer, *texts, refuses=()):
        self.tokenizer = tokenizer
        self.texts = list(texts)
        self.room = 320
        self.asked = []
        self.refuses = refuses

    def submit(self, prompt, params, **options):
        if options.get("constraint") in self.refuses:
            raise UnsupportedConstraint("schema: no")
        self.asked.append((prompt, params, options))
        return said([*(self.texts.pop(0) if self.texts else "ok")], prompt_tokens=len(prompt))


def reply(text, reason="stop", opened=False, **request):
    request = Request(ASK, **request)
    return Reply(request, [1], said([*text], reason, prompt_tokens=1), opened, 0)


# requests


def test_a_prompt_is_continued(tokenizer):
    engine = Engine(tokenizer)
    asked = [Request(prompt="a<think>", params=SamplingParams(stop="x")), Request(prompt=[5, 6])]
    submit(engine, asked)
    (text, params, _), (ids, _, _) = engine.asked
    assert text == tokenizer.encode("a<think>")
    assert params.stop == ("x",)
    assert ids == [5, 6]


def test_stop_texts_of_a_conversation_are_not_the_engines(tokenizer):
    engine = Engine(tokenizer)
    Request(ASK, params=SamplingParams(stop="x", n=1)).submit(engine)
    assert engine.asked[0][1].stop == ()


def test_n_answers_with_their_seeds(tokenizer):
    engine = Engine(tokenizer, "a", "b", "c")
    params = SamplingParams(n=2, seed=4)
    replies = submit(engine, [Request(ASK, params=params), Request(ASK)])
    assert [r.result().content for r in replies] == ["a", "b", "c"]
    assert [r.index for r in replies] == [0, 1, 2]
    assert [p.seed for _, p, _ in engine.asked[:2]] == [one.seed for one in params.choices()]


@pytest.mark.parametrize(("most", "given"), [(3, 3), (10_000, 300)])
def test_max_tokens_fit_the_cache(tokenizer, most, given):
    engine = Engine(tokenizer)
    params = SamplingParams(max_tokens=most)
    submit(engine, [Request(prompt=[1] * 20, params=params, fit=True)])
    submit(engine, [Request(prompt=[1] * 20, params=params)])
    assert [p.max_tokens for _, p, _ in engine.asked] == [given, most]


def test_forbidden_calls(tokenizer):
    engine = Engine(tokenizer)
    tags = tokenizer.tags
    for offered in ({}, {"tools": [ADD]}, {"tools": [ADD], "python_tools": [ADD]}):
        request = Request(ASK, **offered, may_call=False)
        request.submit(engine)
        assert request.parser().feed(f"{CALL}{PYTHON} ") == [ContentDelta(f"{CALL}{PYTHON} ")]
    banned = [set(p.logit_bias) for _, p, _ in engine.asked]
    assert banned == [{tags["<tool_call>"]}] * 2 + [{tags["<tool_call>"], tags["<code>"]}]


def test_an_optional_constraint_is_left_out_where_it_cannot_be_had(tokenizer):
    schema = Json({"type": "object"})
    engine = Engine(tokenizer, refuses=[schema])
    with pytest.raises(UnsupportedConstraint):
        Request(ASK, constraint=schema).submit(engine)
    Request(ASK, constraint=schema, optional=True, thinking_budget=4).submit(engine)
    assert engine.asked[0][2] == {"thinking_budget": 4}


def test_where_one_cannot_be_asked_none_is(tokenizer):
    schema = Json({"type": "object"})
    engine = Engine(tokenizer, refuses=[schema])
    cancelled = []
    started = engine.submit
    engine.submit = lambda *a, **k: watch(started(*a, **k), cancelled)
    with pytest.raises(UserError):
        submit(engine, [Request(ASK), Request(ASK, constraint=schema)])
    assert cancelled


def watch(generation, cancelled):
    generation.cancel = lambda: cancelled.append(1)
    return generation


# replies


def test_parts_add_up_to_the_message():
    one = reply(f"<think>\nwell\n</think>\nso {CALL}", tools=[ADD])
    *parts, end = one
    assert all(isinstance(part, Part) for part in parts)
    assert "".join(part.text for part in parts) == one.text
    assert [b.kind for b in one.blocks.all] == ["reasoning", "content", "call"]
    assert isinstance(end, End)
    assert (end.reason, end.stop) == ("tool_calls", None)
    reasoning = len("<think>\nwell\n</think>") - len("<think>") + 1  # the letters of a tag are one
    assert end.usage == Usage(1, 0, len(one.steps), reasoning)
    assert one.message.reasoning == "well"
    assert one.result() is not None  # again, at once


def test_reasoning_that_the_prompt_began():
    one = reply("well</think>so", opened=True)
    assert one.result().reasoning == "well"
    assert one.usage.reasoning == len("well</think>")


@pytest.mark.parametrize(
    ("text", "shown", "content"),
    [
        ("one two three", "one ", "one "),
        ("<think>two</think>one two", "<think>two</think>one ", "one "),
        (f"{CALL}two", CALL, ""),
        ("one tw", "one tw", "one tw"),
    ],
)
def test_a_stop_text_is_not_shown(text, shown, content):
    one = reply(text, tools=[ADD], params=SamplingParams(stop="two"))
    assert "".join(one.texts()) == shown
    assert one.message.content == content
    assert one.end.stop == ("two" if text.endswith(("two", "three")) else None)


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_a_call_in_an_answer_that_was_cut_is_not_its_end(reason):
    one = reply(CALL[:-15], reason, tools=[ADD])
    assert one.result().tool_calls
    assert one.reason == reason


def test_a_stop_text_ends_what_nobody_has_read(tokenizer):
    """Else each of many would run on until its turn."""
    channel, cancelled = Channel(1), []
    generation = Generation(channel, None, lambda: cancelled.append(1))
    one = Reply(Request(ASK, params=SamplingParams(stop="two")), [1], generation, False, 0)
    plain = Reply(Request(ASK), [1], said(["one two"]), False, 1)
    assert not one.advance()
    assert plain.advance()
    assert not plain.steps  # nothing of it can end it early
    channel.push(Step(1, "one ", -0.1), None)
    assert not one.advance()
    channel.push(Step(2, "two three", -0.1), None)
    channel.push(Step(3, " four", -0.1), None)  # the engine was faster
    wait_all([one, plain])
    assert len(one.steps) == 2
    assert cancelled == [1]
    assert [r.result().content for r in (one, plain)] == ["one ", "one two"]


# the loop


def results(calls):
    return [ToolResult(call, "1", True) for call in calls]


def test_the_loop_goes_on_with_results():
    loop = ToolLoop(Request(ASK, tools=[ADD], constraint=Tools([ADD], "required")))
    assert loop.request.constraint.choice == "required"
    first = reply(f"wait\n{CALL}\n{CALL}", tools=[ADD])
    first.result()
    calls = loop.feed(first)
    assert [call.id for call in calls] == ["call00001", "call00002"]
    loop.results(results(calls))
    assert loop.request.constraint.choice == "auto"
    assert [m["role"] for m in loop.request.messages] == ["user", "assistant", "tool", "tool"]
    last = reply("it is 1", tools=[ADD])
    last.result()
    assert loop.feed(last) == ()
    assert (loop.request, loop.reason) == (None, "stop")
    assert loop.messages[-1]["content"] == "it is 1"


@pytest.mark.parametrize("form", [None, Json()])
def test_the_last_step_does_without_calls(form):
    loop = ToolLoop(Request(ASK, tools=[ADD], constraint=Tools([ADD], answer=form)), 2)
    first = reply(CALL, tools=[ADD])
    first.result()
    loop.results(results(loop.feed(first)))
    assert not loop.request.may_call
    assert loop.request.constraint == form
    last = reply(CALL, may_call=False, tools=[ADD])
    last.result()
    assert loop.feed(last) == ()
    assert loop.reason == "steps"
    assert loop.messages[-1] == {"role": "assistant", "content": CALL}


def test_a_call_of_others_ends_the_loop():
    loop = ToolLoop(Request(ASK, tools=[ADD]), ours=lambda call: call.name == "python")
    one = reply(f"{PYTHON}\n{CALL}", tools=[ADD], python_tools=[ADD])
    one.result()
    calls = loop.feed(one)
    assert [call.name for call in calls] == ["python", "add"]
    loop.results(results(calls[:1]))
    assert (loop.request, loop.reason) == (None, "tool_calls")


@pytest.mark.parametrize("reason", ["length", "cancelled"])
def test_what_was_cut_calls_nothing(reason):
    loop = ToolLoop(Request(ASK, tools=[ADD]))
    one = reply(CALL, reason, tools=[ADD])
    one.result()
    assert loop.feed(one) == ()
    assert (loop.request, loop.reason) == (None, reason)


def test_steps_share_their_tokens():
    loop = ToolLoop(Request(ASK, tools=[ADD]), tokens=len(CALL) + 5)
    assert loop.request.params.max_tokens == len(CALL) + 5
    one = reply(CALL, tools=[ADD])
    one.result()
    loop.results(results(loop.feed(one)))
    assert loop.request.params.max_tokens == 5
    loop = ToolLoop(Request(ASK, tools=[ADD]), tokens=len(CALL))
    loop.results(results(loop.feed(one)))
    assert (loop.request, loop.reason) == (None, "length")


@pytest.mark.parametrize("cut", range(7))
def test_a_begun_answer_is_gone_on_from(cut):
    """Prefill and content are the whole text, wherever it was cut."""
    text = "a:\n\n<b"
    found = reply("\n" + "c < d" if cut == 3 else text[cut:] + "c", prefill=text[:cut])
    found.result()
    rest = "\nc < d" if cut == 3 else text[cut:] + "c"
    assert text[:cut] + found.message.content == text[:cut] + rest
