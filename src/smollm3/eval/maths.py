"""Numbers in answers to word problems."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
_NUMBER = re.compile(r"-?(?:\d[\d,.\u00a0\u202f ]*\d|\d)(?:/\d+)?")


def answer_number(text: str) -> Fraction | None:
    """The number in the last \\boxed{...}, or else the last one of the text."""
    boxed = _BOXED.findall(text)
    found = _NUMBER.findall(boxed[-1] if boxed else text)
    return as_number(found[-1]) if found else None


def as_number(text: str) -> Fraction | None:
    """A number as people write it: 1,234.5, 1.234,5 (a comma and one or two digits end it), 3/4."""
    plain = re.sub(r"[\u00a0\u202f $%]", "", text).rstrip(".,")
    if re.fullmatch(r"-?\d{1,3}(\.\d{3})+,\d+|-?\d+,\d{1,2}", plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"-?\d{1,3}(\.\d{3}){2,}", plain):
        plain = plain.replace(".", "")
    try:
        return Fraction(plain.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def number(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """exact_match of an answer's number with the item's."""
    wanted = as_number(str(doc.get("answer_number") or doc.get("answer") or doc.get("Answer")))
    return {"exact_match": float(wanted is not None and answer_number(results[0]) == wanted)}


def average(doc: Mapping[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of an item's repeats with the right number: avg@k."""
    scores = [number(doc, [text])["exact_match"] for text in results[0]]
    return {"exact_match": sum(scores) / len(scores)}


def answerable(dataset: Any) -> Any:
    """GSM-Plus without the questions that lack what is needed, whose answer is "None"."""
    return dataset.filter(lambda doc: doc["perturbation_type"] != "critical thinking")
