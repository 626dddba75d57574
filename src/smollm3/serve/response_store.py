"""What earlier responses were, for requests that go on from them: in memory, the newest only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smollm3.serve.bodies import footprint
from smollm3.serve.shelf import Shelf

Json = dict[str, Any]


@dataclass(frozen=True)
class StoredResponse:
    """messages: the conversation up to and with the answer; input_items: up to the answer, as the
    API has it; response: as it was told; size: bytes in memory; container: of its Python."""

    messages: Sequence[Json]
    input_items: Sequence[Json]
    response: Json
    size: int
    container: str | None = None

    @property
    def items(self) -> list[Json]:
        """With the answer's own."""
        return [*self.input_items, *self.response["output"]]


class ResponseStore:
    """Responses of all keys, each found with its own key's salt only."""

    def __init__(self, count: int, size: int) -> None:
        self._shelf = Shelf[tuple[str, StoredResponse]](count, size)
        self._items: dict[tuple[str, str], Json] = {}  # of all their answers

    def put(
        self,
        salt: str,
        messages: Sequence[Json],
        input_items: Sequence[Json],
        response: Json,
        container: str | None = None,
    ) -> None:
        """Keep a response; others may have to go."""
        size = footprint([messages, input_items, response])
        kept = StoredResponse(messages, input_items, response, size, container)
        self._items.update({(salt, item["id"]): item for item in response["output"]})
        for owner, gone in self._shelf.put(salt, response["id"], (salt, kept), size):
            self._forget(owner, gone)

    def get(self, salt: str, name: str) -> StoredResponse | None:
        """None where it is not, or no longer."""
        found = self._shelf.get(salt, name)
        return found[1] if found else None

    def item(self, salt: str, name: str) -> Json | None:
        """An item of one of the answers."""
        return self._items.get((salt, name))

    def drop(self, salt: str, name: str) -> None:
        """Forget it."""
        if found := self._shelf.drop(salt, name):
            self._forget(*found)

    def _forget(self, salt: str, response: StoredResponse) -> None:
        for item in response.response["output"]:
            del self._items[salt, item["id"]]
