"""What is kept for the keys of a server, in memory: each thing is found with its own key only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class Shelf(Generic[T]):
    """Things by a key's salt and a name, at most `count` of them, of at most `size` bytes together.

    Where there is no room, the oldest of the key that keeps most goes: nobody pushes out another's
    by keeping much, be it large or small.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        self._size = size
        self._of: dict[str, OrderedDict[str, tuple[T, int]]] = {}
        self._used: dict[str, int] = {}  # bytes of each key

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def used(self) -> int:
        """Bytes."""
        return sum(self._used.values())

    def get(self, salt: str, name: str) -> T | None:
        """None where it is not, or no longer."""
        there = self._of.get(salt)
        found = there.get(name) if there else None
        return found[0] if found else None

    def put(self, salt: str, name: str, thing: T, size: int) -> list[T]:
        """Keep it as the newest; what had to go for it, if need be itself."""
        self.drop(salt, name)
        self._of.setdefault(salt, OrderedDict())[name] = thing, size
        self._used[salt] = self._used.get(salt, 0) + size
        gone = []
        while (there := len(self)) > self._count or self.used > self._size:
            each, bytes_ = 1 / there, 1 / max(self.used, 1)
            greediest = max(
                self._of, key=lambda s: len(self._of[s]) * each + self._used[s] * bytes_
            )
            oldest = next(iter(self._of[greediest]))
            dropped = self.drop(greediest, oldest)
            assert dropped is not None
            gone.append(dropped)
        return gone

    def drop(self, salt: str, name: str) -> T | None:
        """Forget it; what it was."""
        there = self._of.get(salt)
        found = there.pop(name, None) if there else None
        if found is None:
            return None
        self._used[salt] -= found[1]
        if not self._of[salt]:
            del self._of[salt], self._used[salt]
        return found[0]
