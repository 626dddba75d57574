"""Conversations with services of our own in the form of BFCL's: what is asked, told and judged."""

import json

import pytest
from tests.support.eval_data import Calling, Watching, fake_engine, write

from smollm3.errors import UserError
from smollm3.eval import bfcl_turns
from smollm3.eval.bfcl_turns import FILES, LIMITS, Services, call_of, questions
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.results import measures
from smollm3.eval.target import EngineTarget, Settings

CHAT = Settings(chat=True)
LAMP = """
class GorillaFileSystem:
    def __init__(self):
        self.lit, self._asked = False, 0
    def _load_scenario(self, scenario, long_context=False):
        self.lit = scenario["lit"]
        self.rooms = 9 if long_context else 1
    def switch(self, on):
        self._asked += 1
        self.lit = on
        return {"lit": self.lit}
    def look(self, room="hall"):
        self._asked += 1
        if room != "hall":
            raise ValueError(f"no room {room}")
        return f"It is {'light' if self.lit else 'dark'}."
    def burn(self):
        return "x" * (8 << 30)
"""
OTHER = """
import mpmath
from bfcl_eval.eval_checker.multi_turn_eval.func_source_code.long_context import ANSWER
class {name}:
    def __init__(self):
        self.answer = ANSWER
    def _load_scenario(self, scenario, long_context=False):
        pass
    def logarithm(self, value, base, precision):
        mpmath.mp.dps = precision
        return {{"result": mpmath.log(value) / mpmath.log(base)}}
"""
DOCS = [
    {"name": name, "description": name, "parameters": {"type": "dict", "properties": properties}}
    for name, properties in (
        ("switch", {"on": {"type": "boolean"}}),
        ("look", {"room": {"type": "string"}}),
        ("burn", {}),
    )
]


def row(id_, turns, **more):
    return {
        "id": id_,
        "question": [[{"role": "user", "content": t}] if t else [] for t in turns],
        "initial_config": {"GorillaFileSystem": {"lit": False}},
        "involved_classes": ["GorillaFileSystem", "MathAPI"],
        **more,
    }


@pytest.fixture
def package(tmp_path, monkeypatch):
    root = tmp_path / "bfcl_eval"
    services = root / "eval_checker/multi_turn_eval/func_source_code"
    services.mkdir(parents=True)
    (services / "long_context.py").write_text("ANSWER = 42\n")
    for name, file in FILES.items():
        text = LAMP if name == "GorillaFileSystem" else OTHER.format(name=name)
        (services / f"{file}.py").write_text(text)
        write(root / f"data/multi_turn_func_doc/{file}.json", DOCS if text is LAMP else [])
    base = [row("multi_turn_base_0", ["Light!", "And now?"]), row("multi_turn_base_1", ["Look."])]
    right = {
        "multi_turn_base_0": [["switch(on=True)"], ["look('hall')"]],
        "multi_turn_base_1": [["look()"]],
        "multi_turn_miss_func_0": [[], ["switch(on=True)"]],
    }
    missing = row("multi_turn_miss_func_0", ["Light!", ""], missed_function={"1": ["switch"]})
    for category, rows in (("base", base), ("miss_func", [missing])):
        name = f"BFCL_v4_multi_turn_{category}.json"
        write(root / "data" / name, rows)
        answers = [{"id": r["id"], "ground_truth": right[r["id"]]} for r in rows]
        write(root / "data/possible_answer" / name, answers)

    def file(of, path):
        assert of == "bfcl_eval"
        return root / path

    monkeypatch.setattr("smollm3.eval.bfcl_turns.packaged_file", file)
    return root


def evaluated(tokenizer, out, says, task="bfcl_multi_turn_base", settings=CHAT, **wanted):
    target = Calling(fake_engine(tokenizer), "fake", settings, says)
    with Journal(out / "items.jsonl", {}) as journal:
        return run_tasks(target, Wanted([task], **wanted), settings, journal, Watching())


def right_one(ask):
    """Does what the user wants, and says so."""
    last = ask.prompt.messages[-1]
    if last["role"] == "tool":
        return "Done."
    if last["content"] == "Light!":
        return [("switch", {"on": True})]
    return [("look", {})]


def test_a_conversation_goes_on_until_nothing_is_called(tokenizer, package, tmp_path):
    asked = []
    found = evaluated(tokenizer, tmp_path, lambda ask: asked.append(ask) or right_one(ask))
    accuracy = measures(found)["bfcl_multi_turn_base"]["accuracy,none"]
    assert (accuracy.value, accuracy.n) == (1.0, 2)
    first = [a.prompt.messages for a in asked if a.prompt.messages[0]["content"] == "Light!"]
    roles = [[m["role"] for m in messages] for messages in first]
    told = ["user", "assistant", "tool"]
    both = [*told, "assistant", "user"]
    assert roles == [["user"], told, both, [*both, "assistant", "tool"]]
    assert first[1][1]["tool_calls"][0]["function"] == {
        "name": "switch",
        "arguments": '{"on": true}',
    }
    assert first[1][2]["content"] == '{"lit": true}'
    assert first[3][-1]["content"] == "It is light."
    assert {t["function"]["name"] for t in asked[0].prompt.tools} == {"switch", "look", "burn"}
    target = EngineTarget(fake_engine(tokenizer), "fake", CHAT)
    last = next(
        a
        for a in asked
        if a.prompt.messages[0]["content"] == "Light!" and len(a.prompt.messages) == 7
    )
    seen = tokenizer.decode(target.request(last).ids(tokenizer))
    assert '{"name": "switch", "arguments": {"on": true}}' in seen
    assert seen.index('{"lit": true}') < seen.index("Done.") < seen.index("It is light.")
    again = []
    assert evaluated(tokenizer, tmp_path, again.append)["samples"] == (found["samples"])
    assert again == []  # what was called is called again; the model is not asked


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (lambda ask: "I cannot.", "turn 1: nothing was called"),
        (lambda ask: [("switch", {"on": False})], "it did not end"),
        (lambda ask: [("burn", {})], "it did not end"),
    ],
)
def test_what_is_not_right(tokenizer, package, tmp_path, says, why):
    found = evaluated(tokenizer, tmp_path, says, limit=1)
    (sample,) = found["samples"]["bfcl_multi_turn_base"]
    assert (sample["accuracy"], sample["why"]) == (0.0, why)


def test_a_turn_has_at_most_twenty_steps(tokenizer, package, tmp_path):
    asked = []
    evaluated(tokenizer, tmp_path, lambda ask: asked.append(ask) or [("look", {})], limit=1)
    assert len(asked) == 21


def test_functions_that_come_later(tokenizer, package, tmp_path):
    asked = []

    def says(ask):
        asked.append(ask)
        named = [t["function"]["name"] for t in ask.prompt.tools]
        return (
            right_one(ask)
            if ask.prompt.messages[-1]["role"] == "tool"
            else ([("switch", {"on": True})] if "switch" in named else "I cannot.")
        )

    found = evaluated(tokenizer, tmp_path, says, "bfcl_multi_turn_miss_func")
    assert found["samples"]["bfcl_multi_turn_miss_func"][0]["accuracy"] == 1.0
    assert asked[1].prompt.messages[-1]["content"] == bfcl_turns.NEW_FUNCTIONS


@pytest.fixture
def services(package):
    with Services() as services:
        yield services


@pytest.mark.parametrize(
    ("turns", "why"),
    [
        ([["switch(on=True)"], ["look()"]], ""),
        ([["look()", "switch(on=True)"], ["look()"]], ""),
        ([["switch(on=True)", "look()"], ["look()"]], ""),  # it may look once more
        ([["switch(on=True)", "look()"], ["switch(on=True)"]], ""),  # it was told before
        ([["switch(on=False)"], ["look()"]], "turn 1: GorillaFileSystem is in another state"),
        ([["switch(on=True)"], ["look('attic')"]], "turn 2: not asked for: It is light."),
        ([["switch(on=True)"], []], "turn 2: nothing was called"),
    ],
)
def test_verdicts(services, turns, why):
    question = questions("multi_turn_base")[0]
    steps = [[[call_of(call)] for call in turn] for turn in turns]
    assert services.fault(question, steps) == why


def test_what_the_services_say(services):
    question = questions("multi_turn_base")[0]

    def told(*calls):
        return services.told(question, [[call_of(c)] for c in calls])

    assert told("look('attic')") == ["Error during execution: no room attic"]
    assert told("fly()") == ["Error during execution: name 'fly' is not defined"]
    assert told("_load_scenario({})") == [
        "Error during execution: name '_load_scenario' is not defined"
    ]
    assert told("look(1, 2)")[0].startswith("Error during execution: ")
    assert told("logarithm(8, 2, 5)") == ["{'result': mpf('3.0')}"]
    assert told("switch(on=True)", "look()") == ["It is light."]
    assert told("look()") == ["It is dark."]  # nothing stays of what was called before


def test_a_service_that_does_not_come_back_is_begun_again(services, monkeypatch):
    question = questions("multi_turn_base")[0]
    assert LIMITS.memory < 8 << 30
    found = services.told(question, [[call_of("burn()")]])
    assert found is None or found[0].startswith("Error during execution: ")
    assert services.told(question, [[call_of("look()")]]) == ["It is dark."]


def test_what_is_missing_is_one_line(tokenizer, package, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="bfcl_multi_turn_base: is of chats; add --chat"):
        evaluated(tokenizer, tmp_path, right_one, settings=Settings())
    (package / "eval_checker/multi_turn_eval/func_source_code/math_api.py").write_text("x = y")
    with pytest.raises(UserError, match=r"services of bfcl-eval do not start.*'y' is not defined"):
        evaluated(tokenizer, tmp_path, right_one)
    with pytest.raises(UserError, match=r"not a call of a function: os\.system\('x'\)"):
        call_of("os.system('x')")

    def nothing(*_):
        raise UserError("no sandbox")

    monkeypatch.setattr("smollm3.eval.code.find_sandbox", nothing)
    with pytest.raises(UserError, match="bfcl_multi_turn_base: no sandbox"):
        evaluated(tokenizer, tmp_path, right_one)
    assert json.dumps(call_of("f(1, a='b')")) == '["f", [1], {"a": "b"}]'
