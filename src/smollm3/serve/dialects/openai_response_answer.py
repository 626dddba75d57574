"""POST /v1/responses, the answer as output items."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smollm3.chat.tags import PYTHON
from smollm3.serve.dialects import openai_response_replies as said
from smollm3.serve.dialects.custom_tools import input_of
from smollm3.serve.dialects.openai_items import ResponseBody
from smollm3.serve.dialects.openai_response_tools import CustomTool, ResponseTool
from smollm3.serve.dialects.replies import ReasoningTokens, TokenLogprob
from smollm3.serve.dialects.tokens import chat_logprob
from smollm3.serve.service import Json, Service, new_id
from smollm3.serve.steps import arguments_of, messages_of
from smollm3.turn import AnswerBlock, End, Usage

_PREFIX = {"reasoning": "rs_", "content": "msg_", "call": "fc_"}


@dataclass
class Item:
    """A block with the names that it has in this API. container: of a call that is run here."""

    block: AnswerBlock
    id: str
    call_id: str
    container: str | None = None

    @property
    def code(self) -> str:
        return str(arguments_of(self.block.text).get("code", ""))


class Answer:
    """A response: what was asked, and the items so far."""

    def __init__(
        self, service: Service, body: ResponseBody, model: str, container: str | None
    ) -> None:
        self._container = container
        self._tokenizer = service.engine.tokenizer
        self._body = body
        self._model = model
        self._id = new_id("resp_")
        self._created = int(time.time())
        self.items: list[Item] = []

    def add(self, block: AnswerBlock) -> Item:
        python = self._container is not None and (block.kind, block.name) == ("call", PYTHON)
        prefix = "ci_" if python else _PREFIX[block.kind]
        item = Item(block, new_id(prefix), new_id("call_"), self._container if python else None)
        self.items.append(item)
        return item

    def take(self, blocks: Sequence[AnswerBlock]) -> None:
        for block in blocks:
            self.add(block)

    def needs_message(self) -> bool:
        """Whether nothing was said nor called: then an empty message says so."""
        return all(item.block.kind == "reasoning" for item in self.items)

    def messages(self) -> list[Json]:
        """The answer as templates know it."""
        return messages_of((item.block, item.call_id) for item in self.items)

    def logprobs(self, steps: Sequence[Any]) -> list[TokenLogprob]:
        if not self._body.with_logprobs:
            return []
        return [chat_logprob(self._tokenizer, s, self._body.top_logprobs or 0) for s in steps]

    def is_custom(self, block: AnswerBlock) -> bool:
        """Whether a block calls a custom tool."""
        found = self._body.functions.get(block.name) if block.kind == "call" else None
        return found is not None and isinstance(found.tool, CustomTool)

    def name(self, block: AnswerBlock) -> str:
        """What the request calls the tool that a block calls."""
        found = self._body.functions.get(block.name)
        return found.tool.name if found else block.name

    def part(
        self, block: AnswerBlock
    ) -> said.ReasoningPart | said.SummaryPart | said.TextOutputPart:
        return self._thought(block) if block.kind == "reasoning" else self._text(block)

    def _thought(self, block: AnswerBlock) -> said.ReasoningPart | said.SummaryPart:
        if self._body.summarised:
            return said.SummaryPart(type="summary_text", text=block.text)
        return said.ReasoningPart(type="reasoning_text", text=block.text)

    def _text(self, block: AnswerBlock) -> said.TextOutputPart:
        return said.TextOutputPart(
            type="output_text",
            text=block.text,
            annotations=[],
            logprobs=self.logprobs(block.tokens),
        )

    def item(
        self, item: Item, status: said.Progress = "completed", empty: bool = False
    ) -> said.OutputItem:
        block = item.block
        told: Any = {"id": item.id, "status": status}
        if item.container is not None:
            return said.CodeInterpreterOutput(**told, **self._run(item, empty))
        match block.kind:
            case "reasoning":
                thoughts: Any = [] if empty else [self._thought(block)]
                parts: Json = {"summary": [], "content": []}
                parts["summary" if self._body.summarised else "content"] = thoughts
                return said.ReasoningOutput(**told, type="reasoning", **parts)
            case "content":
                texts = [] if empty else [self._text(block)]
                return said.MessageOutput(**told, type="message", role="assistant", content=texts)
        text, called = "" if empty else block.text, self._body.functions.get(block.name)
        told |= {"call_id": item.call_id, **(called.names if called else {"name": block.name})}
        if self.is_custom(block):
            given = input_of(text) if text else ""
            return said.CustomToolCallOutput(**told, type="custom_tool_call", input=given)
        return said.FunctionCallOutput(**told, type="function_call", arguments=text)

    def _is_cut(self, item: Item, cut: bool) -> bool:
        if item.container is not None:
            return item.block.result is None
        return cut and item is self.items[-1]

    def _run(self, item: Item, empty: bool) -> Any:
        """Python and what it gave."""
        result, code = item.block.result, "" if empty else item.code
        outputs = None if result is None else [said.LogsOutput(type="logs", logs=result.text)]
        place = {"type": "code_interpreter_call", "container_id": item.container}
        return {**place, "code": code, "outputs": outputs}

    def response(
        self, end: End | None, usage: Usage, error: said.ResponseError | None = None
    ) -> said.ResponseReply:
        """end: None while it is being made."""
        cut = end is not None and end.reason == "length"
        if end is not None and self.needs_message():
            self.add(AnswerBlock("content"))
        status: said.Progress = "incomplete" if cut else "completed" if end else "in_progress"
        body = self._body
        return said.ResponseReply(
            id=self._id,
            object="response",
            created_at=self._created,
            completed_at=int(time.time()) if status == "completed" else None,
            status="failed" if error else status,
            model=self._model,
            output=[
                self.item(item, "incomplete" if self._is_cut(item, cut) else "completed")
                for item in self.items
            ],
            usage=response_usage(usage) if end else None,
            error=error,
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            instructions=body.instructions,
            previous_response_id=body.previous_response_id,
            **_conversation(body),
            max_output_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_logprobs=body.top_logprobs or 0,
            tools=[_tool(tool) for tool in body.callable_tools],
            tool_choice=body.choice,
            parallel_tool_calls=body.parallel,
            text=_dump(body.text) if body.text else {"format": {"type": "text"}},
            reasoning={"effort": body.reasoning.effort if body.reasoning else None},
            store=body.store is not False,
            truncation="disabled",
            metadata=body.metadata or {},
            background=False,
        )


def _conversation(body: ResponseBody) -> Any:
    name = body.conversation_id
    return {} if name is None else {"conversation": said.ConversationId(id=name)}


def _tool(tool: Any) -> Json:
    bare = {"parameters": None, "strict": None} if isinstance(tool, ResponseTool) else {}
    return bare | _dump(tool)


def _dump(body: Any) -> Json:
    told: Json = body.model_dump(exclude_none=True, by_alias=True)
    return told


def response_usage(usage: Usage) -> said.ResponseUsage:
    return said.ResponseUsage(
        input_tokens=usage.prompt,
        input_tokens_details=said.InputDetails(cached_tokens=usage.cached, cache_write_tokens=0),
        output_tokens=usage.completion,
        output_tokens_details=ReasoningTokens(reasoning_tokens=usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )
