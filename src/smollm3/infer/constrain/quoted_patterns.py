"""Patterns of a text, in Rust's syntax, as patterns of what spells it inside of a JSON string."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import UserError
from smollm3.infer.constrain.library import bytes_vocabulary, compiled, mask_of

if TYPE_CHECKING:
    from llguidance import LLMatcher

# Characters that a JSON string spells with an escape.
ESCAPED = '"\\' + "".join(map(chr, range(32)))
_OTHERS = r'[^"\\\x00-\x1f]'  # all but those
_NOTHING = "[a&&b]"  # matches no text
# What the library is asked of patterns in all grammars of a request, and its work on each (2 ms).
MOST_QUESTIONS = 400
FUEL = 100_000
DEEPEST = 64  # groups in each other

_ATOM = re.compile(
    r"""
      \(\?(?P<flags>[a-zA-Z]*(?:-[a-zA-Z]+)?)(?P<scoped>[:)])
    | (?P<group>\((?:\?P?<\w+>)?)
    | (?P<escape>\\(?:[pPuUx]\{[^}]*\}|[pP]\w|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.))
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_TIMES = re.compile(r"([*+?]|\{\d+(?:,\d*)?\}|\{,\d+\})\??")  # the library takes the longest anyway
_ASSERTIONS = (r"\A", r"\z", r"\b", r"\B", "^", "$")


@dataclass(frozen=True)
class Class:
    """What matches one character. flags: those that hold for it."""

    text: str
    flags: str


@dataclass(frozen=True)
class One:
    """A character of one of the classes."""

    classes: tuple[Class, ...]


@dataclass(frozen=True)
class Chain:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Repeated:
    """times: as a pattern has it."""

    part: Node
    times: str


@dataclass(frozen=True)
class Assertion:
    text: str


Node = One | Chain | Either | Repeated | Assertion


def literal(text: str) -> str:
    """A pattern of this text."""
    return re.sub(r"[^\w ]", lambda m: rf"\x{{{ord(m[0]):x}}}", text)


class Questions:
    """What the library is asked of the patterns of a request."""

    def __init__(self) -> None:
        self._left = MOST_QUESTIONS

    def ask(self, where: str, lark: str) -> LLMatcher:
        """A matcher of this grammar of bytes. Raises UserError where there are too many."""
        if not self._left:
            raise UserError(f"{where}: too many patterns in the grammars of these tools")
        self._left -= 1
        grammar = json.dumps({"grammars": [{"lark_grammar": lark}]})
        return compiled(where, bytes_vocabulary(), grammar, initial_lexer_fuel=FUEL)


class Patterns:
    """Those of one grammar. where: what an error begins with."""

    def __init__(self, where: str, questions: Questions) -> None:
        self._where = where
        self._questions = questions
        self._found: dict[Class, tuple[tuple[str, ...], bool]] = {}
        self._asked: dict[str, bool] = {}

    def flagged(self, held: str, change: str) -> str:
        """The flags after a change of them, such as `i-s`."""
        on, _, off = change.partition("-")
        if wrong := set(on + off) - set("imsu"):
            raise UserError(
                f"{self._where}: the flag {min(wrong)!r} of a pattern is not supported here"
            )
        return "".join(sorted((set(held) | set(on)) - set(off)))

    def read(self, pattern: str) -> Node:
        """Raises UserError for what the library does not take."""
        pattern = _slashed(pattern)
        self._questions.ask(self._where, f"start: /{pattern}/")
        node = _Reader(self, pattern).all()
        self._look(node)
        return node

    def deep(self) -> UserError:
        return UserError(f"{self._where}: groups of a pattern deeper than {DEEPEST}")

    # what spells them

    def terminal(self, node: Node) -> str:
        """As one terminal."""
        return f"/{self._spelled(node) or '(?:)'}/"

    def rule(self, node: Node) -> str:
        """As a terminal, or a part of a rule where what follows may begin with an escape."""
        if not self._goes_on(node):
            return self.terminal(node)
        match node:
            case Either(parts):
                return f"( {' | '.join(map(self.rule, parts))} )"
            case Repeated(One() as one, "*" | "+" as times):
                plain, escapes = self._apart(one)
                ways = [f"/(?:{plain})+/"] if plain else []
                return f"( {' | '.join([*ways, f'/{escapes}/'])} ){times}"
            case Repeated(part, times) if not self._goes_on(part):
                return f"( {self.terminal(part)} ){times}"
            case Chain((*first, last)) if not self._goes_on(Chain(tuple(first))):
                return f"( {self.terminal(Chain(tuple(first)))} {self.rule(last)} )"
        raise UserError(
            f"{self._where}: /{self._spelled(node):.60}/ cannot be told from what follows it; "
            "only classes of characters may be repeated there, alone or at a pattern's end"
        )

    def once(self, node: Node) -> Node:
        """What is repeated. Raises UserError for what cannot be ignored so."""
        once = node.part if isinstance(node, Repeated) else node
        if self._goes_on(once):
            raise UserError(
                f"{self._where}: %ignore: /{self._spelled(node):.60}/ cannot be told from what "
                "follows it; leave it out"
            )
        return once

    def _spelled(self, node: Node) -> str:
        match node:
            case One():
                told = [part for part in self._apart(node) if part] or [_NOTHING]
                return told[0] if len(told) == 1 else f"(?:{'|'.join(told)})"
            case Chain(parts):
                return "".join(map(self._spelled, parts))
            case Either(parts):
                return f"(?:{'|'.join(map(self._spelled, parts))})"
            case Repeated(part, times):
                return f"(?:{self._spelled(part)}){times}"
            case Assertion(text):
                return text

    def _apart(self, one: One) -> tuple[str, str]:
        """Patterns of its characters that are spelled as themselves, and of the escapes of others;
        nothing where there are none."""
        plain: list[str] = []
        escapes: list[str] = []
        for each in one.classes:
            found, others = self._found.get(each, ((), True))
            escapes += found
            if others:
                text = each.text
                if found:
                    inner = (r"\s\S" if "s" in each.flags else r"^\n") if text == "." else text
                    text = f"[[{inner}]&&{_OTHERS}]"
                plain.append(f"(?i:{text})" if "i" in each.flags else text)
        return "|".join(plain), _escapes(dict.fromkeys(escapes))

    # what the library is asked

    def _look(self, node: Node) -> None:
        """What the classes of a pattern match."""
        new = [each for each in dict.fromkeys(_classes(node)) if each not in self._found]
        new = [each for each in new if each.text in ESCAPED or not _is_itself(each.text)]
        if not new:
            return
        ways = " | ".join(f'"{i}:" /{_scoped(each)}/' for i, each in enumerate(new))
        matcher = self._questions.ask(self._where, f"start: {ways}")
        for i, each in enumerate(new):
            behind = matcher.deep_copy()
            behind.consume_tokens(list(f"{i}:".encode()))
            try:
                allowed = _first_bytes(behind)
            except UserError:  # nothing follows: the class is empty
                allowed = np.zeros(256, np.uint8)
            found = tuple(json.dumps(c)[2:-1] for c in ESCAPED if allowed[ord(c)])
            self._found[each] = found, int(allowed.sum()) > len(found)

    def _goes_on(self, node: Node) -> bool:
        """Whether it may be over in front of a backslash, and go on with it."""
        if not any(self._found.get(each, ((), True))[0] for each in _classes(node)):
            return False
        text = self._spelled(node)
        if text not in self._asked:
            both = rf"X: /{text}/ & /(?:{text})\\(?s:.*)/"
            # Nothing is spelled with a zero byte, which only keeps the grammar from being empty.
            matcher = self._questions.ask(self._where, f'start: "\\u0000" | X\n{both}')
            self._asked[text] = int(_first_bytes(matcher).sum()) > 1
        return self._asked[text]


class _Reader:
    """Reads one pattern, that the library takes."""

    def __init__(self, patterns: Patterns, pattern: str) -> None:
        self._patterns = patterns
        self._pattern = pattern
        self._place = 0

    def all(self) -> Node:
        return self._either("", 0)

    def _either(self, flags: str, depth: int) -> Node:
        """Up to the end of the group, or of the pattern."""
        if depth > DEEPEST:
            raise self._patterns.deep()
        ways: list[list[Node]] = [[]]
        while self._place < len(self._pattern):
            atom = _ATOM.match(self._pattern, self._place)
            assert atom is not None
            self._place = atom.end()
            if atom[0] == ")":
                break
            if atom[0] == "|":
                ways.append([])
            elif atom["scoped"] == ")":
                flags = self._patterns.flagged(flags, atom["flags"])
            elif atom["scoped"] or atom["group"]:
                inner = self._patterns.flagged(flags, atom["flags"] or "")
                ways[-1].append(self._times(self._either(inner, depth + 1)))
            elif atom[0] in _ASSERTIONS:
                ways[-1].append(Assertion(atom[0]))
            else:
                text = atom[0] if atom[0] != "[" else self._class()
                ways[-1].append(self._times(One((Class(text, flags),))))
        return _either([_chain(way) for way in ways])

    def _times(self, node: Node) -> Node:
        while found := _TIMES.match(self._pattern, self._place):
            self._place = found.end()
            node = Repeated(node, found[1])
        return node

    def _class(self) -> str:
        """The whole class whose bracket was read."""
        first, depth = self._place - 1, 0
        for part in re.compile(r"\[\^?\]?|\\.|.", re.DOTALL).finditer(self._pattern, first):
            depth += (part[0][0] == "[") - (part[0] == "]")
            if not depth:
                self._place = part.end()
                break
        return self._pattern[first : self._place]


def _chain(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Chain(tuple(parts))


def _either(parts: list[Node]) -> Node:
    """One character where each is."""
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, One) for part in parts):
        return One(tuple(c for part in parts if isinstance(part, One) for c in part.classes))
    return Either(tuple(parts))


def _classes(node: Node) -> Iterable[Class]:
    match node:
        case One(classes):
            yield from classes
        case Chain(parts) | Either(parts):
            for part in parts:
                yield from _classes(part)
        case Repeated(part):
            yield from _classes(part)


def _is_itself(text: str) -> bool:
    return len(text) == 1 and text != "."


def _scoped(each: Class) -> str:
    return f"(?{each.flags}:{each.text})" if each.flags else each.text


def _escapes(found: Iterable[str]) -> str:
    """A pattern of these escapes, which are without their backslashes."""
    short = "".join(re.escape(e) for e in found if len(e) == 1)
    codes = "|".join(e[-2:] for e in found if len(e) > 1)
    ways = [f"[{short}]"] if short else []
    ways += [f"u00(?:{codes})"] if codes else []
    return rf"\\(?:{'|'.join(ways)})" if ways else ""


def _slashed(pattern: str) -> str:
    """Between slashes, for Lark."""
    return re.sub(
        r"\\.|[/\n]", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), pattern, flags=re.S
    )


def _first_bytes(matcher: LLMatcher) -> NDArray[np.uint8]:
    """[bytes] 1 for those that a text may begin with."""
    words = (bytes_vocabulary().vocab_size + 31) // 32
    mask: NDArray[np.uint8] = mask_of(matcher, words).view(np.uint8)
    return np.unpackbits(mask, bitorder="little")
