"""POST /v1/responses, the answer: output items, whole or as a stream of events."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from smollm3.chat.tags import PYTHON
from smollm3.serve.answering import Answering, Quiet, Ran, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects import replies as said
from smollm3.serve.dialects.openai_items import (
    CodeInterpreter,
    ResponseBody,
    ResponseTool,
    ask_of,
    items_of,
)
from smollm3.serve.dialects.openai_kept import before_of, finder, found_response
from smollm3.serve.dialects.replies import replies
from smollm3.serve.dialects.tokens import chat_logprob
from smollm3.serve.errors import ApiError
from smollm3.serve.service import KEEP_ALIVE, Json, Service, Tell, new_id, salt_of, sse
from smollm3.serve.steps import arguments_of, messages_of
from smollm3.serve.tool_executor import PythonRun
from smollm3.turn import AnswerBlock, AnswerBlocks, End, Grown, Usage

_PREFIX = {"reasoning": "rs_", "content": "msg_", "call": "fc_"}
_CODE = "response.code_interpreter_call"
_FAILED = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    store = service.responses

    @routes.post("/v1/responses", responses=replies(said.ResponseReply, stream=True))
    async def responses(body: ResponseBody, request: Request) -> Response:
        """Answer a conversation, as items."""
        model, salt = service.check_model(body.model), salt_of(request)
        before = before_of(service, salt, body)
        request.state.left_out = body.left_out
        said_before = before.messages if before else ()
        ask, messages = ask_of(service, body, said_before, finder(service, salt))
        container = before.container if before else None
        run = _python(service, body, salt, ask, container)
        container = run.container if run else container
        answer = _Answer(service, body, model, run.container if run else None)

        def keep(response: said.ResponseReply) -> said.ResponseReply:
            told, given = response.dumped(), items_of(body.input)
            if body.store is not False:
                items = [*(before.items if before else ()), *given]
                store.put(salt, [*messages, *answer.messages()], items, told, container)
            if body.conversation_id is not None:
                service.conversations.add(salt, body.conversation_id, [*given, *told["output"]])
            return response

        if body.stream:
            return await service.streamed(
                request, ask, lambda answering: _Teller(answer, answering, keep), run
            )
        answering = await service.whole(request, ask, run)
        answer.take(answering.blocks.all)
        return keep(answer.response(answering.end, answering.usage)).response()

    @routes.get("/v1/responses/{name}", responses=replies(said.ResponseReply))
    async def get(name: str, request: Request) -> Response:
        """A response of before, as long as it is kept."""
        return JSONResponse(found_response(service, salt_of(request), name).response)

    @routes.delete("/v1/responses/{name}", responses=replies(said.DeletedResponse))
    async def delete(name: str, request: Request) -> Response:
        """Forget a response."""
        found_response(service, salt_of(request), name)
        store.drop(salt_of(request), name)
        return said.DeletedResponse(id=name, object="response", deleted=True).response()

    return routes


def _python(
    service: Service, body: ResponseBody, salt: str, ask: Ask, before: str | None
) -> PythonRun | None:
    """What runs the response's Python, if it may be called. before: the container until now."""
    tool = body.interpreter
    if tool is None or not ask.requests[0].python_tools:
        return None
    named = tool.container if isinstance(tool.container, str) else before
    # One that nothing leads back to lives for the request.
    kept = named is not None or body.store is not False
    return PythonRun(service.tools, salt, named or new_id("cntr_"), kept)


@dataclass
class _Item:
    """A block with the names that it has in this API. container: of a call that is run here."""

    block: AnswerBlock
    id: str
    call_id: str
    container: str | None = None

    @property
    def code(self) -> str:
        return str(arguments_of(self.block.text).get("code", ""))


class _Answer:
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
        self.items: list[_Item] = []

    def add(self, block: AnswerBlock) -> _Item:
        python = self._container is not None and (block.kind, block.name) == ("call", PYTHON)
        prefix = "ci_" if python else _PREFIX[block.kind]
        item = _Item(block, new_id(prefix), new_id("call_"), self._container if python else None)
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

    def logprobs(self, steps: Sequence[Any]) -> list[said.TokenLogprob]:
        if not self._body.with_logprobs:
            return []
        return [chat_logprob(self._tokenizer, s, self._body.top_logprobs or 0) for s in steps]

    def part(self, item: _Item) -> said.ReasoningPart | said.TextOutputPart:
        block = item.block
        return self._thought(block) if block.kind == "reasoning" else self._text(block)

    def _thought(self, block: AnswerBlock) -> said.ReasoningPart:
        return said.ReasoningPart(type="reasoning_text", text=block.text)

    def _text(self, block: AnswerBlock) -> said.TextOutputPart:
        return said.TextOutputPart(
            type="output_text",
            text=block.text,
            annotations=[],
            logprobs=self.logprobs(block.tokens),
        )

    def item(
        self, item: _Item, status: said.Progress = "completed", empty: bool = False
    ) -> said.OutputItem:
        block = item.block
        told: Any = {"id": item.id, "status": status}
        if item.container is not None:
            return said.CodeInterpreterOutput(**told, **self._run(item, empty))
        match block.kind:
            case "reasoning":
                thoughts = [] if empty else [self._thought(block)]
                return said.ReasoningOutput(**told, type="reasoning", summary=[], content=thoughts)
            case "content":
                texts = [] if empty else [self._text(block)]
                return said.MessageOutput(**told, type="message", role="assistant", content=texts)
        return said.FunctionCallOutput(
            **told,
            type="function_call",
            call_id=item.call_id,
            name=block.name,
            arguments="" if empty else block.text,
        )

    def _is_cut(self, item: _Item, cut: bool) -> bool:
        if item.container is not None:
            return item.block.result is None
        return cut and item is self.items[-1]

    def _run(self, item: _Item, empty: bool) -> Any:
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


def _tool(tool: ResponseTool | CodeInterpreter) -> Json:
    if isinstance(tool, CodeInterpreter):
        return _dump(tool)
    return {"parameters": None, "strict": None} | _dump(tool)


def _dump(body: Any) -> Json:
    told: Json = body.model_dump(exclude_none=True, by_alias=True)
    return told


def response_usage(usage: Usage) -> said.ResponseUsage:
    return said.ResponseUsage(
        input_tokens=usage.prompt,
        input_tokens_details=said.InputDetails(cached_tokens=usage.cached, cache_write_tokens=0),
        output_tokens=usage.completion,
        output_tokens_details=said.ReasoningTokens(reasoning_tokens=usage.reasoning),
        total_tokens=usage.prompt + usage.completion,
    )


class _Teller(Tell):
    """Numbered events: each item begins, grows and ends."""

    def __init__(self, answer: _Answer, answering: Answering, keep: Any) -> None:
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
        match grown.block.kind:
            case "reasoning":
                return data + self._on_text("response.reasoning_text.delta", delta=grown.text)
            case "content":
                steps = [] if grown.token is None else [grown.token]
                told = self._answer.logprobs(steps)
                return data + self._on_text(
                    "response.output_text.delta", delta=grown.text, logprobs=told
                )
        item = self._answer.items[-1]
        if item.container is not None:
            return data  # its code is told when it is complete
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
        part = self._answer.part(item).model_copy(update={"text": ""})
        if isinstance(part, said.TextOutputPart):
            part.logprobs = []
        return data + self._on_text("response.content_part.added", part=part)

    def _close(self, status: said.Progress) -> bytes:
        """The last item is complete; one that is run here is so once it has run."""
        if not self._answer.items or self._answer.items[-1].container is not None:
            return b""
        item = self._answer.items[-1]
        text, part = item.block.text, self._answer.part(item)
        match item.block.kind:
            case "reasoning":
                data = self._on_text("response.reasoning_text.done", text=text)
                data += self._on_text("response.content_part.done", part=part)
            case "content":
                told = self._answer.logprobs(item.block.tokens)
                data = self._on_text("response.output_text.done", text=text, logprobs=told)
                data += self._on_text("response.content_part.done", part=part)
            case _:
                data = self._on_item(
                    "response.function_call_arguments.done",
                    item,
                    arguments=text,
                    name=item.block.name,
                )
        return data + self._done(item, status)

    def _done(self, item: _Item, status: said.Progress) -> bytes:
        place, shown = self._answer.items.index(item), self._answer.item(item, status)
        return self._tell("response.output_item.done", output_index=place, item=shown)

    def _on_item(self, kind: str, item: _Item, **fields: Any) -> bytes:
        place = self._answer.items.index(item)
        return self._tell(kind, item_id=item.id, output_index=place, **fields)

    def _on_text(self, kind: str, **fields: Any) -> bytes:
        return self._on_item(kind, self._answer.items[-1], content_index=0, **fields)

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
