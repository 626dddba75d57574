"""An answer as its blocks: stretches of reasoning and of content, and calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from smollm3.chat import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    Event,
    Message,
    ReasoningDelta,
    ToolCall,
)
from smollm3.infer.generation import Step

if TYPE_CHECKING:
    from smollm3.turn.loop import ToolResult


@dataclass
class AnswerBlock:
    """A stretch of an answer: its reasoning, content or one call. text: of a call, its arguments.

    call: once it is complete. result: of a call that was made meanwhile. step: how often results
    had been read before, in an answer of several steps. tokens: those of content.
    """

    kind: Literal["reasoning", "content", "call"]
    name: str = ""
    text: str = ""
    tokens: list[Step] = field(default_factory=list)
    call: ToolCall | None = None
    result: ToolResult | None = None
    step: int = 0


@dataclass(frozen=True)
class Grown:
    """What has been added to a block. opened: it is new. token: the one that brought it."""

    block: AnswerBlock
    text: str
    opened: bool
    token: Step | None


class AnswerBlocks:
    """The blocks of an answer, in the order in which they came. A block is complete once another
    begins."""

    def __init__(self) -> None:
        self.all: list[AnswerBlock] = []
        self._step = 0

    @property
    def calling(self) -> bool:
        """Whether a call is not yet complete."""
        return bool(self.all) and self.all[-1].kind == "call" and self.all[-1].call is None

    @property
    def calls(self) -> list[AnswerBlock]:
        return [block for block in self.all if block.kind == "call"]

    def text(self, kind: Literal["reasoning", "content"]) -> str:
        return "".join(block.text for block in self.all if block.kind == kind)

    @property
    def message(self) -> Message:
        calls = tuple(block.call for block in self.all if block.call is not None)
        return Message("assistant", self.text("content"), self.text("reasoning") or None, calls)

    def made(self, place: int, result: ToolResult | None) -> AnswerBlock:
        """The call in this place is being made, or has been. What comes after results is another
        step's."""
        block = self.all[place]
        block.result = result
        self._step = block.step + 1
        return block

    def feed(self, events: Sequence[Event], token: Step | None) -> list[Grown]:
        """What the events add. token: the one that brought them."""
        grown = []
        for event in events:
            match event:
                case ReasoningDelta(text) if text:
                    block, opened = self._block("reasoning")
                case ContentDelta(text) if text:
                    block, opened = self._block("content")
                    if token is not None:
                        block.tokens.append(token)
                case CallStart(_, name):
                    block, opened, text = self._open(AnswerBlock("call", name)), True, ""
                case ArgumentsDelta(_, text) if text:
                    block, opened = self.all[-1], False
                case CallEnd(_, call):
                    self.all[-1].call = call
                    continue
                case _:
                    continue
            block.text += text
            grown.append(Grown(block, text, opened, token))
        return grown

    def _block(self, kind: Literal["reasoning", "content"]) -> tuple[AnswerBlock, bool]:
        if self.all and (self.all[-1].kind, self.all[-1].step) == (kind, self._step):
            return self.all[-1], False
        return self._open(AnswerBlock(kind)), True

    def _open(self, block: AnswerBlock) -> AnswerBlock:
        block.step = self._step
        self.all.append(block)
        return block
