"""Grammars of a text, as it is spelled inside of a JSON string.

A tool's arguments are JSON, so a text that keeps to a grammar of its own is written there with
escapes: a newline is a backslash and an n. Spelling goes letter by letter, so the rules of a
grammar stay as they are; its terminals are rewritten to what spells them.

The library takes the longest terminal that it can, and looks one byte ahead. Where a terminal may
be over at a backslash and may also go on with it, as `/.*/` in front of a newline, it becomes a
rule that takes each escape by itself; where that cannot be, the grammar is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, takewhile

from smollm3.errors import UserError
from smollm3.infer.constrain.library import bytes_vocabulary, compiled
from smollm3.infer.constrain.quoted_patterns import DEEPEST, Node, Patterns, Questions, literal
from smollm3.infer.constrain.schemas import bounded_text

# Of Lark, as the library reads it. What is none of these (a token of the vocabulary, another
# grammar, an option) has no spelling, or is not looked into.
_PART = re.compile(
    r"""
      (?P<blank>[ \t\r]+|(?:\#|//)[^\n]*)
    | (?P<end>\n)
    | (?P<first>"(?:\\.|[^"\\\n])*")\s*\.\.\s*(?P<last>"(?:\\.|[^"\\\n])*")
    | (?P<word>"(?:\\.|[^"\\\n])*")(?P<case>i?)
    | /(?P<pattern>(?:\\.|[^/\\])+)/(?P<flags>[imslux]*)
    | %import\s+common\s*(?P<imported>\.\s*\w+(?:\s*->\s*\w+)?|\([^()]*\))
    | (?P<ignore>%ignore)
    | (?P<defined>[?!]*\w[\w-]*)\s*:
    | (?P<name>\w[\w-]*)
    | ~\s*(?P<least>\d+)(?:\s*\.\.\s*(?P<most>\d+))?
    | (?P<mark>->|\{\d*,?\d*\}|[?|()\[\]+*])
    """,
    re.VERBOSE | re.DOTALL,
)
_IMPORTED = re.compile(r"(\w+)(?:\s*->\s*(\w+))?")
_FLOAT = r"(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_COMMON = {  # the library's terminals, by what they match
    "DIGIT": "[0-9]",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "SIGNED_INT": "[+-]?[0-9]+",
    "_EXP": "[eE][+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+",
    "FLOAT": _FLOAT,
    "SIGNED_FLOAT": f"[+-]?(?:{_FLOAT})",
    "NUMBER": f"[0-9]+|{_FLOAT}",
    "SIGNED_NUMBER": f"[+-]?(?:[0-9]+|{_FLOAT})",
    "ESCAPED_STRING": r'"(?:[^"\\]|\\.)*"',
    "LCASE_LETTER": "[a-z]",
    "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]",
    "WORD": "[A-Za-z]+",
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "WS_INLINE": r"[ \t]+",
    "WS": r"[ \t\f\r\n]+",
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SH_COMMENT": r"#[^\n]*",
    "CPP_COMMENT": r"\/\/[^\n]*",
    "C_COMMENT": r"\/\*(?:[^*]|\*+[^*\/])*\*+\/",
    "SQL_COMMENT": r"--[^\n]*",
}
MOST_PATTERN = 1 << 16  # characters of a terminal with those that it is made of


def quoted_pattern(where: str, pattern: str, questions: Questions) -> str:
    """A Lark grammar of what spells the texts that the pattern matches as a whole. Raises
    UserError, which begins with `where`."""
    patterns = Patterns(where, questions)
    node = patterns.read(bounded_text(where, pattern))
    return f"start: {patterns.terminal(node)}"


def quoted(where: str, lark: str, questions: Questions) -> str:
    """A grammar of what spells the texts of the grammar `lark` between the quotes of a JSON string.
    Raises UserError, which begins with `where`, for what is no grammar or cannot be held to."""
    bounded_text(where, lark)
    compiled(where, bytes_vocabulary(), json.dumps({"grammars": [{"lark_grammar": lark}]}))
    return _Grammar(where, lark, questions).spelled()


@dataclass(frozen=True)
class _Part:
    """kind: a group of `_PART`. regex: of what it matches, for words and patterns."""

    kind: str
    text: str
    regex: str = ""


class _Grammar:
    """terminals: the parts of each one's definition."""

    def __init__(self, where: str, lark: str, questions: Questions) -> None:
        self._where = where
        self._patterns = Patterns(where, questions)
        self._terminals: dict[str, list[_Part]] = {}
        self._rules: list[_Part] = []  # and what is ignored, with the ends of lines
        self._made: dict[str, str] = {}  # terminals -> their new names
        self._prefix = next(p for n in count() if (p := "spelled" + "_" * n) not in lark)
        self._lines: list[str] = []
        held = self._rules
        for part in self._parts(lark):
            if part.kind == "defined" and part.text.lstrip("_")[:1].isupper():
                held = self._terminals.setdefault(part.text, [])
                continue
            if part.kind in ("defined", "ignore"):
                held = self._rules
            held.append(part)

    def _parts(self, lark: str) -> Iterator[_Part]:
        place = 0
        while place < len(lark):
            found = _PART.match(lark, place)
            if found is None:
                line = lark.count("\n", 0, place) + 1
                shown = lark[place : place + 20].partition("\n")[0]
                raise UserError(f"{self._where}: line {line}: {shown!r} is not supported here")
            place = found.end()
            yield from self._read(found)

    def _read(self, found: re.Match[str]) -> Iterator[_Part]:
        kind = str(found.lastgroup)
        if found["first"]:
            first, last = literal(_said(found["first"])), literal(_said(found["last"]))
            yield _Part("pattern", found[0], f"[{first}-{last}]")
        elif found["word"]:
            regex = literal(_said(found["word"]))
            yield _Part("word", found[0], f"(?i:{regex})" if found["case"] else regex)
        elif found["pattern"]:
            flags = self._patterns.flagged("", found["flags"])
            yield _Part("pattern", found[0], f"(?{flags}:{found['pattern']})")
        elif found["imported"]:
            for name, alias in _IMPORTED.findall(found["imported"]):
                if name not in _COMMON:
                    raise UserError(f"{self._where}: %import common.{name} is not supported here")
                self._terminals[alias or name] = [_Part("pattern", name, _COMMON[name])]
        elif found["least"]:
            most = found["most"] or found["least"]
            yield _Part("mark", f"{{{found['least']},{most}}}")
        elif kind in ("defined", "name", "mark"):
            yield _Part(kind, found[kind])
        elif kind in ("end", "ignore"):
            yield _Part(kind, found[0])

    def spelled(self) -> str:
        told = []
        parts = iter(self._rules)
        for part in parts:
            match part.kind:
                case "ignore":
                    ignored = list(takewhile(lambda part: part.kind != "end", parts))
                    told.append(f"%ignore {self._ignored(ignored)}\n")
                case "defined":
                    told.append(f"{part.text}: ")
                case "word" if not part.text.endswith("i"):
                    spelled = json.dumps(_said(part.text), ensure_ascii=False)[1:-1]
                    told.append(json.dumps(spelled, ensure_ascii=False))
                case "word" | "pattern":
                    told.append(self._patterns.rule(self._patterns.read(part.regex)))
                case "name" if part.text in self._terminals:
                    told.append(self._named(part.text))
                case _:
                    told.append(part.text)
        return " ".join(told) + "\n" + "\n".join(self._lines)

    def _named(self, name: str) -> str:
        """The terminal, defined once, by its new name."""
        if name not in self._made:
            rule = self._patterns.rule(self._node(self._terminals[name]))
            self._made[name] = f"{self._prefix}_{len(self._made)}"
            self._lines.append(f"{self._made[name]}: {rule}")
        return self._made[name]

    def _ignored(self, parts: Sequence[_Part]) -> str:
        """Of what is repeated one is ignored at a time, so that the next may be something else."""
        node = self._node(parts)
        return self._patterns.terminal(self._patterns.once(node))

    def _node(self, parts: Sequence[_Part]) -> Node:
        return self._patterns.read("".join(self._regex(parts, ())))

    def _regex(self, parts: Sequence[_Part], within: tuple[str, ...]) -> Iterator[str]:
        """A terminal's definition as one pattern."""
        size = 0
        for part in parts:
            match part.kind:
                case "word" | "pattern":
                    told = f"(?:{part.regex})"
                case "name":
                    if part.text in within or part.text not in self._terminals:
                        raise UserError(f"{self._where}: {part.text!r} is no terminal here")
                    if len(within) == DEEPEST:
                        raise UserError(f"{self._where}: terminals deeper than {DEEPEST}")
                    inner = self._regex(self._terminals[part.text], (*within, part.text))
                    told = f"(?:{''.join(inner)})"
                case "mark":
                    told = {"(": "(?:", "[": "(?:", "]": ")?"}.get(part.text, part.text)
                case _:
                    told = ""
            size += len(told)
            if size > MOST_PATTERN:
                raise UserError(f"{self._where}: a terminal of more than {MOST_PATTERN} characters")
            yield told


def _said(word: str) -> str:
    """What a literal of Lark says."""
    escapes = re.compile(r"\\(x|.)")
    text: str = json.loads(escapes.sub(lambda m: {"x": r"\u00"}.get(m[1], m[0]), word))
    return text
