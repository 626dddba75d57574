"""/v1/conversations, and what there is around a response: its input, its tokens, a shorter past."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from smollm3 import turn
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.conversation_store import StoredConversation
from smollm3.serve.dialects import openai_response_replies as said
from smollm3.serve.dialects.fields import Body, Metadata, params_of
from smollm3.serve.dialects.openai_item_kinds import Item
from smollm3.serve.dialects.openai_items import (
    ResponseBody,
    ask_of,
    items_of,
)
from smollm3.serve.dialects.openai_kept import (
    before_of,
    finder,
    found_conversation,
    found_response,
    open_conversation,
)
from smollm3.serve.dialects.openai_response_answer import response_usage
from smollm3.serve.dialects.replies import ApiReply, replies
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.service import Json, Service, new_id, salt_of

SUMMARY_TOKENS = 1024
_SUMMARISE = (
    "Write down what must not be lost of this conversation, for yourself: what was asked, facts, "
    "decisions, results of tools, and what is still open. Write nothing else."
)
Items = Annotated[list[Item], Field(max_length=1024)]


class ConversationBody(Body):
    """items: its beginning."""

    items: Items | None = None
    metadata: Metadata | None = None


class MetadataBody(Body):
    metadata: Metadata


class ItemsBody(Body):
    items: Annotated[list[Item], Field(min_length=1, max_length=1024)]


class Page(BaseModel):
    """Which items of a list are told: `limit` of them behind the one with the id `after`."""

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"

    def of(self, items: Sequence[Json]) -> ItemList:
        ordered = items if self.order == "asc" else items[::-1]
        place = next((i + 1 for i, item in enumerate(ordered) if item["id"] == self.after), 0)
        end = place + self.limit
        return _listed(ordered[place:end], has_more=len(ordered) > end)


class Conversation(ApiReply):
    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(ApiReply):
    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]


class ItemList(ApiReply):
    object: Literal["list"]
    data: list[dict[str, Any]]
    has_more: bool
    first_id: str | None
    last_id: str | None


class ConversationItem(ApiReply):
    """With the fields of its type."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str


class InputTokens(ApiReply):
    object: Literal["response.input_tokens"]
    input_tokens: int


class Compacted(ApiReply):
    """output: instead of what was given, to be sent on."""

    id: str
    object: Literal["response.compaction"]
    created_at: int
    output: list[dict[str, Any]]
    usage: said.ResponseUsage


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    _conversations(service, routes)
    _around_responses(service, routes)
    return routes


def _conversations(service: Service, routes: APIRouter) -> None:
    store = service.conversations

    def found(request: Request, name: str) -> StoredConversation:
        return found_conversation(service, salt_of(request), name)

    @routes.post("/v1/conversations", responses=replies(Conversation))
    async def create(request: Request, body: ConversationBody | None = None) -> Response:
        """A conversation that responses can go on with, in memory."""
        body = body or ConversationBody()
        made = StoredConversation(
            new_id("conv_"), int(time.time()), body.metadata or {}, items_of(body.items or [])
        )
        store.put(salt_of(request), made)
        return _told(made).response()

    @routes.get("/v1/conversations/{name}", responses=replies(Conversation))
    async def get(name: str, request: Request) -> Response:
        """A conversation, as long as it is kept."""
        return _told(found(request, name)).response()

    @routes.post("/v1/conversations/{name}", responses=replies(Conversation))
    async def update(name: str, body: MetadataBody, request: Request) -> Response:
        """Give it other labels."""
        conversation = found(request, name)
        conversation.metadata = body.metadata
        store.put(salt_of(request), conversation)
        return _told(conversation).response()

    @routes.delete("/v1/conversations/{name}", responses=replies(DeletedConversation))
    async def delete(name: str, request: Request) -> Response:
        """Forget it."""
        found(request, name)
        store.drop(salt_of(request), name)
        kind: Any = "conversation.deleted"
        return DeletedConversation(id=name, object=kind, deleted=True).response()

    @routes.post("/v1/conversations/{name}/items", responses=replies(ItemList))
    async def add(name: str, body: ItemsBody, request: Request) -> Response:
        """Items more, at its end."""
        open_conversation(service, salt_of(request), name)
        items = items_of(body.items)
        store.add(salt_of(request), name, items)
        return _listed(items, has_more=False).response()

    @routes.get("/v1/conversations/{name}/items", responses=replies(ItemList))
    async def items(
        name: str,
        request: Request,
        page: Annotated[Page, Query()],
    ) -> Response:
        """Its items, the newest first unless `order` says otherwise."""
        return page.of(found(request, name).items).response()

    @routes.get("/v1/conversations/{name}/items/{item}", responses=replies(ConversationItem))
    async def one(name: str, item: str, request: Request) -> dict[str, Any]:
        """One of its items."""
        return _item(found(request, name), item)

    @routes.delete("/v1/conversations/{name}/items/{item}", responses=replies(Conversation))
    async def remove(name: str, item: str, request: Request) -> Response:
        """Take an item out."""
        conversation = found(request, name)
        conversation.items.remove(_item(conversation, item))
        store.put(salt_of(request), conversation)
        return _told(conversation).response()


def _around_responses(service: Service, routes: APIRouter) -> None:
    @routes.get("/v1/responses/{name}/input_items", responses=replies(ItemList))
    async def input_items(
        name: str,
        request: Request,
        page: Annotated[Page, Query()],
    ) -> Response:
        """What a response was made from, with what it went on from."""
        kept = found_response(service, salt_of(request), name)
        return page.of(kept.input_items).response()

    @routes.post("/v1/responses/{name}/cancel", responses=replies(said.ResponseReply))
    async def cancel(name: str, request: Request) -> Response:
        """Only responses in the background can be cancelled, and there are none."""
        found_response(service, salt_of(request), name)
        raise refused(
            "only a response in the background can be cancelled; to end another, close its stream",
            code="response_has_ended",
        )

    @routes.post("/v1/responses/input_tokens", responses=replies(InputTokens))
    async def input_tokens(body: ResponseBody, request: Request) -> Response:
        """How many tokens a response would read."""
        service.check_model(body.model)
        before = before_of(service, salt_of(request), body)
        ask, _ = ask_of(
            service, body, before.messages if before else (), finder(service, salt_of(request))
        )
        [ids] = await service.prompts(request, ask)
        return InputTokens(object="response.input_tokens", input_tokens=len(ids)).response()

    @routes.post("/v1/responses/compact", responses=replies(Compacted))
    async def compact(body: ResponseBody, request: Request) -> Response:
        """The past of a conversation made shorter: what users wrote, and a summary by the model,
        base64 in an item that responses take instead."""
        service.check_model(body.model)
        before = before_of(service, salt_of(request), body)
        _, messages = ask_of(
            service, body, before.messages if before else (), finder(service, salt_of(request))
        )
        most = min(SUMMARY_TOKENS, service.settings.max_tokens)
        asked = turn.Request(
            [*_instructed(body), *messages, {"role": "user", "content": _SUMMARISE}],
            enable_thinking=False,
            params=params_of(body, service.settings, max_tokens=most, seed=body.seed),
            fit=True,
            adapter=service.adapter_of(body.model),
        )
        answering = await service.whole(request, Ask([asked]))
        summary = answering.replies[0].message.content
        users = [
            item
            for item in [*(before.items if before else ()), *items_of(body.input)]
            if item["type"] == "message" and item["role"] == "user"
        ]
        kept = {
            "id": new_id("cmp_"),
            "type": "compaction",
            "encrypted_content": base64.b64encode(summary.encode()).decode(),
        }
        compacted = Compacted(
            id=new_id("resp_"),
            object="response.compaction",
            created_at=int(time.time()),
            output=[*users, kept],
            usage=response_usage(answering.usage),
        )
        return compacted.response()


def _instructed(body: ResponseBody) -> list[Json]:
    return [{"role": "system", "content": body.instructions}] if body.instructions else []


def _told(conversation: StoredConversation) -> Conversation:
    return Conversation(
        id=conversation.id,
        object="conversation",
        created_at=conversation.created_at,
        metadata=conversation.metadata,
    )


def _item(conversation: StoredConversation, name: str) -> Json:
    for item in conversation.items:
        if item["id"] == name:
            return item
    raise ApiError(404, f"the conversation has no item {name!r:.80}", param="item_id")


def _listed(items: Sequence[Json], has_more: bool) -> ItemList:
    return ItemList(
        object="list",
        data=list(items),
        has_more=has_more,
        first_id=items[0]["id"] if items else None,
        last_id=items[-1]["id"] if items else None,
    )
