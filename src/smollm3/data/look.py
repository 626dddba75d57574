"""What is in a user's data before anything is trained on it: every row as preparation would use it,
what is left out and why, and what should be looked at.

Nothing is read or rendered here that preparation reads or renders otherwise: it is the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from smollm3.chat import default_template
from smollm3.chat.history import SYSTEMS
from smollm3.chat.tags import END_MARKS
from smollm3.data.formats import MARKS, spells_template
from smollm3.data.languages import language, script
from smollm3.data.ledger import MODES
from smollm3.data.messages import Messages
from smollm3.data.preparation import rendered
from smollm3.data.shards import GENERATED
from smollm3.data.sources import Document, Entry, entries, plan
from smollm3.data.spec import Source
from smollm3.errors import UserError
from smollm3.tokenizer import CONTROL, Tokenizer

PLACES = 5  # that are named of each kind of odd row
EXAMPLES = 3
IsItem = Callable[[str], bool]


@dataclass(frozen=True)
class Side:
    """What is trained on of a row: a text, a conversation, or one side of a pair.

    pieces: (text, whether it is trained on), one after another. tokens: in all. first: the place of
    the first trained one.
    """

    pieces: list[tuple[str, bool]]
    tokens: int
    first: int

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    @property
    def trained(self) -> list[str]:
        return [text for text, trained in self.pieces if trained]


@dataclass(frozen=True)
class Looked:
    """A row: as it is used (one side, two of a pair), or why it is not. odd: what may be wrong."""

    entry: Entry
    sides: list[Side] = field(default_factory=list)
    left_out: str = ""
    odd: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The row as `smollm3 data look --json` prints it; of a pair, lists of two."""
        where = {"file": self.entry.file, "row": self.entry.row, "line": self.entry.line}
        if self.left_out:
            return {**where, "left_out": self.left_out}
        one = len(self.sides) == 1

        def each(of: Callable[[Side], Any]) -> Any:
            return of(self.sides[0]) if one else [of(side) for side in self.sides]

        document = self.entry.document
        assert document is not None
        mode = {} if document.text is not None else {"thinking": _mode(document)}
        return {
            **where,
            "tokens": each(lambda side: side.tokens),
            "text": each(lambda side: side.text),
            "trained": each(lambda side: side.trained),
            **mode,
            "odd": self.odd,
        }


def bytes_tokenizer() -> Tokenizer:
    """Our template over a vocabulary of single bytes: for a look without a model."""
    return Tokenizer.train([], len(CONTROL) + 256, default_template())


def look(
    source: Source, tokenizer: Tokenizer, context: int | None = None, is_item: IsItem | None = None
) -> Iterator[Looked]:
    """Every row of a source in its files' order, as it would be prepared with the tokenizer.

    context: tokens of a row of the stage. is_item: whether a text holds an evaluation item.
    """
    seen: dict[int, str] = {}
    planned = plan(source, seed=0)
    in_order = sorted(planned.parts, key=lambda spans: (spans[0].number, spans[0].first))
    for entry in entries(source, 0, replace(planned, parts=in_order)):
        document = entry.document
        if document is None:
            yield Looked(entry, left_out=entry.fault)
            continue
        try:
            sides = _sides(document, tokenizer)
        except UserError as e:
            yield Looked(entry, left_out=f"cannot be rendered: {e}")
            continue
        odd = list(_odd(document))
        if document.options.get("tools") and not tokenizer.shows_tools:
            odd.append("tools that the model's chat template does not show")
        if context is not None:
            odd += _cut(sides, context)
        content = document.content_hash()
        if content in seen:
            odd.append(f"the same as {seen[content]}")
        seen.setdefault(content, entry.place)
        if is_item is not None and is_item("\n".join(document.texts())):
            odd.append("holds an evaluation item")
        yield Looked(entry, sides, odd=odd)


def _sides(document: Document, tokenizer: Tokenizer) -> list[Side]:
    if document.text is not None:
        tokens = len(tokenizer.encode(document.text)) + 1
        return [Side([(document.text, True)], tokens, 0)]
    sides = []
    ids_, masks = rendered(document, tokenizer)
    for ids, mask in zip(ids_, masks or (), strict=True):
        bits = [bool(bit & GENERATED) for bit in mask]
        runs = groupby(zip(ids, bits, strict=True), key=lambda pair: pair[1])
        pieces = [(tokenizer.decode([i for i, _ in run]), trained) for trained, run in runs]
        sides.append(Side(pieces, len(ids), bits.index(True) if True in bits else len(ids)))
    return sides


def _mode(document: Document) -> str:
    mode = MODES[document.options.get("enable_thinking")]
    return f"{mode} (guessed)" if document.guessed else mode


# Odd rows


def _odd(document: Document) -> Iterator[str]:
    """What is likely to be a mistake in a document that can be rendered."""
    if document.text is not None:
        if spells_template(document.text):
            yield "begins with a template's marks, which are trained as plain text"
        return
    messages = [*document.messages, *document.chosen]
    if messages[-1]["role"] != "assistant":
        yield f"ends on a message of the {messages[-1]['role']}"
    if not any(message["role"] == "user" for message in messages):
        yield "without a message of the user"
    for message in messages:
        yield from _odd_message(message)
    yield from _odd_calls(document, messages)


def _odd_message(message: dict[str, Any]) -> Iterator[str]:
    role, content = message["role"], message["content"]
    calls = message.get("tool_calls")
    if not content.strip() and not calls and role not in SYSTEMS:
        yield f"an empty message of the {role}"
    if any(mark in content for mark in (*END_MARKS[:-1], *MARKS)):
        yield f"a template's marks in a message of the {role}"
    if "\x00" in content or "\ufffd" in content:
        yield f"signs that are no text in a message of the {role} (NUL or U+FFFD)"
    if calls and any(isinstance(call["function"]["arguments"], str) for call in calls):
        yield "a call whose arguments are no JSON object"


def _odd_calls(document: Document, messages: Messages) -> Iterator[str]:
    names = {c["function"]["name"] for m in messages for c in m.get("tool_calls", ())}
    tools = document.options.get("tools", []) + document.options.get("python_tools", [])
    if names and not tools:
        yield "tool calls without tools"
    elif names and not any(isinstance(tool, str) for tool in tools):
        known = {str(tool.get("function", tool).get("name")) for tool in tools}
        if missing := sorted(names - known - {"python"}):
            yield f"a call of {missing[0][:40]!r}, which is none of its tools"


def _cut(sides: list[Side], context: int) -> list[str]:
    if all(side.tokens <= context + 1 for side in sides):
        return []
    if len(sides) == 2:
        return ["a pair longer than the context, which is left out"]
    if sides[0].first > context:
        return ["its answers begin beyond the context: it is left out"]
    return ["cut at the context"]


# The whole


@dataclass
class Summary:
    """What `look` found in all rows. odd, left_out: kind -> how often; places: the first few."""

    rows: int = 0
    used: int = 0
    tokens: list[int] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    tools: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)
    examples: list[Looked] = field(default_factory=list)

    def add(self, row: Looked) -> None:
        self.rows += 1
        if row.left_out:
            self._note(self.left_out, row.left_out, row.entry.place)
            return
        self.used += 1
        for odd in row.odd:
            kind = "the same as an earlier row" if odd.startswith("the same as") else odd
            self._note(self.odd, kind, row.entry.place)
        self.tokens += [side.tokens for side in row.sides]
        if len(self.examples) < EXAMPLES and not row.odd:
            self.examples.append(row)
        assert row.entry.document is not None
        self._describe(row.entry.document)

    def _note(self, counts: Counter[str], what: str, place: str) -> None:
        counts[what] += 1
        places = self.places.setdefault(what, [])
        if len(places) < PLACES:
            places.append(place)

    def _describe(self, document: Document) -> None:
        messages = [*document.messages, *document.chosen]
        text = document.text or "\n".join(m["content"] for m in messages)
        self.languages[language(text) or script(text) or "?"] += 1
        if document.text is not None:
            return
        self.roles.update(message["role"] for message in messages)
        self.modes[_mode(document)] += 1
        for message in messages:
            for call in message.get("tool_calls", ()):
                self.tools[call["function"]["name"]] += 1

    def lengths(self) -> dict[str, int]:
        """Tokens of the shortest, the median, the 95th percentile, the longest, and in all."""
        if not self.tokens:
            return {}
        sizes = np.array(self.tokens)
        return {
            "shortest": int(sizes.min()),
            "median": int(np.median(sizes)),
            "95%": int(np.quantile(sizes, 0.95)),
            "longest": int(sizes.max()),
            "all": int(sizes.sum()),
        }
