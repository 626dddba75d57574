"""One question answered in several steps: the model answers, its calls are made, it reads on.

This decides only what is asked next and when it is over. Whoever drives it submits the requests
and makes the calls: the agent, the terminal, the server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from smollm3.chat import Message, ToolCall
from smollm3.infer.constrain.grammars import Tools
from smollm3.turn.reply import Reply
from smollm3.turn.request import Request

MAX_STEPS = 10  # answers to one question

# It answered, was cut, was stopped, made calls that are not ours to make, or ran out of steps.
LoopReason = Literal["stop", "length", "cancelled", "tool_calls", "steps"]


@dataclass(frozen=True)
class ToolResult:
    """What a call gave. text: as the model reads it. ok: it was made and did not fail."""

    call: ToolCall
    text: str
    ok: bool

    @property
    def message(self) -> dict[str, Any]:
        return {
            "role": "tool",
            "tool_call_id": self.call.id,
            "name": self.call.name,
            "content": self.text,
        }


class ToolLoop:
    """Ask `request`, `feed` the complete reply, make the calls that this returns, add each of
    their `results`, and go on until `request` is None.

    After the first step another call is the model's choice. The last step must do without calls,
    so a question always ends in an answer.

    ours: which calls are made here; where one is not, the loop ends with that answer. tokens: that
    all steps together may write, None for no such limit.
    """

    def __init__(
        self,
        request: Request,
        max_steps: int | None = None,
        *,
        ours: Callable[[ToolCall], bool] = lambda _: True,
        tokens: int | None = None,
    ) -> None:
        self.max_steps = MAX_STEPS if max_steps is None else max_steps
        self.messages = [
            m.to_dict() if isinstance(m, Message) else dict(m) for m in request.messages
        ]
        self.reason: LoopReason | None = None
        self._first = request
        self._ours = ours
        self._tokens = tokens
        self._steps = 0

    @property
    def request(self) -> Request | None:
        """What is asked next; None when it is over, for `reason`."""
        if self.reason is not None:
            return None
        request = replace(self._first, messages=list(self.messages))
        if self._tokens is not None:
            request = replace(request, params=replace(request.sampling, max_tokens=self._tokens))
        constraint = request.constraint
        if self._steps and isinstance(constraint, Tools):
            request = replace(request, constraint=replace(constraint, choice="auto"))
        return _without_calls(request) if self._is_last else request

    @property
    def _is_last(self) -> bool:
        return self._steps == self.max_steps - 1

    def feed(self, reply: Reply) -> tuple[ToolCall, ...]:
        """Take a complete reply. The calls to make now, all of them numbered; none: it is over."""
        message = numbered(reply.message, self.messages)
        self.messages.append(message.to_dict())
        if self._tokens is not None:
            self._tokens -= len(reply.steps)
        if self._is_last and reply.reason == "stop" and _offers_calls(self._first):
            self.reason = "steps"
        elif reply.reason != "tool_calls" or not all(map(self._ours, message.tool_calls)):
            self.reason = reply.reason
        self._steps += 1
        return message.tool_calls if reply.reason == "tool_calls" else ()

    def results(self, results: Sequence[ToolResult]) -> None:
        """Those of calls that have been made."""
        self.messages += [result.message for result in results]
        if self._tokens is not None and self._tokens <= 0 and self.reason is None:
            self.reason = "length"


def numbered(message: Message, history: Sequence[Mapping[str, Any]]) -> Message:
    """The message with its calls numbered on from those before it."""
    made = sum(len(m.get("tool_calls") or ()) for m in history)
    calls = tuple(
        ToolCall(call.name, call.arguments, f"call{made + i:05}")
        for i, call in enumerate(message.tool_calls, 1)
    )
    return Message(message.role, message.content, message.reasoning, calls)


def _offers_calls(request: Request) -> bool:
    return request.may_call and bool(request.tools or request.python_tools)


def _without_calls(request: Request) -> Request:
    constraint = request.constraint
    if isinstance(constraint, Tools):
        constraint = constraint.answer
    return replace(request, may_call=False, constraint=constraint)
