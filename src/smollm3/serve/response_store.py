"""What earlier responses were, for requests that go on from them: in memory, the newest only."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class StoredResponse:
    """messages: the conversation up to and with the answer; input_items: up to the answer, as the
    API has it; response: as it was told; container: of its Python."""

    messages: Sequence[Json]
    input_items: Sequence[Json]
    response: Json
    size: int
    container: str | None = None

    @property
    def items(self) -> list[Json]:
        """With the answer's own."""
        return [*self.input_items, *self.response["output"]]


def first_to_go(sizes: Mapping[tuple[str, str], int]) -> tuple[str, str]:
    """Of what is kept, by salt and name from old to new, the oldest of the key that keeps most:
    nobody pushes out another's by keeping much. Things that are small count, too."""
    used: Counter[str] = Counter()
    least = sum(sizes.values()) // len(sizes)
    for (salt, _), size in sizes.items():
        used[salt] += size + least
    [(greediest, _)] = used.most_common(1)
    return next(key for key in sizes if key[0] == greediest)


class ResponseStore:
    """Responses of all keys, each found with its own key's salt only."""

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._room = size
        self._all: OrderedDict[tuple[str, str], StoredResponse] = OrderedDict()
        self._items: dict[tuple[str, str], Json] = {}  # of all their answers

    def put(
        self,
        salt: str,
        messages: Sequence[Json],
        input_items: Sequence[Json],
        response: Json,
        container: str | None = None,
    ) -> None:
        size = len(json.dumps([messages, input_items, response]))
        kept = StoredResponse(messages, input_items, response, size, container)
        self._all[salt, response["id"]] = kept
        self._items.update({(salt, item["id"]): item for item in response["output"]})
        self._room -= size
        while self._all and (len(self._all) > self._count or self._room < 0):
            self.drop(*first_to_go({key: kept.size for key, kept in self._all.items()}))

    def get(self, salt: str, name: str) -> StoredResponse | None:
        return self._all.get((salt, name))

    def item(self, salt: str, name: str) -> Json | None:
        """An item of one of the answers."""
        return self._items.get((salt, name))

    def drop(self, salt: str, name: str) -> None:
        if found := self._all.pop((salt, name), None):
            self._room += found.size
            for item in found.response["output"]:
                del self._items[salt, item["id"]]
