"""The Berkeley function-calling leaderboard (v4): its conversations of several turns.

A model is told what its calls give by simulated services, and goes on until it calls nothing; then
the next turn comes. Data and services are the files of the package bfcl-eval; the services are
Python programs, which run in the sandbox (`bfcl_world`). Judged by the rules of its own checker:
the state that the services are left in, and what was told, turn by turn; a turn of more than 20
steps fails.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import Any

from smollm3.agent.sandbox import Interpreter, Limits, StartError, find_sandbox
from smollm3.errors import UserError
from smollm3.eval.bfcl import json_rows, tool_messages, tool_name, tools
from smollm3.eval.code import need_sandbox
from smollm3.eval.target import Answered, Ask, Prompt, Settings, ask_by
from smollm3.files import packaged_file

CATEGORIES = tuple(f"multi_turn_{n}" for n in ("base", "miss_func", "miss_param", "long_context"))
STEPS = 20  # of a turn
# Of the services: class -> its module, which its description is named after too.
FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
# What the user says where a turn only brings functions that were missing before.
NEW_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"
LIMITS = Limits(seconds=20.0, cpu_seconds=3600, memory=2 << 30, output=900_000, threads=1, calls=0)
Call = tuple[str, list[Any], dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """turns: messages of each. functions: of each turn, those that are offered from then on.
    right: the calls of each turn. item: what `bfcl_world` makes the services of."""

    id: str
    turns: list[list[dict[str, Any]]]
    functions: list[list[dict[str, Any]]]
    right: list[list[Call]]
    item: dict[str, Any]


def questions(category: str) -> list[Question]:
    """UserError where the package is not installed, or no sandbox is here."""
    need_sandbox(f"bfcl_{category}")
    name = f"BFCL_v4_{category}.json"
    rows = json_rows(packaged_file("bfcl_eval", f"data/{name}"))
    answers = json_rows(packaged_file("bfcl_eval", f"data/possible_answer/{name}"))
    right = {row["id"]: row["ground_truth"] for row in answers}
    described = {
        service: list(json_rows(packaged_file("bfcl_eval", f"data/multi_turn_func_doc/{f}.json")))
        for service, f in FILES.items()
    }
    return [_question(row, right[row["id"]], described) for row in rows]


def _question(
    row: Mapping[str, Any], right: list[list[str]], described: Mapping[str, list[dict[str, Any]]]
) -> Question:
    functions = [f for service in row["involved_classes"] for f in described[service]]
    later = {int(turn): names for turn, names in row.get("missed_function", {}).items()}
    missing = {name for names in later.values() for name in names}
    offered = [f for f in functions if f["name"] not in missing]
    of_turns, turns = [], []
    for turn, messages in enumerate(row["question"]):
        offered = offered + [f for f in functions if f["name"] in later.get(turn, ())]
        of_turns.append(offered)
        turns.append(messages or [{"role": "user", "content": NEW_FUNCTIONS}])
    item = {
        "classes": row["involved_classes"],
        "config": row["initial_config"],
        "long_context": "long_context" in row["id"],
    }
    return Question(row["id"], turns, of_turns, [[call_of(c) for c in t] for t in right], item)


def call_of(text: str) -> Call:
    """A call as the file spells it: name(1, key='value')."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise UserError(f"bfcl: not a call of a function: {text}")
    by_name = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    return call.func.id, [ast.literal_eval(each) for each in call.args], by_name


class Services:
    """The simulated services, in an interpreter of the sandbox that is begun again where one of
    them does not come back."""

    def __init__(self) -> None:
        self._interpreter: Interpreter | None = None

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def told(self, question: Question, steps: Sequence[Sequence[Call]]) -> list[str] | None:
        """What the last step's calls give; None where the services did not come back."""
        found: list[str] | None = self._ask("told", question.item, steps)
        return found

    def fault(self, question: Question, turns: Sequence[Sequence[Sequence[Call]]]) -> str:
        """Why the turns are not right; "" where they are."""
        found = self._ask("fault", question.item, turns, question.right)
        return "the services did not come back" if found is None else str(found)

    def _ask(self, function: str, *arguments: Any) -> Any:
        if self._interpreter is None:
            self._interpreter = _begun()
        told = ", ".join(f"json.loads({json.dumps(each)!r})" for each in arguments)
        run = self._interpreter.run(f"json.dumps({function}({told}))")
        if run.ended:
            self._end()
        if not run.ok or run.value is None:
            return None
        return json.loads(ast.literal_eval(run.value))

    def _end(self) -> None:
        if self._interpreter is not None:
            self._interpreter.close()
        self._interpreter = None


def _begun() -> Interpreter:
    names = ["long_context", *FILES.values()]
    folder = "eval_checker/multi_turn_eval/func_source_code"
    files = {name: packaged_file("bfcl_eval", f"{folder}/{name}.py") for name in names}
    sources = {name: Path(file).read_text(encoding="utf-8") for name, file in files.items()}
    world = resources.files("smollm3.eval").joinpath("bfcl_world.py").read_text(encoding="utf-8")
    interpreter = find_sandbox().interpreter(limits=LIMITS)
    try:
        run = interpreter.run(f"{world}\n\nload({sources!r}, {FILES!r})\n")
    except StartError as e:
        raise UserError(f"the sandbox does not start: {e}") from None
    if not run.ok:
        interpreter.close()
        raise UserError(f"bfcl: the services of bfcl-eval do not start: {run.text[-300:]}")
    return interpreter


@dataclass
class Conversation:
    """turns: those that are over or begun, of steps of calls. over: nothing is asked any more;
    forced: since a turn took too many steps, or the services did not come back."""

    question: Question
    messages: list[dict[str, Any]] = field(default_factory=list)
    turns: list[list[list[Call]]] = field(default_factory=list)
    over: bool = False
    forced: bool = False

    def next_turn(self) -> None:
        if len(self.turns) == len(self.question.turns):
            self.over = True
            return
        self.messages += self.question.turns[len(self.turns)]
        self.turns.append([])

    def ask(self, settings: Settings, max_tokens: int) -> Ask:
        offered = self.question.functions[len(self.turns) - 1]
        prompt = Prompt(messages=tuple(self.messages), tools=tuple(tools(offered)))
        return ask_by(settings, prompt, max_tokens)

    def take(self, written: Mapping[str, Any], services: Services) -> None:
        """An answer: its calls are made, or the next turn begins."""
        calls: list[Call] = [
            (_plain_name(self.question, call["name"]), [], call["arguments"])
            for call in written["calls"]
            if isinstance(call["arguments"], dict)
        ]
        if not calls:
            self.messages.append({"role": "assistant", "content": written["text"]})
            self.next_turn()
            return
        self.turns[-1].append(calls)
        steps = [step for turn in self.turns for step in turn]
        results = services.told(self.question, steps)
        if results is None or len(self.turns[-1]) > STEPS:
            self.over = self.forced = True
            return
        made = [(tool_name(name), arguments) for name, _, arguments in calls]
        self.messages += tool_messages(written["text"], made, results, len(steps))


def _plain_name(question: Question, name: str) -> str:
    """A function's own name, of the one that the model is shown."""
    named = (f["name"] for turn in question.functions for f in turn)
    return next((own for own in named if tool_name(own) == name), name)


def samples(
    asked: Sequence[Question], settings: Settings, max_tokens: int, answer: Answered
) -> list[dict[str, Any]]:
    """Hold the conversations, a step of each at a time, and judge them: samples in the harness's
    form."""
    conversations = [Conversation(question) for question in asked]
    for each in conversations:
        each.next_turn()
    with Services() as services:
        while running := [each for each in conversations if not each.over]:
            written = answer([each.ask(settings, max_tokens) for each in running])
            for each, found in zip(running, written, strict=True):
                each.take(found, services)
        return [_sample(each, services) for each in conversations]


def _sample(conversation: Conversation, services: Services) -> dict[str, Any]:
    question = conversation.question
    why = "it did not end" if conversation.forced else services.fault(question, conversation.turns)
    return {
        "doc_id": question.id,
        "doc": {"question": question.turns, "functions": question.functions[-1]},
        "target": question.right,
        "resps": [[conversation.messages]],
        "filtered_resps": [conversation.turns],
        "filter": "none",
        "accuracy": float(not why),
        "why": why,
    }
