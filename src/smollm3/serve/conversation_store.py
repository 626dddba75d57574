"""Conversations that clients keep here, as items of the API: in memory, the newest used only."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from smollm3.serve.response_store import first_to_go

Json = dict[str, Any]


@dataclass
class StoredConversation:
    id: str
    created_at: int
    metadata: dict[str, str]
    items: list[Json] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(json.dumps([self.metadata, self.items]))


class ConversationStore:
    """Conversations of all keys, each found with its own key's salt only."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._room = size
        self._all: OrderedDict[tuple[str, str], tuple[StoredConversation, int]] = OrderedDict()

    def put(self, salt: str, conversation: StoredConversation) -> None:
        """Keep it as it is now; others may have to go."""
        self.drop(salt, conversation.id)
        size = conversation.size
        self._all[salt, conversation.id] = conversation, size
        self._room -= size
        while self._all and (len(self._all) > self._count or self._room < 0):
            self.drop(*first_to_go({key: size for key, (_, size) in self._all.items()}))

    def get(self, salt: str, name: str) -> StoredConversation | None:
        found = self._all.get((salt, name))
        return found[0] if found else None

    def add(self, salt: str, name: str, items: Sequence[Json]) -> None:
        """More of it, if it is still there."""
        if conversation := self.get(salt, name):
            conversation.items += items
            self.put(salt, conversation)

    def drop(self, salt: str, name: str) -> None:
        found = self._all.pop((salt, name), None)
        self._room += found[1] if found else 0
