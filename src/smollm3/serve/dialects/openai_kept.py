"""What a response goes on from: a response before it, or a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from smollm3.serve.conversation_store import StoredConversation
from smollm3.serve.dialects.openai_item_kinds import ITEMS
from smollm3.serve.dialects.openai_items import ResponseBody, messages_of_items
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.response_store import StoredResponse
from smollm3.serve.service import Json, Service

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Before:
    """What a response goes on from: messages as templates know them, items as the API does."""

    messages: Sequence[Json]
    items: Sequence[Json]
    container: str | None = None


def before_of(service: Service, salt: str, body: ResponseBody) -> Before | None:
    if body.conversation_id is not None:
        if body.previous_response_id is not None:
            raise refused("previous_response_id: not together with conversation", "conversation")
        items = list(found_conversation(service, salt, body.conversation_id).items)
        messages = messages_of_items(ITEMS.validate_python(items), finder(service, salt))
        return Before(messages, items)
    if body.previous_response_id is None:
        return None
    found = found_response(service, salt, body.previous_response_id)
    return Before(found.messages, found.items, found.container)


def found_conversation(service: Service, salt: str, name: str) -> StoredConversation:
    return _there(
        service.conversations.get(salt, name),
        f"no conversation {name!r:.80} is kept here: only the newest are, and not others'",
        "conversation",
        "conversation_not_found",
    )


def found_response(service: Service, salt: str, name: str) -> StoredResponse:
    return _there(
        service.responses.get(salt, name),
        f"no response {name!r:.80} is kept here: only the newest are, and not those of others",
        "previous_response_id",
        "response_not_found",
    )


def finder(service: Service, salt: str) -> Callable[[str], Json]:
    """Finds an item of a kept response by its id."""

    def found(name: str) -> Json:
        item = service.responses.item(salt, name)
        return _there(item, f"no item {name!r:.80} is kept here", "input")

    return found


def _there(found: Kept | None, otherwise: str, param: str, code: str | None = None) -> Kept:
    if found is None:
        raise ApiError(404, otherwise, param=param, code=code)
    return found
