"""A chat message: what was thought, what was said, which tools were called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """One call of a tool. The model does not write `id`; who serves the call gives it one.

    arguments: by name; or, where the model wrote no valid JSON object (it was cut off, say), the
    text that it wrote.
    """

    name: str
    arguments: dict[str, Any] | str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn. Rendering and parsing are inverse for messages in normal form:

    `content` and `reasoning` neither begin nor end with a newline, `reasoning` is None rather than
    empty, neither spells the tags around reasoning and calls, and `content` leaves no code fence
    open in front of calls.
    """

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The message as OpenAI's API and chat templates spell it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    **({} if call.id is None else {"id": call.id}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return message
