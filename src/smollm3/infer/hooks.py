"""What a request can hand to the engine: a constraint on its tokens, a drafter of the next ones.

Both are called from the engine's thread only. An exception in one fails its own request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Which tokens may follow; a state that moves with every accepted token of one request."""

    @property
    def finished(self) -> bool:
        """Nothing but a stop may follow: the engine ends the answer here."""

    def mask(self) -> NDArray[np.int32] | None:
        """Bit t % 32 of word t // 32 is set where token t may come next; None: all may. May be
        called beside the running model, from another thread, but never twice at once."""

    def accept(self, token: int) -> None:
        """The token that was chosen, at the start of an answer the first; stops are not told."""

    def forced(self) -> list[int]:
        """Tokens that must follow, where there is no choice; tried as drafts."""

    def fitting(self, ids: Sequence[int]) -> int:
        """How many of the ids may follow, one after the other, as far as that is cheap to say;
        the engine tries no more draft tokens than that."""

    def rollback(self, n: int) -> None:
        """Forget the last n accepted tokens."""


class Drafter(Protocol):
    """Draft tokens for one sequence; a rejected one costs a little time and changes nothing."""

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow ids (prompt and answer so far); [] for none."""


# Called once for each request, when it is submitted.
MakeDrafter = Callable[[], Drafter]
