"""From what a model writes in its turn to a message: reasoning, content, tool calls.

There is one parser, fed in pieces; `parse` feeds it all at once. What the pieces are never changes
what is read, so every decision waits until the text that decides it is there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from smollm3.chat.calls import TO_EDGE, in_string, json_object, read_call
from smollm3.chat.message import Message, ToolCall
from smollm3.chat.tags import CALL, CODE, END_CALL, END_CODE, END_THINK, PYTHON, THINK


@dataclass(frozen=True)
class ReasoningDelta:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True)
class ContentDelta:
    """More of what the model says."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The model begins to call the tool `name`; its calls are counted from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ArgumentsDelta:
    """More of the JSON text of the arguments of call `index`."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """Call `index` is complete."""

    index: int
    call: ToolCall


Event = ReasoningDelta | ContentDelta | CallStart | ArgumentsDelta | CallEnd

_BLANKS = re.compile(r"\s*")
_EDGE = re.compile(f"{CALL}|{END_CALL}")
# What begins a call whose arguments can be passed on as they come.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]++|\\.)*+")\s*,'
    r'\s*"(?:arguments|parameters)"\s*:\s*(?=\{\s*["}])',
    re.DOTALL,
)
_OUTSIDE_STRING = re.compile(r'[^"{}\[\]<A-Za-z]+|[A-Za-z]+|["{}\[\]<]')
_IN_STRING = re.compile(r'[^"\\\x00-\x1f]+|\\.|["\\\x00-\x1f]', re.DOTALL)
# Models mix Python into JSON; line ends in strings are the other frequent slip.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_FENCE_OPENS = re.compile(r" {0,3}(`{3,}(?!.*`)|~{3,})")
_FENCE_CLOSES = re.compile(r" {0,3}(`{3,}|~{3,})\s*$")
_FENCE_LINE = 120  # characters of a line that can make it one that opens or closes a fence


def parse(text: str, *, xml: bool = True, python: bool = False) -> Message:
    """The message in the text of an assistant's turn, from after its header to before its stop
    token. See `StreamParser`."""
    parser = StreamParser(xml=xml, python=python)
    parser.feed(text)
    parser.finish()
    return parser.message


class StreamParser:
    """Reads an assistant's turn in pieces of any size.

    A reasoning block comes first, closed or not; what it says is never a call. Then calls are
    looked for in the styles that were offered: `xml` `<tool_call>{"name", "arguments"}</tool_call>`
    (JSON, or a Python dict; also `parameters`, and several objects), `python` `<code>...</code>`, a
    call of the tool `python` with {"code": ...}. Their last tag may be missing. What stands in a
    Markdown code fence or behind a backtick is a quote, and what turns out to be no call stays in
    the content.

    The texts of the events add up to `message`, and the texts of a call's arguments to their JSON;
    newlines at the ends of reasoning and content are left out, and no part of a tag is shown.
    Python dicts come in one piece.
    """

    def __init__(self, *, xml: bool = True, python: bool = False, opened: bool = False) -> None:
        """opened: the prompt has begun the block of reasoning."""
        self._tags = (CALL,) * xml + (CODE,) * python
        self._buffer = ""
        self._at = 0  # what lies before it in the buffer is done with
        self._final = False
        self._state: Callable[[], bool] = self._think if opened else self._begin
        self._reasoning = _Trimmed()
        self._content = _Trimmed()
        self._quotes = _Quotes()
        self._calls: list[ToolCall] = []
        self._tag = CALL  # what is content where no call follows; the second in a block has none
        self._name = ""
        self._arguments: list[str] = []
        self._code = _Trimmed()
        self._depth = 0  # of brackets
        self._in_string = False
        self._events: list[Event] = []

    @property
    def reasons(self) -> bool:
        """Whether it is inside a block of reasoning."""
        return self._state == self._think

    @property
    def message(self) -> Message:
        """What has been read so far."""
        calls = tuple(self._calls)
        return Message("assistant", self._content.text, self._reasoning.text or None, calls)

    def feed(self, text: str) -> list[Event]:
        """Read on; what can be told now."""
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """The turn is over; what was held back."""
        self._final = True
        return self.feed("")

    # Each state reads on from `_at`; False means that it waits for more text, or nothing is left.

    def _begin(self) -> bool:
        begin = self._after_blanks()
        if self._may_become(THINK, begin):
            return False
        if self._buffer.startswith(THINK, begin):
            self._at = begin + len(THINK)
            self._state = self._think
        else:
            self._state = self._say
        return True

    def _think(self) -> bool:
        text, tag = self._take((END_THINK,))
        self._tell(ReasoningDelta(self._reasoning.add(text)))
        if tag:
            self._state = self._say
        return bool(tag)

    def _say(self) -> bool:
        text, tag = self._take(self._tags)
        self._add_content(text)
        if tag and self._quotes.quoted:
            self._add_content(tag)
        elif tag:
            self._tag = tag
            self._state = self._begin_call if tag == CALL else self._begin_code
        return bool(tag)

    def _begin_call(self) -> bool:
        edge = _EDGE.search(self._buffer, self._at)
        end = edge.start() if edge else len(self._buffer)
        if (name := self._head(end)) is not None:
            self._start_call(name)
            self._depth = 1  # the object of name and arguments is open
            self._state = self._read_arguments
            return True
        begin = min(self._after_blanks(), end)
        braced = self._buffer.startswith("{", begin)
        if not edge and not self._final and (braced or begin == end):
            return False
        call = read_call(self._buffer[begin:end].rstrip()) if braced else None
        if braced and edge and call is None:
            later = TO_EDGE.match(self._buffer, begin)  # what looked like an edge may be quoted
            if later is None and not self._final and in_string(self._buffer[begin:end]):
                return False
            if later and later.end() > end:
                call = read_call(self._buffer[begin : later.end()].rstrip())
        if call:
            name, arguments, length = call
            self._start_call(name)
            self._add_arguments(arguments)
            self._end_call()
            self._at = begin + length
            self._state = self._close
        else:
            self._add_content(self._tag)
            self._state = self._say
        return True

    def _head(self, end: int) -> str | None:
        """The name in front of an object of arguments, which is then next."""
        head = _HEAD.match(self._buffer, self._at, end)
        try:
            name: str | None = json.loads(head[1]) if head else None
        except ValueError:
            return None
        if head:
            self._at = head.end()
        return name

    def _read_arguments(self) -> bool:
        text, ended = self._scan(to_depth=1)
        self._add_arguments(text)
        if ended:
            self._end_call()
            self._state = self._leave_object
        return ended

    def _leave_object(self) -> bool:
        begin = self._after_blanks()
        if begin == len(self._buffer) and not self._final:
            return False
        following = self._buffer[begin : begin + 1]
        self._at = begin + (following == "}")
        self._state = self._skip_members if following == "," else self._close
        return True

    def _skip_members(self) -> bool:
        """What else the object of a call says, such as an id."""
        _, ended = self._scan(to_depth=0)
        if ended:
            self._state = self._close
        return ended

    def _close(self) -> bool:
        begin = self._after_blanks()
        if self._may_become(END_CALL, begin):
            return False
        closed = self._buffer.startswith(END_CALL, begin)
        self._at = begin + closed * len(END_CALL)
        self._state = self._say
        if self._buffer.startswith("{", begin):
            self._tag, self._state = "", self._begin_call
        return True

    def _begin_code(self) -> bool:
        begin = self._after_blanks()
        if self._may_become(END_CODE, begin):
            return False
        if begin == len(self._buffer) or self._buffer.startswith(END_CODE, begin):
            self._add_content(CODE)
            self._state = self._say
        else:
            self._start_call(PYTHON)
            self._add_arguments('{"code": "')
            self._code = _Trimmed()
            self._state = self._read_code
        return True

    def _read_code(self) -> bool:
        text, tag = self._take((END_CODE,))
        self._add_arguments(json.dumps(self._code.add(text), ensure_ascii=False)[1:-1])
        ended = bool(tag) or self._final
        if ended:
            self._add_arguments('"}')
            self._end_call()
            self._state = self._say
        return ended

    # Reading

    def _after_blanks(self) -> int:
        """Where the next character that is not white space is."""
        blanks = _BLANKS.match(self._buffer, self._at)
        assert blanks
        return blanks.end()

    def _may_become(self, tag: str, at: int) -> bool:
        """Whether more text could complete the tag at `at`."""
        rest = self._buffer[at : at + len(tag)]
        return not self._final and rest != tag and tag.startswith(rest)

    def _take(self, tags: tuple[str, ...]) -> tuple[str, str]:
        """The text in front of the first of the tags, and that tag; without one, the text as far
        as it cannot be part of one."""
        begin = self._at
        found = _any(tags).search(self._buffer, begin)
        if found:
            self._at = found.end()
            return self._buffer[begin : found.start()], found[0]
        self._at = len(self._buffer)
        longest = max(map(len, tags), default=0)
        for at in range(max(begin, self._at - longest + 1), self._at):
            if any(self._may_become(tag, at) for tag in tags):
                self._at = at
                break
        return self._buffer[begin : self._at], ""

    def _scan(self, to_depth: int) -> tuple[str, bool]:
        """JSON up to the bracket that closes this depth, or to where it cannot go on, as far as it
        is there; and whether it ended."""
        parts: list[str] = []
        while self._at < len(self._buffer):
            token = (_IN_STRING if self._in_string else _OUTSIDE_STRING).match(
                self._buffer, self._at
            )
            assert token  # the patterns match any character
            part = token[0]
            cut = part == "\\" if self._in_string else part[0].isalpha()
            if cut and token.end() == len(self._buffer) and not self._final:
                break
            if part == "<" and not self._in_string:
                return "".join(parts), True
            self._at = token.end()
            parts.append(self._json_part(part))
            if self._depth == to_depth:
                return "".join(parts), True
        return "".join(parts), self._final

    def _json_part(self, part: str) -> str:
        if self._in_string:
            self._in_string = part != '"'
            return json.dumps(part)[1:-1] if part < " " else part
        self._in_string = part == '"'
        self._depth += (part in "{[") - (part in "}]")
        return _PYTHON_WORDS.get(part, part)

    # Telling

    def _tell(self, event: Event) -> None:
        if not isinstance(event, ReasoningDelta | ContentDelta | ArgumentsDelta) or event.text:
            self._events.append(event)

    def _add_content(self, text: str) -> None:
        self._quotes.read(text)
        self._tell(ContentDelta(self._content.add(text)))

    def _start_call(self, name: str) -> None:
        self._name = name
        self._arguments = []
        self._tell(CallStart(len(self._calls), name))

    def _add_arguments(self, text: str) -> None:
        self._arguments.append(text)
        self._tell(ArgumentsDelta(len(self._calls), text))

    def _end_call(self) -> None:
        text = "".join(self._arguments)
        arguments = json_object(text)
        call = ToolCall(self._name, text if arguments is None else arguments)
        self._tell(CallEnd(len(self._calls), call))
        self._calls.append(call)
        self._quotes = _Quotes()


class _Trimmed:
    """A text that comes in pieces, without the newlines at its ends."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self._newlines = 0  # read, but perhaps at the end

    def add(self, text: str) -> str:
        """What of the text can be shown now."""
        if not self._shown:
            text = text.lstrip("\n")
        body = text.rstrip("\n")
        shown = "\n" * self._newlines + body if body else ""
        self._newlines = len(text) - len(body) + (0 if body else self._newlines)
        if shown:
            self._shown.append(shown)
        return shown

    @property
    def text(self) -> str:
        return "".join(self._shown)


class _Quotes:
    """Whether what comes next is quoted: in a Markdown code fence, or right behind a backtick."""

    def __init__(self) -> None:
        self._fence = ""  # what opened the one we are in
        self._line = ""  # how the current line begins
        self._backtick = False

    def read(self, text: str) -> None:
        *ended, line = text.split("\n")
        for end in ended:
            self._end_line((self._line + end)[:_FENCE_LINE])
            self._line = ""
        self._line = (self._line + line)[:_FENCE_LINE]
        if text:
            self._backtick = text[-1] == "`"

    def _end_line(self, line: str) -> None:
        if not self._fence:
            opens = _FENCE_OPENS.match(line)
            self._fence = opens[1] if opens else ""
        elif (closes := _FENCE_CLOSES.match(line)) and closes[1].startswith(self._fence):
            self._fence = ""

    @property
    def quoted(self) -> bool:
        return bool(self._fence or self._backtick or _FENCE.match(self._line))


@cache
def _any(tags: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(tags) or "(?!)")
