"""/v1/tools: what the server runs, for clients that lead the conversation, as the page does.

A client offers these tools to the model with its request, has the calls of the answer made here,
and sends the results with its next request.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from smollm3.agent import Tool
from smollm3.agent.python import declarations
from smollm3.agent.tools import to_json_value
from smollm3.chat import ToolCall
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects import replies as said
from smollm3.serve.dialects.fields import Body
from smollm3.serve.dialects.replies import replies
from smollm3.serve.errors import ApiError
from smollm3.serve.guard import FAULT
from smollm3.serve.service import DONE, EventStream, Json, Service, salt_of, sse, unless_gone
from smollm3.serve.tool_executor import Question

Label = Annotated[str, Field(min_length=1, max_length=200)]


class CallBody(Body):
    """A call that the model has made. conversation: whose Python variables these are, until they
    were unused for ten minutes; without it they live for this call. stream: tell when somebody
    must be asked, and wait for the answer; otherwise what is not read-only is refused."""

    name: Label
    arguments: dict[str, Any]
    conversation: Label | None = None
    stream: bool = False


class AnswerBody(Body):
    """Whether the call that is asked about may be made."""

    id: Label
    allow: bool


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    host = service.tools

    @routes.get("/v1/tools", responses=replies(said.ServerTools))
    async def tools() -> Response:
        """The tools that the server runs, and what its Python is."""
        agent, python = host.agent, None
        if agent is not None and agent.sandbox is not None:
            python = said.ServerPython(
                sandbox=agent.sandbox.description,
                functions=declarations(agent.functions),
                asks=[name for name, tool in agent.functions.items() if not tool.read_only],
            )
        data = [_shown(tool) for tool in agent.tools.values()] if agent is not None else []
        return said.ServerTools(object="list", data=data, python=python).response()

    @routes.post("/v1/tools/call", responses=replies(said.CallResult, stream=True))
    async def call(body: CallBody, request: Request) -> Response:
        """Make a call of the model. In a stream: questions, each to be answered, and the result."""
        service.check_open()
        made, salt = ToolCall(body.name, body.arguments), salt_of(request)
        if not body.stream:
            result = await unless_gone(request, host.result(made, salt, body.conversation))
            return _result(result.text, result.ok).response()
        events = host.call(made, salt, body.conversation, ask=True)
        # What is wrong with the request is said before the stream begins.
        try:
            first = await unless_gone(request, anext(events))
        except BaseException:
            await events.aclose()
            raise

        async def told() -> AsyncIterator[bytes]:
            yield _event(first)
            try:
                async for event in events:
                    yield _event(event)
            except Exception:
                yield sse(ApiError(500, FAULT).body("openai"))
            yield DONE

        return EventStream(told(), events.aclose)

    @routes.post("/v1/tools/answer", responses=replies(said.ApprovalTaken))
    async def answer(body: AnswerBody, request: Request) -> Response:
        """The answer to a question of a call."""
        host.answer(salt_of(request), body.id, body.allow)
        return said.ApprovalTaken(id=body.id, allowed=body.allow).response()

    return routes


def _shown(tool: Tool) -> Json:
    return {**tool.declaration, "read_only": tool.read_only}


def _result(text: str, ok: bool) -> said.CallResult:
    return said.CallResult(type="result", content=text, ok=ok)


def _event(event: Any) -> bytes:
    if not isinstance(event, Question):
        return sse(_result(event.text, event.ok).dumped())
    asked = event.request
    told = {"name": asked.name, "arguments": to_json_value(dict(asked.arguments))}
    return sse({"type": "question", "id": event.id, **told, "from_code": asked.from_code})
