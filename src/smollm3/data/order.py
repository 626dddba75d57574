"""Shuffles that are the same on every machine and with every version of numpy."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def permutation(n: int, key: str) -> NDArray[np.int64]:
    """A permutation of 0..n-1 that depends on (n, key) alone.

    Indices sorted by splitmix64 (Steele, Lea, Flood 2014) of index + checksum of the key.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    x = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")
