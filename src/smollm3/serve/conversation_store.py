"""Conversations that clients keep here, as items of the API: in memory, the newest used only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3.serve.bodies import footprint
from smollm3.serve.shelf import Shelf

Json = dict[str, Any]


@dataclass
class StoredConversation:
    """size: bytes in memory, kept up by the store."""

    id: str
    created_at: int
    metadata: dict[str, str]
    items: list[Json] = field(default_factory=list)
    size: int = 0


class ConversationStore:
    """Conversations of all keys, each found with its own key's salt only."""

    def __init__(self, count: int, size: int) -> None:
        self._shelf = Shelf[StoredConversation](count, size)

    def put(self, salt: str, conversation: StoredConversation) -> None:
        """Keep it as it is now; others may have to go."""
        conversation.size = footprint([conversation.metadata, conversation.items])
        self._shelf.put(salt, conversation.id, conversation, conversation.size)

    def get(self, salt: str, name: str) -> StoredConversation | None:
        """None where it is not, or no longer."""
        return self._shelf.get(salt, name)

    def add(self, salt: str, name: str, items: Sequence[Json]) -> None:
        """More of it, if it is still there. Only what is new is measured: a conversation grows by
        many small additions."""
        if conversation := self.get(salt, name):
            conversation.items += items
            conversation.size += footprint(items)
            self._shelf.put(salt, name, conversation, conversation.size)

    def drop(self, salt: str, name: str) -> None:
        """Forget it."""
        self._shelf.drop(salt, name)
