"""The chat protocol: messages, templates, rendering with loss spans, parsing."""

from smollm3.chat.message import Message, ToolCall
from smollm3.chat.parse import parse
from smollm3.chat.render import Renderer, Rendering, RenderOptions
from smollm3.chat.template import default_template

__all__ = [
    "Message",
    "RenderOptions",
    "Renderer",
    "Rendering",
    "ToolCall",
    "default_template",
    "parse",
]
