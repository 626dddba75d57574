import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from smollm3.data.packing import best_fit_decreasing, packing_index


def naive(lengths, capacity):
    """Room left in each row, by looking through all rows for every document."""
    rooms = []
    for length in sorted((min(n, capacity) for n in lengths), reverse=True):
        fitting = [r for r in range(len(rooms)) if rooms[r] >= length]
        if fitting:
            rooms[min(fitting, key=lambda r: rooms[r])] -= length
        else:
            rooms.append(capacity - length)
    return sorted(rooms)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=120), st.integers(1, 50))
def test_equals_the_naive_heuristic(lengths, capacity):
    documents, ends = best_fit_decreasing(np.array(lengths), capacity)
    assert sorted(documents.tolist()) == list(range(len(lengths)))
    rows = np.split(documents, ends[:-1])
    rooms = [capacity - sum(min(lengths[d], capacity) for d in row) for row in rows]
    assert sorted(rooms) == naive(lengths, capacity)


def test_fullest_row_that_fits():
    documents, ends = best_fit_decreasing(np.array([6, 7, 3, 4]), 10)
    assert [row.tolist() for row in np.split(documents, ends[:-1])] == [[1, 2], [0, 3]]


def test_index_is_kept_and_mended(tmp_path):
    lengths = np.array([3, 5, 2, 8])
    first = packing_index(tmp_path, "train", lengths, 8)
    path = tmp_path / "train.npy"
    good = path.read_bytes()
    kept = packing_index(tmp_path, "train", lengths, 8)
    assert [a.tolist() for a in kept] == [a.tolist() for a in first]
    for damage in (good[:40], good[: len(good) // 2], b""):
        path.write_bytes(damage)
        mended = packing_index(tmp_path, "train", lengths, 8)
        assert [a.tolist() for a in mended] == [a.tolist() for a in first]
        assert path.read_bytes() == good
