"""How fast memory can be read: as many bytes as the model's file, by as many threads.

Nothing reads faster here: a loop of AVX-512 loads in C, torch's sum and numpy's reductions gave the
same bytes a second in one interleaved run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from protocol import peak_memory, serve, timed


class PlainRead:
    def info(self) -> dict[str, Any]:
        return {"name": "plain read", "version": f"numpy {np.__version__}"}

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(self, model: str, context: int, threads: int = 2) -> float:
        words = np.ones(Path(model).stat().st_size // 8, np.int64)
        self.parts = np.array_split(words, threads)
        self.pool = ThreadPoolExecutor(threads)
        return 0.0

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Readings of the whole a second: tokens, if a token needs every weight once."""
        return tokens / timed(
            lambda: [list(self.pool.map(np.bitwise_or.reduce, self.parts)) for _ in range(tokens)]
        )


if __name__ == "__main__":
    serve(PlainRead())
