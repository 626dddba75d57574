"""Grammars of a text, as it is spelled inside of a JSON string.

A tool's arguments are JSON, so a text that keeps to a grammar of its own is written there with
escapes: a newline is a backslash and an n. Spelling is letter by letter, so a grammar's rules can
stay as they are; only its words and patterns are rewritten to what spells them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from smollm3.errors import UserError
from smollm3.infer.constrain.library import bytes_vocabulary, compiled, mask_of

# Characters that a JSON string spells with an escape.
ESCAPED = '"\\' + "".join(map(chr, range(32)))
_OTHERS = r'^"\\\x00-\x1f'  # all but those, in a class
MOST_CLASSES = 1000  # different ones of a grammar: what each matches is asked of the library

# Of Lark, as the library reads it. What is none of these (a token, another grammar, an attribute
# with a value, options) has no spelling, or is not looked into.
_PART = re.compile(
    r"""
      (?P<comment>(?:\#|//)[^\n]*)
    | (?P<range>(?P<first>"(?:\\.|[^"\\\n])*")\s*\.\.\s*(?P<last>"(?:\\.|[^"\\\n])*"))
    | (?P<word>"(?:\\.|[^"\\\n])*")(?P<case>i?)
    | (?P<pattern>/(?:\\.|[^/\\])+/)(?P<flags>[imslux]*)
    | %import\s+common\s*(?P<imported>\.\s*\w+(?:\s*->\s*\w+)?|\([^()]*\))
    | (?P<rule>%ignore|~\s*\d+|[\w\s!?:|()\[\]+*{},.&>-]+)
    """,
    re.VERBOSE | re.DOTALL,
)
_IMPORTED = re.compile(r"(\w+)(?:\s*->\s*(\w+))?")
# Of the library's common terminals, those that match an escaped character.
_COMMON = {
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "ESCAPED_STRING": r'"(?:[^"\\]|\\.)*"',
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "SQL_COMMENT": r"--[^\n]*",
    "C_COMMENT": r"\/\*(?:[^*]|\*+[^*\/])*\*+\/",
}

# Of a pattern in Rust's syntax: the start of a group with its flags, or of one with a name; an
# escape; a class; any other character.
_ATOM = re.compile(
    r"""
      \(\?(?P<flags>[a-zA-Z]*(?:-[a-zA-Z]+)?)(?P<scoped>[:)])
    | (?P<group>\((?:\?P?<\w+>)?)
    | (?P<escape>\\(?:[pPuUx]\{[^}]*\}|[pP]\w|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.))
    | (?P<counted>\{\d*,?\d*\})
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ASSERTIONS = (r"\A", r"\z", r"\b", r"\B")


def quoted(where: str, lark: str) -> str:
    """A grammar of what spells the texts of the grammar `lark` between the quotes of a JSON string.
    Raises UserError, which begins with `where`, for what is no grammar or has no spelling."""
    compiled(where, bytes_vocabulary(), json.dumps({"grammars": [{"lark_grammar": lark}]}))
    parts = list(_parts(where, lark))
    spelled = _spelled(where, [part for part in parts if isinstance(part, _Class)])
    return "".join(part if isinstance(part, str) else spelled[part] for part in parts)


@dataclass(frozen=True)
class _Class:
    """A part of a pattern that matches one character. flags: those that hold for it."""

    text: str
    flags: str

    @property
    def scoped(self) -> str:
        return f"(?{self.flags}:{self.text})" if self.flags else self.text


def _parts(where: str, lark: str) -> Iterator[str | _Class]:
    place = 0
    while place < len(lark):
        part = _PART.match(lark, place)
        if part is None:
            line = lark.count("\n", 0, place) + 1
            found = lark[place : place + 20].split("\n")[0]
            raise UserError(f"{where}: line {line}: {found!r} is not supported here")
        place = part.end()
        if part["range"]:
            first, last = (re.escape(_text(part[end])) for end in ("first", "last"))
            yield from _pattern(where, f"[{first}-{last}]", "")
        elif part["case"]:
            yield from _pattern(where, _literal(_text(part["word"])), "i")
        elif part["word"]:
            spelled = json.dumps(_text(part["word"]), ensure_ascii=False)[1:-1]
            yield json.dumps(spelled, ensure_ascii=False)
        elif part["pattern"]:
            yield from _pattern(where, part["pattern"][1:-1], part["flags"])
        elif part["imported"]:
            for name, alias in _IMPORTED.findall(part["imported"]):
                if name in _COMMON:
                    yield f"\n{alias or name}: "
                    yield from _pattern(where, _COMMON[name], "")
                else:
                    yield f"\n%import common.{name}" + (f" -> {alias}" if alias else "")
        elif part["rule"]:
            yield part["rule"]


def _text(word: str) -> str:
    """What a literal of Lark says."""
    text: str = json.loads(re.sub(r"\\(x|.)", lambda m: {"x": r"\u00"}.get(m[1], m[0]), word))
    return text


def _literal(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _pattern(where: str, pattern: str, flags: str) -> Iterator[str | _Class]:
    """A pattern between slashes, its flags inside."""
    scopes = [_flagged(where, "", flags)]
    place = 0
    yield "/" + (f"(?{scopes[0]})" if scopes[0] else "")
    while place < len(pattern):
        atom = _ATOM.match(pattern, place)
        assert atom is not None
        place = atom.end()
        if atom["scoped"]:
            if atom["scoped"] == ":":
                scopes.append(scopes[-1])
            scopes[-1] = _flagged(where, scopes[-1], atom["flags"])
            yield atom[0]
        elif atom["group"]:
            scopes.append(scopes[-1])
            yield atom[0]
        elif atom[0] == "[":
            end = _end_of_class(pattern, place)
            yield _Class(pattern[place - 1 : end], scopes[-1])
            place = end
        elif atom[0] == ")":
            scopes.pop()
            yield ")"
        elif atom["escape"]:
            yield atom[0] if atom[0] in _ASSERTIONS else _Class(atom[0], scopes[-1])
        elif atom[0] in ESCAPED or atom[0] == ".":
            yield _Class(atom[0], scopes[-1])
        else:
            yield atom[0]
    yield "/"


def _flagged(where: str, held: str, change: str) -> str:
    """The flags after a change of them, such as `i-s`."""
    on, _, off = change.partition("-")
    if wrong := set(on + off) - set("imsu"):
        raise UserError(f"{where}: the flag {min(wrong)!r} of a pattern is not supported here")
    return "".join(sorted((set(held) | set(on)) - set(off)))


def _end_of_class(pattern: str, place: int) -> int:
    """Behind the bracket that closes a class. place: behind the one that opens it."""
    depth = 0
    for part in re.compile(r"\[\^?\]?|\\.|.", re.DOTALL).finditer(pattern, place - 1):
        depth += (part[0][0] == "[") - (part[0] == "]")
        if not depth:
            return part.end()
    raise AssertionError("the library has read this pattern")


def _spelled(where: str, classes: Sequence[_Class]) -> dict[_Class, str]:
    """What spells a character of each class: itself, or its escape."""
    found = list(dict.fromkeys(classes))
    if not found:
        return {}
    if len(found) > MOST_CLASSES:
        raise UserError(f"{where}: more than {MOST_CLASSES} different classes of characters")
    each = " | ".join(f'"{i}:" /{one.scoped}/' for i, one in enumerate(found))
    vocabulary = bytes_vocabulary()
    grammar = json.dumps({"grammars": [{"lark_grammar": f"start: {each}"}]})
    matcher, words = compiled(where, vocabulary, grammar), (vocabulary.vocab_size + 31) // 32
    spelled = {}
    for i, one in enumerate(found):
        behind = matcher.deep_copy()
        behind.consume_tokens(list(f"{i}:".encode()))
        mask = np.unpackbits(mask_of(behind, words).view(np.uint8), bitorder="little")
        escapes = [json.dumps(c)[2:-1] for c in ESCAPED if mask[ord(c)]]
        others = mask.sum() > len(escapes)
        spelled[one] = _choice(one, escapes, bool(others)) if escapes else one.text
    return spelled


def _choice(one: _Class, escapes: Sequence[str], others: bool) -> str:
    """escapes: without their backslashes, of those that the class matches."""
    short = "".join(re.escape(e) for e in escapes if len(e) == 1)
    codes = [e[-2:] for e in escapes if len(e) > 1]
    ways = [f"[{short}]"] if short else []
    ways += [f"u00(?:{'|'.join(codes)})"] if codes else []
    told = [f"\\\\(?:{'|'.join(ways)})"]
    if others:
        text = {".": r"\s\S" if "s" in one.flags else r"^\n"}.get(one.text, one.text)
        told.append(f"[[{text}]&&[{_OTHERS}]]")
    return f"(?-i:{'|'.join(told)})" if not others else f"(?:(?-i:{told[0]})|{told[1]})"
