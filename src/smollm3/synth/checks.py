"""What an answer must pass before it is kept. Each check gives a reason against it, or None."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from smollm3.data.languages import LANGUAGES, language

Row = dict[str, Any]
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_BLOCK = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
_WORD = re.compile(r"\w+")


def final_answer(content: str) -> str | None:
    """The answer that a solution ends with: the last \\boxed{}, else what follows the last
    "answer is", else the last number."""
    at = content.rfind("\\boxed{")
    if at >= 0:
        depth, start = 0, at + len("\\boxed{")
        for i in range(start - 1, len(content)):
            depth += {"{": 1, "}": -1}.get(content[i], 0)
            if depth == 0:
                return content[start:i].strip()
        return None
    said = re.findall(r"(?i)answer is:?\s*\$?([^\s.$]+(?:\.\d+)?)", content)
    numbers = _NUMBER.findall(content)
    found = said[-1:] or numbers[-1:]
    return found[0].strip() if found else None


def value(answer: str) -> Fraction | str:
    """An answer as a number where it is one, else as text without blanks and TeX's dress."""
    text = _FRACTION.sub(r"\1/\2", answer).replace("\\!", "").replace("\\,", "").strip("$ .")
    percent = text.endswith(("%", "\\%"))
    number = text.rstrip("%\\").replace(",", "").replace(" ", "")
    try:
        return Fraction(number) / (100 if percent else 1)
    except (ValueError, ZeroDivisionError):
        plain = re.sub(r"\\(?:text|mathrm|left|right)\b", "", text)
        return re.sub(r"[\s{}]", "", plain).lower()


def wrong_answer(row: Row, content: str) -> str | None:
    if row.get("answer") is None:
        return None
    found = final_answer(content)
    if found is None:
        return "no final answer"
    return None if value(found) == value(str(row["answer"])) else "wrong answer"


def failing_code(row: Row, content: str) -> str | None:
    """The last block of Python, run with the row's tests in the sandbox."""
    if row.get("tests") is None:
        return None
    from smollm3.agent.sandbox import find_sandbox  # what it takes to import is seldom needed
    from smollm3.agent.sandbox.run import Limits

    blocks = _BLOCK.findall(content)
    if not blocks:
        return "no code"
    interpreter = find_sandbox().interpreter(limits=Limits(seconds=10.0, cpu_seconds=10))
    try:
        run = interpreter.run(f"{blocks[-1]}\n{row['tests']}\n")
    finally:
        interpreter.close()
    return None if run.ok else "failing code"


def broken_instructions(row: Row, content: str) -> str | None:
    """`constraints`: a list of {"kind", "value"}."""
    for constraint in row.get("constraints") or ():
        kind, wanted = constraint.get("kind"), constraint.get("value")
        if kind not in _CONSTRAINTS:
            return f"unknown constraint {kind!r}"
        if not _CONSTRAINTS[kind](content, wanted):
            return f"breaks {kind}"
    return None


def _is_json(content: str) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True


_CONSTRAINTS: dict[str, Callable[[str, Any], bool]] = {
    "min_words": lambda text, n: len(_WORD.findall(text)) >= n,
    "max_words": lambda text, n: len(_WORD.findall(text)) <= n,
    "contains": lambda text, word: word.lower() in text.lower(),
    "lacks": lambda text, word: word.lower() not in text.lower(),
    "starts_with": lambda text, start: text.strip().startswith(start),
    "ends_with": lambda text, end: text.strip().endswith(end),
    "lowercase": lambda text, _: text == text.lower(),
    "uppercase": lambda text, _: text == text.upper(),
    "bullets": lambda text, n: sum(s.lstrip()[:2] in ("- ", "* ") for s in text.splitlines()) == n,
    "json": lambda text, _: _is_json(text),
}


def other_language(row: Row, content: str) -> str | None:
    wanted = row.get("language")
    if wanted not in LANGUAGES:
        return None
    found = language(content)
    return None if found in (None, wanted) else f"in {found} instead of {wanted}"


def agreed(answers: list[str | None], share: float) -> Fraction | str | None:
    """The value that at least `share` of the answers have; None where there is none."""
    values = [value(answer) for answer in answers if answer is not None]
    if not values:
        return None
    best, count = Counter(values).most_common(1)[0]
    return best if count >= share * len(answers) else None


class NearDuplicates:
    """Texts seen before, by MinHash: 20 bands of 8 hashes over 5-grams of words, which takes two
    texts of similarity 0.8 for one with the probability 0.98."""

    BANDS, HASHES, WORDS = 20, 8, 5

    def __init__(self) -> None:
        import numpy as np

        rng = np.random.RandomState(1)
        n = self.BANDS * self.HASHES
        self._multiply = rng.randint(1, 2**61, n, dtype=np.uint64) | np.uint64(1)
        self._seen: set[tuple[int, bytes]] = set()

    def add(self, text: str) -> bool:
        """Whether it is new; if so, it is remembered."""
        import numpy as np

        from smollm3.data.sources import hash64

        words = _WORD.findall(text.lower())
        n = min(self.WORDS, len(words)) or 1
        grams = {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}
        hashes = np.fromiter((hash64(g) for g in sorted(grams)), np.uint64, len(grams))
        mixed = (hashes[:, None] ^ (hashes[:, None] >> np.uint64(31))) * self._multiply
        least = (mixed ^ (mixed >> np.uint64(29))).min(axis=0, initial=2**64 - 1)
        bands = least.reshape(self.BANDS, self.HASHES)
        keys = {(i, band.tobytes()) for i, band in enumerate(bands)}
        if keys & self._seen:
            return False
        self._seen |= keys
        return True


CHECKS = {
    "answer": wrong_answer,
    "code": failing_code,
    "instructions": broken_instructions,
    "language": other_language,
}
