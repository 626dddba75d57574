"""POST /v1/responses, the answer as a stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from smollm3.infer.generation import Step
from smollm3.serve.answering import Answering, Quiet, Ran, StreamEvent
from smollm3.serve.dialects import openai_response_replies as said
from smollm3.serve.dialects.custom_tools import input_of
from smollm3.serve.dialects.openai_response_answer import Answer, Item
from smollm3.serve.errors import ApiError
from smollm3.serve.service import KEEP_ALIVE, Json, Tell, sse
from smollm3.turn import AnswerBlock, AnswerBlocks, End, Grown, Usage

_CODE = "response.code_interpreter_call"
_FAILED = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
_SUMMARY = {"part": "reasoning_summary_part", "text": "reasoning_summary_text"}
_NAMES = {  # of the events on a part
    "output_text": {"part": "content_part", "text": "output_text"},
    "reasoning_text": {"part": "content_part", "text": "reasoning_text"},
    "summary_text": _SUMMARY,
}


class Teller(Tell):
    """Numbered events: each item begins, grows and ends."""

    def __init__(self, answer: Answer, answering: Answering, keep: Any) -> None:
        self._answer = answer
        self._answering = answering
        self._keep = keep
        self._blocks = AnswerBlocks()
        self._count = 0
        self._end: End | None = None

    def event(self, event: StreamEvent) -> bytes:
        if isinstance(event, Quiet):
            return KEEP_ALIVE
        data = self._begin() if self._count == 0 else b""
        if isinstance(event, End):
            self._end = event
            return data
        if isinstance(event, Ran):
            self._blocks.made(event.place, event.result)
            return data + self._ran(event)
        for grown in self._blocks.feed(event.events, event.step):
            data += self._grow(grown)
        return data

    def _ran(self, event: Ran) -> bytes:
        """Items are the blocks, in their order."""
        item = self._answer.items[event.place]
        if event.result is None:
            code = item.code
            data = self._on_item(f"{_CODE}_code.delta", item, delta=code)
            data += self._on_item(f"{_CODE}_code.done", item, code=code)
            return data + self._on_item(f"{_CODE}.interpreting", item)
        return self._on_item(f"{_CODE}.completed", item) + self._done(item, "completed")

    def _begin(self) -> bytes:
        response = self._answer.response(None, Usage())
        return self._tell("response.created", response=response) + self._tell(
            "response.in_progress", response=response
        )

    def _grow(self, grown: Grown) -> bytes:
        data = b""
        if grown.opened:
            data = self._close("completed") + self._open(grown.block)
        if not grown.text:
            return data
        if grown.block.kind != "call":
            told = self._logprobs(grown.block, [] if grown.token is None else [grown.token])
            return data + self._on_text("text", "delta", delta=grown.text, **told)
        item = self._answer.items[-1]
        if item.container is not None or self._answer.is_custom(grown.block):
            return data  # its code or text is told when it is complete
        return data + self._on_item(
            "response.function_call_arguments.delta", item, delta=grown.text
        )

    def _open(self, block: AnswerBlock) -> bytes:
        item = self._answer.add(block)
        shown = self._answer.item(item, "in_progress", empty=True)
        place = len(self._answer.items) - 1
        data = self._tell("response.output_item.added", output_index=place, item=shown)
        if item.container is not None:
            return data + self._on_item(f"{_CODE}.in_progress", item)
        if block.kind == "call":
            return data
        part = self._answer.part(block).model_copy(update={"text": ""})
        if isinstance(part, said.TextOutputPart):
            part.logprobs = []
        return data + self._on_text("part", "added", part=part)

    def _close(self, status: said.Progress) -> bytes:
        """The last item is complete; one that is run here is so once it has run."""
        if not self._answer.items or self._answer.items[-1].container is not None:
            return b""
        item = self._answer.items[-1]
        block = item.block
        if block.kind != "call":
            told = self._logprobs(block, block.tokens)
            data = self._on_text("text", "done", text=block.text, **told)
            data += self._on_text("part", "done", part=self._answer.part(block))
        elif self._answer.is_custom(block):
            given = input_of(block.text)
            data = self._on_item("response.custom_tool_call_input.delta", item, delta=given)
            data += self._on_item("response.custom_tool_call_input.done", item, input=given)
        else:
            data = self._on_item(
                "response.function_call_arguments.done",
                item,
                arguments=block.text,
                name=self._answer.name(block),
            )
        return data + self._done(item, status)

    def _done(self, item: Item, status: said.Progress) -> bytes:
        place, shown = self._answer.items.index(item), self._answer.item(item, status)
        return self._tell("response.output_item.done", output_index=place, item=shown)

    def _on_item(self, kind: str, item: Item, **fields: Any) -> bytes:
        place = self._answer.items.index(item)
        return self._tell(kind, item_id=item.id, output_index=place, **fields)

    def _logprobs(self, block: AnswerBlock, steps: Sequence[Step]) -> Json:
        return {"logprobs": self._answer.logprobs(steps)} if block.kind == "content" else {}

    def _on_text(self, what: Literal["text", "part"], change: str, **fields: Any) -> bytes:
        """Of the last item's one part."""
        item = self._answer.items[-1]
        names, index = _NAMES[self._answer.part(item.block).type], "content_index"
        if names is _SUMMARY:
            index = "summary_index"
        return self._on_item(f"response.{names[what]}.{change}", item, **{index: 0}, **fields)

    def _tell(self, kind: str, **fields: Any) -> bytes:
        self._count += 1
        return sse({"type": kind, "sequence_number": self._count - 1, **fields}, kind)

    def end(self) -> bytes:
        assert self._end is not None
        cut = self._end.reason == "length"
        data = b""
        if self._answer.needs_message():
            data = self._close("completed") + self._open(AnswerBlock("content"))
        data += self._close("incomplete" if cut else "completed")
        for item in self._answer.items:
            if item.container is not None and item.block.result is None:
                data += self._done(item, "incomplete")
        response = self._keep(self._answer.response(self._end, self._answering.usage))
        return data + self._tell(f"response.{response.status}", response=response)

    def error(self, error: ApiError) -> bytes:
        code = _FAILED.get(error.status, "server_error")
        told = said.ResponseError(code=code, message=error.message)
        data = self._begin() if self._count == 0 else b""
        return data + self._tell(
            "response.failed", response=self._answer.response(None, Usage(), told)
        )
