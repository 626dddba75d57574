"""MixEval-Hard: questions of many sets, whose answers a judge compares with the right ones.

Data: the files of MixEval's repository. Questions are put as its authors put them (a free question
asks for a short answer, one with options for their letter); what the judge is told is in our own
words, so that only scores of this package and of one judge can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.target import Answered, Ask, Prompt, Settings, ask_by
from smollm3.files import read_json

NAME = "mixeval_hard"
FILES = ("free-form.json", "multiple-choice.json")
SOURCE = "mix_eval/data/mixeval-VERSION/mixeval-hard of https://github.com/Psycoy/MixEval"
METRICS = ("score", "free_form", "multiple_choice", "unrated")
ANSWER_TOKENS, JUDGEMENT_TOKENS = 4096, 512
JUDGE = (
    "You compare an answer to a question with the right answers. Judge only whether it says the "
    "same as one of them; style, length and further correct facts do not matter. End with your "
    "verdict in two brackets: [[1]] where it agrees, [[0]] where it does not, and a number between "
    "where it agrees in part."
)
LETTER = (
    "You read which option an answer to a question chooses. End with its letter in two brackets, "
    "as [[A]], or with [[none]] where it chooses none or several."
)
_NUMBER = re.compile(r"\[\[\s*(\d(?:\.\d+)?)\s*\]\]")
_LETTER = re.compile(r"\[\[\s*([A-Za-z])\s*\]\]")


@dataclass(frozen=True)
class Item:
    """options: none of a free question. right: answers, or letters of options."""

    id: str
    source: str
    question: str
    options: tuple[str, ...]
    right: tuple[str, ...]

    @property
    def prompt(self) -> str:
        if not self.options:
            return f"{self.question}\nAnswer the question shortly."
        listed = "\n".join(f"{_letter(i)}. {option}" for i, option in enumerate(self.options))
        asks = "Answer with the option letter from the given choices directly."
        return f"{self.question}\n{listed}\n{asks}"


def read(data: Path | None, limit: int | None) -> tuple[list[Item], int]:
    """The first `limit` items of each of the two files in the folder `mixeval_hard`, and how many
    there are. UserError for a file that is not there or not MixEval's."""
    if data is None:
        names = " and ".join(f"{NAME}/{name}" for name in FILES)
        raise UserError(f"{NAME}: add --data FOLDER with {names}, from {SOURCE}")
    items: list[Item] = []
    total = 0
    for name in FILES:
        file = data / NAME / name
        if not file.is_file():
            raise UserError(f"{file}: no such file; it is {name} in {SOURCE}")
        rows = read_json(file)
        try:
            found = [_item(f"{file.stem}/{key}", row) for key, row in rows.items()]
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as e:
            raise UserError(f"{file}: not the file of {SOURCE}: {e}") from None
        items += found[:limit]
        total += len(found)
    return items, total


def _item(id_: str, row: Mapping[str, Any]) -> Item:
    question = f"{row['context']}\n{row['prompt']}" if row.get("context") else str(row["prompt"])
    options = tuple(str(option) for option in row.get("options") or ())
    if options:
        right = tuple(_letter(range(len(options))[int(place)]) for place in row["target"])
    else:
        question = f"Question: {question}"
        right = tuple(str(answer) for answer in row["target"])
    if not right:
        raise ValueError(f"{id_} has no right answer")
    return Item(id_, str(row["benchmark_name"]), question, options, right)


def _letter(place: int) -> str:
    return chr(ord("A") + place)


def samples(
    items: Sequence[Item], settings: Settings, answer: Answered, judge: Answered
) -> list[dict[str, Any]]:
    """Ask the model and then the judge: samples in the harness's form. What the judge gave no
    verdict on counts nowhere, but is told."""
    written = answer([_ask(item, settings) for item in items])
    verdicts = judge([judgement(i, w["text"]) for i, w in zip(items, written, strict=True)])
    return [
        _sample(item, w["text"], verdict["text"])
        for item, w, verdict in zip(items, written, verdicts, strict=True)
    ]


def _ask(item: Item, settings: Settings) -> Ask:
    prompt = Prompt(messages=({"role": "user", "content": item.prompt},))
    return ask_by(settings, prompt, settings.max_tokens or ANSWER_TOKENS)


def judgement(item: Item, answer: str) -> Ask:
    """What the judge is asked about an answer."""
    lines = [item.prompt, "", f"Answer to judge: {answer}"]
    if not item.options:
        lines += [f"Right answer {i}: {text}" for i, text in enumerate(item.right, 1)]
    system = LETTER if item.options else JUDGE
    messages = (
        {"role": "system", "content": system},
        {"role": "user", "content": "\n".join(lines)},
    )
    return Ask(Prompt(messages=messages), max_tokens=JUDGEMENT_TOKENS, temperature=0.0)


def verdict_of(item: Item, verdict: str) -> float | None:
    """From 0 to 1, by the last verdict in two brackets; None where there is none."""
    if item.options:
        letters = _LETTER.findall(verdict)
        if letters:
            return float(letters[-1].upper() in item.right)
        return 0.0 if "[[none]]" in verdict.lower() else None
    numbers = [float(number) for number in _NUMBER.findall(verdict)]
    return numbers[-1] if numbers and numbers[-1] <= 1 else None


def _sample(item: Item, answer: str, verdict: str) -> dict[str, Any]:
    found = verdict_of(item, verdict)
    kind = "multiple_choice" if item.options else "free_form"
    sample = {
        "doc_id": item.id,
        "doc": {"benchmark": item.source, "question": item.question, "options": item.options},
        "target": item.right,
        "resps": [[answer]],
        "filtered_resps": [verdict],
        "filter": "none",
        "unrated": float(found is None),
    }
    return sample if found is None else sample | {"score": found, kind: found}
