"""Filters and formatters between reading and tokenising: datatrove's blocks, and our own beside
them in the same form, so that they also run in a pipeline of datatrove's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from smollm3.data.sources import Document
from smollm3.data.spec import Source

if TYPE_CHECKING:
    from smollm3.data.prepare import Preparation


class Ledger:
    """What went into the steps of one part and what each dropped, by reason."""

    def __init__(self) -> None:
        self.read = {"documents": 0, "characters": 0}
        self.dropped: dict[str, dict[str, dict[str, int]]] = {}

    def drop(self, step: str, reason: str, characters: int) -> None:
        counts = self.dropped.setdefault(step, {}).setdefault(
            reason, {"documents": 0, "characters": 0}
        )
        counts["documents"] += 1
        counts["characters"] += characters


def before(job: Preparation) -> list[tuple[str, Callable[[Any, int, int], Any], int]]:
    return []


def apply(
    source: Source, stream: Iterator[Document], job: Preparation, rank: int, ledger: Ledger
) -> Iterator[Document]:
    for document in stream:
        ledger.read["documents"] += 1
        ledger.read["characters"] += len(document.text or "")
        yield document
