"""/v1/responses: answer a conversation of items, find a kept answer again, forget it."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects import openai_response_replies as said
from smollm3.serve.dialects.openai_items import (
    ResponseBody,
    ask_of,
    items_of,
)
from smollm3.serve.dialects.openai_kept import before_of, finder, found_response
from smollm3.serve.dialects.openai_response_answer import Answer
from smollm3.serve.dialects.openai_response_events import Teller
from smollm3.serve.dialects.replies import replies
from smollm3.serve.errors import refused
from smollm3.serve.service import Service, new_id, salt_of
from smollm3.serve.tool_executor import PythonRun


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
        answer = Answer(service, body, model, run.container if run else None)

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
                request, ask, lambda answering: Teller(answer, answering, keep), run
            )
        answering = await service.whole(request, ask, run)
        answer.take(answering.blocks.all)
        return keep(answer.response(answering.end, answering.usage)).response()

    @routes.get("/v1/responses/{name}", responses=replies(said.ResponseReply))
    async def get(name: str, request: Request, stream: bool = False) -> Response:
        """A response of before, as long as it is kept; it is told whole."""
        if stream:
            raise refused("stream: a response that is complete is told whole", "stream")
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
