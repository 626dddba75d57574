"""Answers to questions over several passages, and translations: prompts and scores."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BOXED = re.compile(r"\\boxed\s*\{[^A-Za-z{}]*(?:\\text\{)?\s*([A-Da-d])\b")
_LETTER = re.compile(r"\b([A-D])\b")
_HAN = re.compile(r"[\u3400-\u9fff]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_VERDICTS = frozenset(("yes", "no", "noanswer"))


def plain(answer: str) -> str:
    """An answer as SQuAD compares it: small letters, no punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, right: str) -> float:
    return float(plain(answer) == plain(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of an answer's words."""
    words, wanted = plain(answer).split(), plain(right).split()
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def hotpotqa(doc: Mapping[str, Any]) -> str:
    context = doc["context"]
    passages = zip(context["title"], ("".join(s) for s in context["sentences"]), strict=True)
    return _asked(passages, doc["question"])


def hotpotqa_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match and f1 by HotpotQA's rules: of a yes or a no, no word counts alone."""
    answer, right = results[0], str(doc["answer"])
    verdict = {plain(answer), plain(right)} & _VERDICTS and plain(answer) != plain(right)
    return {"exact_match": exact(answer, right), "f1": 0.0 if verdict else f1(answer, right)}


def musique(doc: Mapping[str, Any]) -> str:
    return _asked(((p["title"], p["paragraph_text"]) for p in doc["paragraphs"]), doc["question"])


def musique_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match and f1 with the answer, or that one of its other spellings that fits best."""
    rights = [str(doc["answer"]), *doc["answer_aliases"]]
    return {
        "exact_match": max(exact(results[0], right) for right in rights),
        "f1": max(f1(results[0], right) for right in rights),
    }


def passage(doc: Mapping[str, Any]) -> str:
    return f"{doc['context']}\n\nQuestion: {doc['question']}\nAnswer:"


def passage_scores(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match and f1 with the right answer that fits best. Of Chinese each character is a
    word."""
    answer, *rights = (_HAN.sub(r" \g<0> ", t) for t in (results[0], *doc["answers"]["text"]))
    return {
        "exact_match": max(exact(answer, right) for right in rights),
        "f1": max(f1(answer, right) for right in rights),
    }


def _asked(passages: Iterable[tuple[str, str]], question: str) -> str:
    texts = "\n\n".join(f"{title}\n{text}" for title, text in passages)
    return (
        f"{texts}\n\nAnswer the question from these passages, in a few words.\n"
        f"Question: {question}\nAnswer:"
    )


def answerable(dataset: Any) -> Any:
    """MuSiQue without the questions of its full form that have no answer."""
    return dataset.filter(lambda doc: doc["answerable"])


def with_index(dataset: Any) -> Any:
    """Global MMLU with the place of the right option instead of its letter."""
    return dataset.map(lambda doc: {"answer_index": "ABCD".index(doc["answer"])})


def letter(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match of the letter in the last \\boxed{...}, or else of the last one that stands
    alone."""
    found = _BOXED.findall(results[0]) or _LETTER.findall(results[0])
    return {"exact_match": float(bool(found) and found[-1].upper() == doc["answer"])}


def chrf(pairs: Sequence[tuple[str, str]]) -> float:
    """chrF of a corpus of (reference, translation), from 0 to 1 as all scores here."""
    from lm_eval.api.metrics import chrf as of_100

    return float(of_100(pairs)) / 100
