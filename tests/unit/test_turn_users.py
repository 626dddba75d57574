"""Everything that answers conversations gives the same message for the same answer of the model."""

import io
import json
from contextlib import nullcontext
from types import SimpleNamespace

import llm
import pytest
from tests.support.said import said
from tests.support.serving import local

from smollm3.agent import Agent, tool
from smollm3.batch.answers import Answers
from smollm3.batch.run import BatchRun, BatchSettings, read_requests
from smollm3.chat import Message
from smollm3.console.chat import Chat
from smollm3.console.tool_chat import AgentChat
from smollm3.data.synthetic import Item
from smollm3.eval.nano import Suite
from smollm3.infer import Engine, SamplingParams
from smollm3.llm_plugin import SmolLM3

ASK = "What is it?"
SERVED = {}


class Speaking:
    """An engine that writes this text first, and "done" to whatever else it is asked."""

    together = staticmethod(nullcontext)
    chat, _reply = Engine.chat, Engine._reply

    def __init__(self, tokenizer, text, size=3):
        self.tokenizer, self.text, self.size = tokenizer, text, size
        self.config = SimpleNamespace(context=4096, vocab_size=tokenizer.vocab_size)
        self.backend = SimpleNamespace(name="none")
        self.adapters = SimpleNamespace(folders={})
        self.room = 4096
        self.asked = 0

    def submit(self, prompt, params=None, **options):
        self.asked += 1
        text = self.text if self.asked == 1 else "done"
        pieces = [text[i : i + self.size] for i in range(0, len(text), self.size)]
        return said(pieces or [""], prompt_tokens=len(prompt))


@tool(read_only=True)
def add(a: int = 0, b: int = 0) -> int:
    """Add two numbers."""
    return a + b


DECLARED = {"name": "add", "description": "Adds.", "parameters": add.signature["parameters"]}


def by_engine(engine, tools, think, params):
    messages = [{"role": "user", "content": ASK}]
    return engine.chat(
        messages, tools=[DECLARED] if tools else None, enable_thinking=think, params=params
    )


def by_terminal(engine, tools, think, params):
    if not tools:
        talk = Chat(engine, params, think, None, None, interactive=False)
        talk.say(ASK)
        return read(talk.messages[1])
    with Agent(engine, [add]) as agent:
        talk = AgentChat(agent, params, think, None, None, interactive=False)
        talk.say(ASK)
        return read(talk.messages[1])


def by_batch(engine, tools, think, params, tmp_path):
    line = {"messages": [{"role": "user", "content": ASK}], "enable_thinking": think}
    line |= {"tools": [DECLARED]} if tools else {}
    file = io.BytesIO(json.dumps(line).encode())
    with Answers(tmp_path / "answers.jsonl") as answers:
        view = SimpleNamespace(error=pytest.fail, progress=lambda _: None)
        BatchRun(engine, answers, view, 1).run(
            read_requests(file, "x", BatchSettings(params=params))
        )
    return read(json.loads((tmp_path / "answers.jsonl").read_text())["message"])


def by_evaluation(engine, tools, think, params):
    item = Item(ASK, "it", "", tools=(DECLARED,) if tools else ())
    suite = Suite(engine, SimpleNamespace(max_tokens=100), {}, 0, 100)
    return suite._reply(item, think, params).result()


def by_agent(engine, tools, think, params):
    offered = [add] if tools else []
    with Agent(engine, offered, enable_thinking=think, params=params) as agent:
        return read(agent.run([{"role": "user", "content": ASK}]).messages[1])


def by_plugin(engine, tools, think, params):
    model = SmolLM3()
    model.engine = engine
    wanted = SimpleNamespace(name="add", description="Adds.", input_schema=DECLARED["parameters"])
    prompt = SimpleNamespace(
        options=SmolLM3.Options(think=think),
        schema=None,
        tools=[wanted] if tools else [],
        messages=[llm.parts.Message("user", [llm.parts.TextPart(text=ASK)])],
    )
    calls, texts = {}, {"reasoning": "", "text": ""}
    response = SimpleNamespace(set_usage=lambda **_: None, add_tool_call=lambda _: None)
    for event in model.execute(prompt, True, response, None):
        if event.type in texts:
            texts[event.type] += event.chunk
        else:
            part = calls.setdefault(event.tool_call_id, {"name": "", "arguments": ""})
            part["name" if event.type == "tool_call_name" else "arguments"] += event.chunk
    return read({
        "content": texts["text"],
        "reasoning_content": texts["reasoning"] or None,
        "tool_calls": [{"function": call} for call in calls.values()],
    })  # fmt: skip


def by_server(engine, tools, think, params):
    body = {"messages": [{"role": "user", "content": ASK}]}
    body |= {"reasoning_effort": "high" if think else "none", "stop": list(params.stop) or None}
    body |= {"tools": [{"type": "function", "function": DECLARED}]} if tools else {}
    if engine.tokenizer not in SERVED:  # an application takes longer to make than its answer
        SERVED[engine.tokenizer] = local(Speaking(engine.tokenizer, ""))
    client = SERVED[engine.tokenizer]
    vars(client.service.engine).update(vars(engine))
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return read(response.json()["choices"][0]["message"])


def read(message):
    """A message in a dialect of OpenAI's, whose arguments may be JSON text."""
    return (
        message.get("reasoning_content"),
        message["content"] or "",
        [
            (call["function"]["name"], arguments(call["function"]["arguments"]))
            for call in message.get("tool_calls") or ()
        ],
    )


def arguments(given):
    try:
        return json.loads(given) if isinstance(given, str) else given
    except ValueError:
        return given


def told(message):
    if not isinstance(message, Message):
        return message
    return (
        message.reasoning,
        message.content,
        [(call.name, arguments(call.arguments)) for call in message.tool_calls],
    )


USERS = [by_engine, by_terminal, by_batch, by_evaluation, by_agent, by_plugin, by_server]
HAVE_STOPS = [by_engine, by_terminal, by_batch, by_agent, by_server]


def all_say(tokenizer, text, tools, think, tmp_path, users=USERS, stop=(), size=3):
    params = SamplingParams(max_tokens=100, stop=stop)
    found = {}
    for user in users:
        rest = (tmp_path,) if user is by_batch else ()
        found[user.__name__] = told(
            user(Speaking(tokenizer, text, size), tools, think, params, *rest)
        )
    assert len(set(map(repr, found.values()))) == 1, found
    return next(iter(found.values()))


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
TEXTS = [  # 32, with and without tools: 64 cases, each in both modes
    "",
    "plain",
    "\n\nblank lines around\n\n",
    "été 日本 😀",
    "a < b and <b>bold</b>",
    "<think>\nwell\n</think>\nso it is",
    "<think>\n\n</think>\nnothing thought",
    "<think>never closed",
    "<think>\ntwice\n</think>\n<think>\nis once\n</think>\nsaid",
    "  <think>\nbehind blanks\n</think>\nsaid",
    "said first <think>\nis no reasoning\n</think>",
    "</think>\nclosed but never opened",
    f"<think>\n{CALL}\n</think>\na call that was only thought",
    CALL,
    f"wait\n{CALL}",
    f"{CALL}\nafter",
    f"{CALL}\n{OTHER}",
    f"first\n{CALL}\nbetween\n{OTHER}\nlast",
    f"<think>\nsum\n</think>\n{CALL}",
    f"<think>\nsum\n</think>\nwait\n{CALL}\n{OTHER}",
    f"```\n{CALL}\n```",
    f"a quote: `{CALL}`",
    '<tool_call>{"name": "add", "arguments": {}}</tool_call>',
    "<tool_call>\n{'name': 'add', 'arguments': {'a': 1, 'b': None}}\n</tool_call>",
    '<tool_call>\n{"name": "add", "arguments": {"a": 1',
    '<tool_call>\n{"name": "add"}\n</tool_call>',
    "<tool_call>\nno call at all\n</tool_call>",
    "<tool_call>",
    "half a tag <tool_ca",
    "<code>\nprint(1)\n</code>",
    '<tool_call>\n{"name": "unknown", "arguments": {"x": [1, {"y": "}"}]}}\n</tool_call>',
    '{"a": 12}',
]


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_one_message_from_all_seven(tokenizer, tmp_path, text, think):
    all_say(tokenizer, text, True, think, tmp_path)


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize("text", TEXTS)
def test_calls_that_were_not_offered_are_text(tokenizer, tmp_path, text, think):
    reasoning, content, calls = all_say(tokenizer, text, False, think, tmp_path)
    assert not calls
    assert content.count("<tool_call>") + (reasoning or "").count("<tool_call>") == text.count(
        "<tool_call>"
    )


@pytest.mark.parametrize("text", TEXTS[::3])
def test_the_pieces_change_nothing(tokenizer, tmp_path, text):
    whole = all_say(tokenizer, text, True, True, tmp_path / "a", size=1000)
    assert whole == all_say(tokenizer, text, True, True, tmp_path / "b", size=1)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("well\n</think>\nso it is", "well", "so it is"),
        ("never closed", "never closed", ""),
        ("a <tool_call> in thought</think>said", "a <tool_call> in thought", "said"),
    ],
)
def test_a_template_that_opens_the_reasoning(tokenizer, tmp_path, text, reasoning, content):
    end = "{% if mode == '/no_think' %}\n<think>\n\n</think>\n{% endif %}\n{% endif %}"
    template = tokenizer.template.rstrip("\n")
    assert template.endswith(end)
    opening = tokenizer.with_template(template.removesuffix(end) + "<think>\n{% endif %}")
    assert all_say(opening, text, False, True, tmp_path) == (reasoning, content, [])


@pytest.mark.parametrize("think", [True, False])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), (None, "one ", [])),
        ("one two three", ("three", "two th"), (None, "one ", [])),
        ("<think>\ntwo\n</think>\none two", ("two",), ("two", "one ", [])),
        (f"{CALL}\nadd 3", ("add",), (None, "", [("add", {"a": 1, "b": 2})])),
        (f"add\n{CALL}", ("add",), (None, "", [])),
        ("never there", ("two",), (None, "never there", [])),
        ("ends in tw", ("two",), (None, "ends in tw", [])),
    ],
)
def test_stop_texts_end_the_content(tokenizer, tmp_path, text, stop, expected, think):
    reasoning, content, calls = all_say(tokenizer, text, True, think, tmp_path, HAVE_STOPS, stop)
    assert (reasoning, content.strip("\n"), calls) == expected
