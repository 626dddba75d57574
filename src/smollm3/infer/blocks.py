"""Who holds which block of the key-value pool, and which hold prefixes worth keeping."""

from __future__ import annotations

import hashlib
import heapq
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Reversible, Sequence

from smollm3.infer.backends import BLOCK

STEP = 4  # tokens: a block's beginnings are known by their first 4, 8, 12, ...


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens take."""
    return -(-tokens // BLOCK)


def root(salt: str, adapter: str = "") -> bytes:
    """The key before the first block's: whoever uses another salt, or another adapter (by its own
    key), finds nothing of this one's."""
    octets = salt.encode(errors="surrogatepass")
    return hashlib.blake2b(octets, key=adapter.encode(), digest_size=32).digest()


def block_keys(ids: Sequence[int], parent: bytes) -> list[bytes]:
    """The key of each full block of `ids`: BLAKE2b over its parent's key and its own ids.

    Equal keys mean equal ids from the start on. The hash is cryptographic because a collision
    would hand one user the keys and values of another's text.
    """
    keys = []
    for start in range(0, len(ids) - BLOCK + 1, BLOCK):
        own = array("i", ids[start : start + BLOCK]).tobytes()
        parent = hashlib.blake2b(parent + own, digest_size=32).digest()
        keys.append(parent)
    return keys


def beginning_keys(ids: Sequence[int], parent: bytes) -> list[bytes]:
    """The keys of what a block begins with: of its first STEP ids, twice as many, and so on, but
    not of a whole block. Nobody mistakes one for a block's, which is of another number of ids."""
    keys = []
    hashed = hashlib.blake2b(parent, digest_size=32)
    for start in range(0, min(len(ids), BLOCK - 1) - STEP + 1, STEP):
        hashed.update(array("i", ids[start : start + STEP]).tobytes())
        keys.append(hashed.digest())
    return keys


class BlockPool:
    """Reference counts of a pool's blocks.

    A published block is found again by its keys, also after its last user let it go, until its
    memory is needed: the least recently used goes first. Memory that holds nothing is taken before
    that, and low numbers before high ones, so that tables tend to be runs.

    Under its own key a block is shared. Under the key of a beginning it is copied: who takes it
    goes on in another way.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._empty = list(range(count))  # a heap: no user, no key
        self._idle: OrderedDict[int, None] = OrderedDict()  # no user, a key; oldest first
        self._users = [0] * count
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, list[bytes]] = {}

    @property
    def available(self) -> int:
        """Blocks that `take` can give."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """Free blocks whose content can still be found (the prefix cache)."""
        return len(self._idle)

    def take(self) -> int | None:
        """A block of one's own; None if all have users."""
        if self._empty:
            block = heapq.heappop(self._empty)
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            for key in self._keys.pop(block):
                del self._by_key[key]
        else:
            return None
        self._users[block] = 1
        return block

    def find(self, keys: Sequence[bytes]) -> Iterator[int]:
        """The blocks of the longest known beginning of a chain of keys; `share` makes them ours."""
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                return
            yield block

    def find_beginning(self, keys: Sequence[bytes]) -> tuple[int, int] | None:
        """A block with the longest known of these beginnings, and how many tokens that is."""
        for index in reversed(range(len(keys))):
            if (block := self._by_key.get(keys[index])) is not None:
                if block in self._idle:
                    self._idle.move_to_end(block)
                return block, (index + 1) * STEP
        return None

    def idle(self, block: int) -> bool:
        """Whether nobody uses it, so that sharing it leaves one less available."""
        return block in self._idle

    def share(self, block: int) -> None:
        """One user more."""
        self._users[block] += 1
        self._idle.pop(block, None)

    def publish(self, block: int, keys: Sequence[bytes]) -> None:
        """Let a block be found under these keys, of what will not be written again, but for those
        under which another is known already: that one stays."""
        new = [key for key in keys if key not in self._by_key]
        if new:
            self._by_key |= dict.fromkeys(new, block)
            self._keys.setdefault(block, []).extend(new)

    def release(self, blocks: Reversible[int]) -> None:
        """One user less of each block of a sequence. The last ones are forgotten first, as a block
        is of no use without those before it."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._keys:
                self._idle[block] = None
            else:
                heapq.heappush(self._empty, block)
