"""Best-fit-decreasing packing, and its index beside the shard it belongs to."""

from __future__ import annotations

import io
from bisect import bisect_left, insort
from collections import deque
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from smollm3.files import write_atomic

Ints = NDArray[np.int64]


def best_fit_decreasing(lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Pack documents into as few rows of `capacity` tokens as the heuristic finds.

    The longest document first, each into the fullest row that still has room for it, else into a
    new one; a document longer than a row counts as a whole row (its end is cut off).
    Returns (documents, ends): rows one after another, row r being documents[ends[r-1]:ends[r]].

    Rows are kept by how much room is left, so a document costs one search among at most
    `capacity` different amounts.
    """
    rows: list[list[int]] = []
    amounts: list[int] = []  # sorted, each amount of room that some row has
    with_room: dict[int, deque[int]] = {}
    clipped = np.minimum(lengths, capacity)
    for document in np.argsort(-clipped, kind="stable").tolist():
        length = int(clipped[document])
        at = bisect_left(amounts, length)
        if at == len(amounts):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = amounts[at]
            row = with_room[room].popleft()
            if not with_room[room]:
                del with_room[room], amounts[at]
        rows[row].append(document)
        if left := room - length:
            if left not in with_room:
                with_room[left] = deque()
                insort(amounts, left)
            with_room[left].append(row)
    documents = np.fromiter((d for row in rows for d in row), np.int64, len(lengths))
    return documents, np.cumsum([len(row) for row in rows], dtype=np.int64)


def packing_index(folder: Path, name: str, lengths: Ints, capacity: int) -> tuple[Ints, Ints]:
    """`best_fit_decreasing` of a shard's documents, computed by the first who asks and kept."""
    path = folder / f"{name}.npy"
    with FileLock(folder / ".packing.lock"):  # the other processes of this run wait
        if path.exists():
            try:
                with path.open("rb") as f:
                    documents = np.load(f, allow_pickle=False)
                    ends = np.load(f, allow_pickle=False)
                if np.array_equal(np.sort(documents), np.arange(len(lengths))):
                    return documents, ends
            except (ValueError, EOFError):
                pass  # damaged: computed anew
        documents, ends = best_fit_decreasing(lengths, capacity)
        buffer = io.BytesIO()
        np.save(buffer, documents, allow_pickle=False)
        np.save(buffer, ends, allow_pickle=False)
        write_atomic(path, buffer.getvalue())
    return documents, ends
