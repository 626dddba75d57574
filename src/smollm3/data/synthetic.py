"""Questions made on the spot, with reasoning, answers, and the wrong answers of preference pairs.

A small model can compute these only step by step: the reasoning copies one term at a time and
keeps a running result, while the direct answer needs the whole chain in one pass. Whatever is made
here depends on (seed, index) alone. Which questions are held out is a property of the question:
training data never show one whose checksum is a multiple of five.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from smollm3.data.words import CITIES, LANGUAGES, NAMES, WORDS
from smollm3.errors import UserError


@dataclass(frozen=True)
class Item:
    """A question and what the model should make of it.

    answer: the whole visible answer; "" where a tool is called.
    tools: what the model may call, and tool_call what it should: {"name", "arguments"}.
    """

    question: str
    reasoning: str
    answer: str
    tools: tuple[dict[str, Any], ...] = ()
    tool_call: dict[str, Any] | None = None


# A task draws a question and gives the right item and one that is plausible but wrong.
Task = Callable[[Random], tuple[Item, Item]]


def is_held_out(question: str) -> bool:
    """Whether the question is kept for evaluation: one in five, by its checksum."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 5 == 0


# Arithmetic


@dataclass(frozen=True)
class _Chain:
    """Terms such as ":5" or "*2", one for each name, applied in order to `start`.

    modulus: 10 keeps the last digit of every step; 0 keeps all digits.
    """

    names: tuple[str, ...]
    terms: tuple[tuple[str, int], ...]
    start: int
    modulus: int

    def work(self, slip_at: int | None = None, slip: int = 0) -> tuple[str, str]:
        """The written steps and the result. A slip at one step is carried on to the end."""
        steps, value = [], self.start
        for i, (name, (sign, operand)) in enumerate(zip(self.names, self.terms, strict=True)):
            if sign == "*":
                value *= operand
            else:
                value += -operand if sign == "-" else operand
            if i == slip_at:
                value += slip
            value = value % self.modulus if self.modulus else value
            steps.append(f"{name}{sign}{operand}={value}")
        return " ".join(["So", *steps]) + ".", str(value)

    def items(self, question: str, rng: Random) -> tuple[Item, Item]:
        """A slip of 1 or 2 always reaches the end: no product of 2, 3 and 7 ends in 0."""
        slip_at, slip = rng.randrange(len(self.terms)), rng.choice((-2, -1, 1, 2))
        return Item(question, *self.work()), Item(question, *self.work(slip_at, slip))


def _terms(chain: _Chain) -> str:
    pairs = zip(chain.names, chain.terms, strict=True)
    return " ".join(f"{name}{sign}{operand}" for name, (sign, operand) in pairs)


def _sum(rng: Random) -> tuple[Item, Item]:
    names = tuple(rng.sample(NAMES[:16], rng.randint(3, 6)))
    chain = _Chain(names, tuple((":", rng.randint(1, 9)) for _ in names), start=0, modulus=0)
    return chain.items(f"Total of {_terms(chain)}?", rng)


def _mod(rng: Random) -> tuple[Item, Item]:
    names = tuple(rng.sample(NAMES[:16], rng.randint(3, 6)))
    chain = _Chain(names, tuple((":", rng.randint(0, 9)) for _ in names), start=0, modulus=10)
    return chain.items(f"Last digit of {_terms(chain)}?", rng)


def _ops(rng: Random) -> tuple[Item, Item]:
    names = tuple(rng.sample(NAMES[:16], rng.randint(3, 5)))
    terms = tuple(
        (sign, rng.choice((2, 3, 7)) if sign == "*" else rng.randint(2, 9))
        for sign in (rng.choice("+-*") for _ in names)
    )
    chain = _Chain(names, terms, start=rng.randint(0, 9), modulus=10)
    return chain.items(f"Start:{chain.start} {_terms(chain)} End?", rng)


# Words


def _recall(rng: Random) -> tuple[Item, Item]:
    n = rng.randint(2, 4)
    names, words = rng.sample(NAMES, n), rng.sample(WORDS, n)
    wanted = rng.randrange(n)
    other = (wanted + rng.randrange(1, n)) % n
    told = " ".join(f"{name}: {word}." for name, word in zip(names, words, strict=True))
    name, right, wrong = names[wanted], words[wanted], words[other]
    question = f"Words: {told} Word of {name}?"
    return tuple(  # type: ignore[return-value]
        Item(question, f"Word of {name}: {word}.", f"So {name}: {word}") for word in (right, wrong)
    )


def language_question(language: str, a: int, b: int) -> str:
    """The one question about a + b in a language; the procedural texts leave held-out ones out."""
    words = LANGUAGES[language]
    return words.question.format(a=words.numbers[a], b=words.numbers[b])


def _language(rng: Random) -> tuple[Item, Item]:
    language = rng.choice(list(LANGUAGES))
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    question = language_question(language, a, b)
    slipped = a + b + (rng.choice((-2, -1, 1, 2)) if a + b > 1 else 1)
    right, wrong = (Item(question, f"So {a}+{b}={c}.", str(c)) for c in (a + b, slipped))
    return right, wrong


# Tools. Two of them are offered with each question, and signatures are names and types only: a
# small vocabulary spends some 40 tokens on each.

TOOLS: tuple[dict[str, Any], ...] = (
    {"name": "get_weather", "parameters": {"city": "string"}},
    {"name": "add", "parameters": {"a": "integer", "b": "integer"}},
    {"name": "set_alarm", "parameters": {"name": "string", "hour": "integer"}},
    {"name": "book_train", "parameters": {"start": "string", "end": "string"}},
)


def _tool(rng: Random) -> tuple[Item, Item]:
    tool = rng.choice(TOOLS)["name"]
    arguments: dict[str, Any]
    patterns: tuple[str, ...]
    match tool:
        case "get_weather":
            arguments = {"city": rng.choice(CITIES)}
            patterns = (
                "What is the weather in {city}?",
                "Is it cold in {city}?",
                "Do I need a coat in {city} today?",
                "Tell me the weather of {city}.",
            )
        case "add":
            arguments = {"a": rng.randint(10, 99), "b": rng.randint(10, 99)}
            patterns = ("Add:{a} and:{b}.", "Use the tool to add:{a} to:{b}.")
        case "set_alarm":
            arguments = {"name": rng.choice(NAMES), "hour": rng.randint(1, 12)}
            patterns = ("Wake {name} at:{hour}.", "Set an alarm for {name} at:{hour}.")
        case _:
            start, end = rng.sample(CITIES, 2)
            arguments = {"start": start, "end": end}
            patterns = (
                "Book a train from {start} to {end}.",
                "I want to go from {start} to {end} by train.",
            )
    question = rng.choice(patterns).format(**arguments)
    other = rng.choice([t for t in TOOLS if t["name"] != tool])
    offered = tuple(t for t in TOOLS if t["name"] in (tool, other["name"]))
    call = {"name": tool, "arguments": arguments}
    right = Item(question, f"So call {tool}.", "", offered, call)
    return right, replace(right, **_wrong_call(call, other["name"], rng))


def _wrong_call(call: dict[str, Any], other: str, rng: Random) -> dict[str, Any]:
    """Another tool, a missing argument, or a claim without any call."""
    arguments = dict(call["arguments"])
    match rng.randrange(3):
        case 0:
            return {"reasoning": f"So call {other}.", "tool_call": {**call, "name": other}}
        case 1:
            del arguments[rng.choice(list(arguments))]
            return {"tool_call": {**call, "arguments": arguments}}
    return {"reasoning": "So no call.", "answer": "It is done.", "tool_call": None}


TASKS: dict[str, Task] = {
    "sum": _sum,
    "mod": _mod,
    "ops": _ops,
    "recall": _recall,
    "language": _language,
    "tool": _tool,
}


def _draw(task: Task, rng: Random, held_out: bool) -> tuple[Item, Item]:
    while True:
        right, wrong = task(rng)
        if is_held_out(right.question) == held_out:
            return right, wrong


def item(task: str, seed: int, index: int, held_out: bool = False) -> Item:
    """Item `index` of a task."""
    return _draw(TASKS[task], Random(f"{seed}/{task}/{index}"), held_out)[0]


def items(task: str, n: int, seed: int, held_out: bool) -> list[Item]:
    """n items with different questions; fewer where the task has not so many."""
    if task not in TASKS:
        raise UserError(f"{task}: unknown task; there are {', '.join(TASKS)}")
    found: dict[str, Item] = {}
    for index in range(20 * n):
        if len(found) == n:
            break
        made = item(task, seed, index, held_out)
        found.setdefault(made.question, made)
    return list(found.values())


# Conversations and pairs


def chat_row(rng: Random, options: Mapping[str, Any]) -> dict[str, Any]:
    """A row in SmolTalk2's schema. Options: tasks (a list, or weights; `smalltalk` is one more
    besides TASKS), think (the share of answers with reasoning), name (who the model is), turns
    (at most so many questions in one conversation; a tool's is the only one of its)."""
    allowed = (*TASKS, "smalltalk")
    tasks = options.get("tasks", allowed)
    think = rng.random() < options.get("think", 0.5)
    made = [_exchange(_choose(tasks, allowed, rng), rng, options)]
    for _ in range(rng.randrange(options.get("turns", 1))):
        more = _exchange(_choose(tasks, allowed, rng), rng, options)
        if not (made[0].tools or more.tools):
            made.append(more)
    return {
        "messages": [message for m in made for message in (_user(m), _assistant(m, think))],
        "chat_template_kwargs": _kwargs(made[0], think),
        "answer": made[-1].answer or None,  # for a teacher who is asked the same
    }


def _exchange(task: str, rng: Random, options: Mapping[str, Any]) -> Item:
    if task == "smalltalk":
        return _smalltalk(rng, options.get("name", "an assistant"))
    return _draw(TASKS[task], rng, held_out=False)[0]


def pair_row(rng: Random, options: Mapping[str, Any]) -> dict[str, Any]:
    """A preference row: the right answer against a slip. Options as chat_row's, without
    smalltalk; by default the arithmetic tasks."""
    name = _choose(options.get("tasks", ("sum", "mod", "ops")), tuple(TASKS), rng)
    think = rng.random() < options.get("think", 0.5)
    right, wrong = _draw(TASKS[name], rng, held_out=False)
    return {
        "prompt": [_user(right)],
        "chosen": [_assistant(right, think)],
        "rejected": [_assistant(wrong, think)],
        "chat_template_kwargs": _kwargs(right, think),
    }


def _choose(tasks: Any, allowed: tuple[str, ...], rng: Random) -> str:
    weights = tasks if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1)
    if unknown := sorted(set(weights) - set(allowed)):
        raise UserError(f"options.tasks: no task {unknown[0]!r}; there are {', '.join(allowed)}")
    return str(rng.choices(list(weights), list(weights.values()))[0])


def _smalltalk(rng: Random, name: str) -> Item:
    """Too few patterns to hold any out."""
    said, answer = rng.choice(rng.choice(list(LANGUAGES.values())).greetings)
    return Item(said, "So a short answer.", answer.format(name=name))


def _user(made: Item) -> dict[str, Any]:
    return {"role": "user", "content": made.question}


def _assistant(made: Item, think: bool) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": made.answer}
    if think:
        message["reasoning_content"] = made.reasoning
    if made.tool_call is not None:
        message["tool_calls"] = [{"type": "function", "function": made.tool_call}]
    return message


def _kwargs(made: Item, think: bool) -> dict[str, Any]:
    kwargs: dict[str, Any] = {"enable_thinking": think}
    return {**kwargs, "xml_tools": list(made.tools)} if made.tools else kwargs


def worked(rng: Random, task: str) -> str:
    """A training item written out as plain text, for pretraining."""
    made = _draw(TASKS[task], rng, held_out=False)[0]
    return f"{made.question}\n{made.reasoning}\n{made.answer}\n"
