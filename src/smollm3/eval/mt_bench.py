"""MT-Bench: eighty conversations of two turns, each turn rated from 1 to 10 by a judge.

Asked and judged as by its authors (FastChat's llm_judge): temperatures by category, a reference
answer for the judge where the question has one right answer, and their prompts for the judge, which
are read from a file beside the questions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.local import rows_of_file
from smollm3.eval.target import Answered, Ask, Prompt, Settings, ask_by

NAME = "mt_bench"
FILES = ("question.jsonl", "reference_answer_gpt-4.jsonl", "judge_prompts.jsonl")
SOURCE = "fastchat/llm_judge/data of https://github.com/lm-sys/FastChat"
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}  # else 0
WITH_REFERENCE = frozenset(("math", "reasoning", "coding"))
ANSWER_TOKENS, JUDGEMENT_TOKENS = 1024, 2048
METRICS = ("rating", "rating_turn_1", "rating_turn_2", "unrated")
_RATINGS = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))


@dataclass(frozen=True)
class Question:
    """references: right answers for the judge, a turn each; none where the category has none."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """prompts: name -> (system prompt, template) of the judge."""

    questions: tuple[Question, ...]
    prompts: Mapping[str, tuple[str, str]]
    total: int


def read(data: Path | None, limit: int | None) -> Bench:
    """The first `limit` questions in the folder `mt_bench` of a folder of data sets. UserError for
    a file that is not there or not MT-Bench's."""
    if data is None:
        raise UserError(f"{NAME}: add --data FOLDER with {NAME}/{', '.join(FILES)}, from {SOURCE}")
    asked, references, prompts = (data / NAME / name for name in FILES)
    for file in (asked, references, prompts):
        if not file.is_file():
            raise UserError(f"{file}: no such file; it is {file.name} in {SOURCE}")
    try:
        right = {
            r["question_id"]: tuple(r["choices"][0]["turns"]) for r in rows_of_file(references)
        }
        questions = [
            Question(
                str(row["question_id"]),
                row["category"],
                tuple(row["turns"]),
                right[row["question_id"]] if row["category"] in WITH_REFERENCE else (),
            )
            for row in rows_of_file(asked)
        ]
        by_name = {
            row["name"]: (row["system_prompt"], row["prompt_template"])
            for row in rows_of_file(prompts)
        }
    except (KeyError, IndexError, TypeError) as e:
        raise UserError(f"{data / NAME}: not the files of {SOURCE}: {e} is missing") from None
    return Bench(tuple(questions[:limit]), by_name, len(questions))


def samples(bench: Bench, settings: Settings, answer: Answered, judge: Answered) -> list[Any]:
    """Ask the model both turns and the judge about each: samples in the harness's form, a turn
    each. A turn that the judge did not rate counts nowhere, as with the authors, but is told."""
    answers: list[list[str]] = [[] for _ in bench.questions]
    for turn in (0, 1):
        written = answer(
            [
                _ask(question, said, turn, settings)
                for question, said in zip(bench.questions, answers, strict=True)
            ]
        )
        for said, each in zip(answers, written, strict=True):
            said.append(each["text"])
    asked = [
        (question, said, turn)
        for question, said in zip(bench.questions, answers, strict=True)
        for turn in (0, 1)
    ]
    asks = [judgement(bench.prompts, *each) for each in asked]
    return [
        _sample(question, said, turn, verdict["text"])
        for (question, said, turn), verdict in zip(asked, judge(asks), strict=True)
    ]


def _ask(question: Question, said: Sequence[str], turn: int, settings: Settings) -> Ask:
    messages = []
    for user, answer in zip(question.turns, said, strict=False):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question.turns[turn]})
    prompt, temperature = Prompt(messages=tuple(messages)), TEMPERATURES.get(question.category, 0.0)
    return ask_by(settings, prompt, settings.max_tokens or ANSWER_TOKENS, temperature)


def judgement(
    prompts: Mapping[str, tuple[str, str]], question: Question, said: Sequence[str], turn: int
) -> Ask:
    """What the judge is asked about a turn: of the second it sees both."""
    name = f"single{'-math' if question.references else ''}-v1{'-multi-turn' if turn else ''}"
    fields = {"question": question.turns[0], "answer": said[0]}
    for number, text in enumerate(question.turns, 1):
        fields[f"question_{number}"] = text
    for number, text in enumerate(said, 1):
        fields[f"answer_{number}"] = text
    for number, text in enumerate(question.references, 1):
        fields[f"ref_answer_{number}"] = text
    try:
        system, template = prompts[name]
        text = template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as e:
        raise UserError(f"{FILES[2]}: no usable prompt {name} ({e}); it is in {SOURCE}") from None
    messages = ({"role": "system", "content": system}, {"role": "user", "content": text})
    return Ask(Prompt(messages=messages), max_tokens=JUDGEMENT_TOKENS, temperature=0.0)


def rating(verdict: str) -> float | None:
    """The first number in two brackets, or else in one; None where there is none."""
    found = next((m for pattern in _RATINGS if (m := pattern.search(verdict))), None)
    return float(found[1]) if found else None


def _sample(question: Question, said: Sequence[str], turn: int, verdict: str) -> dict[str, Any]:
    found = rating(verdict)
    sample = {
        "doc_id": f"{question.id}-{turn + 1}",
        "doc": {"category": question.category, "turns": question.turns},
        "target": question.references,
        "resps": [[said[turn]]],
        "filtered_resps": [verdict],
        "filter": "none",
        "unrated": float(found is None),
    }
    if found is not None:
        sample |= {"rating": found / 10, f"rating_turn_{turn + 1}": found / 10}
    return sample
