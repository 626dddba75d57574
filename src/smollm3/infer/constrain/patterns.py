"""Patterns of JSON schemas, which are ECMAScript's, as Rust's engine takes them."""

from __future__ import annotations

import re

# A pattern's parts: an escape, a class, the start of a group, anything else.
_PART = re.compile(
    r"\\(?:k<\w+>|u\{[0-9A-Fa-f]+\}|[\s\S])|\[\^?(?:\]|\\[\s\S]|[^\]\\])*\]|\((?:\?[^)])?<?|[\s\S]"
)
_ASSERTION = re.compile(r"\(\?<?[=!]")
# Of ECMAScript, where a letter is one of English: what a reader in any language takes.
_CLASSES = {r"\d": "0-9", r"\w": "A-Za-z0-9_", r"\s": r"\t\n\v\f\r "}


def rust_pattern(pattern: str) -> tuple[str, bool]:
    """The pattern, and whether it says all that the other does: without what looks around and
    refers back it only allows more."""
    told: list[str] = []
    exact = True
    skipping = 0  # groups open within an assertion that is left out
    for match in _PART.finditer(pattern):
        part = match[0]
        opens = part.startswith("(")
        if skipping:
            skipping += opens - (part == ")")
            continue
        if opens and _ASSERTION.match(pattern, match.start()):
            skipping, exact = 1, False
        elif part in (r"\b", r"\B"):
            exact = False
        elif re.fullmatch(r"\\(?:[1-9]|k<\w+>)", part):
            told.append(r"[\s\S]*")
            exact = False
        else:
            told.append(_part(part))
    return "".join(told), exact


def _part(part: str) -> str:
    if part in _CLASSES:
        return f"[{_CLASSES[part]}]"
    if part in (r"\Z", r"\z"):
        return "$"
    if part.startswith("[") and not part.startswith("[^"):
        return re.sub(r"\\[\s\S]", lambda m: _CLASSES.get(m[0], m[0]), part)
    return part
