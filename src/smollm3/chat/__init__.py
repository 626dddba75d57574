"""The chat protocol: messages, templates, rendering with loss spans, parsing."""

from smollm3.chat.message import Message, ToolCall
from smollm3.chat.parse import (
    ArgumentsDelta,
    CallEnd,
    CallStart,
    ContentDelta,
    Event,
    ReasoningDelta,
    StreamParser,
    parse,
)
from smollm3.chat.render import Renderer, Rendering, RenderOptions
from smollm3.chat.template import default_template

__all__ = [
    "ArgumentsDelta",
    "CallEnd",
    "CallStart",
    "ContentDelta",
    "Event",
    "Message",
    "ReasoningDelta",
    "RenderOptions",
    "Renderer",
    "Rendering",
    "StreamParser",
    "ToolCall",
    "default_template",
    "parse",
]
