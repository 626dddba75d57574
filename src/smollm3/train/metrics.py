"""metrics.jsonl: one row a step, cut back to the checkpoint from which a run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from smollm3.files import disk_errors, write_atomic


class MetricsLog:
    """Rows are readable at once, and durable when `sync` returns."""

    def __init__(self, path: Path, step: int) -> None:
        """Keep the rows up to `step`; later ones, or half a row, are of work that was lost."""
        rows = path.read_bytes().splitlines(keepends=True)[:step] if path.exists() else []
        write_atomic(path, b"".join(rows))
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
