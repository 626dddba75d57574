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
# What is gone on from is read anew by every request, as if it were a part of its body.
MOST_ITEMS = 4096
MOST_BYTES = 16 << 20  # in memory, as `bodies.footprint` has it


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
        items = list(open_conversation(service, salt, body.conversation_id).items)
        messages = messages_of_items(ITEMS.validate_python(items), finder(service, salt))
        return Before(messages, items)
    if body.previous_response_id is None:
        return None
    found = found_response(service, salt, body.previous_response_id)
    _check_length("previous_response_id", len(found.input_items), found.size // 2)  # told twice
    return Before(found.messages, found.items, found.container)


def found_conversation(service: Service, salt: str, name: str) -> StoredConversation:
    return _there(
        service.conversations.get(salt, name),
        f"no conversation {name!r:.80} is kept here: only the newest are, and not others'",
        "conversation",
        "conversation_not_found",
    )


def open_conversation(service: Service, salt: str, name: str) -> StoredConversation:
    """One that can be gone on with. Raises ApiError for one that is as long as it may be."""
    found = found_conversation(service, salt, name)
    _check_length("conversation", len(found.items), found.size)
    return found


def _check_length(param: str, items: int, size: int) -> None:
    if items >= MOST_ITEMS or size >= MOST_BYTES:
        raise refused(
            f"{param}: is too long to go on with ({items} items); begin another with what "
            "/v1/responses/compact makes of its end",
            param,
            code="too_long_to_go_on",
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
