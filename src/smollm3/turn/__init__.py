"""From a conversation to an answer: requests, the replies to them, the loop of tools."""

from smollm3.turn.blocks import AnswerBlock, AnswerBlocks, Grown
from smollm3.turn.loop import MAX_STEPS, LoopReason, ToolLoop, ToolResult, numbered
from smollm3.turn.reply import End, FinishReason, Part, Reply, Usage, wait_all
from smollm3.turn.request import Request, submit

__all__ = [
    "MAX_STEPS",
    "AnswerBlock",
    "AnswerBlocks",
    "End",
    "FinishReason",
    "Grown",
    "LoopReason",
    "Part",
    "Reply",
    "Request",
    "ToolLoop",
    "ToolResult",
    "Usage",
    "numbered",
    "submit",
    "wait_all",
]
