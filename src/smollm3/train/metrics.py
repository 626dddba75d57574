"""metrics.jsonl: rows of steps, cut back to the checkpoint from which a run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from smollm3.files import disk_errors, write_atomic, write_json

# A row is some 170 bytes, so 4.7 million of them would be 800 MB that a report has to read.
EVERY_ROW_UP_TO = 10_000
ROWS = 200_000
STEPS = "steps.json"  # beside the rows: how many steps there will be, for whoever watches


def keeps(step: int, steps: int) -> bool:
    """Whether step 1, 2, ... of a stage of `steps` has a row: the first ones, the last, and others
    at equal distances, so that there are at most some 210,000. All, where steps are so few."""
    return step <= EVERY_ROW_UP_TO or step == steps or step % -(-steps // ROWS) == 0


class MetricsLog:
    """Rows are readable at once, and durable when `sync` returns. Long stages have a row for some
    of their steps (`keeps`), for each whose update was skipped, and for each that was looked at."""

    def __init__(
        self, path: Path, step: int, steps: int, late: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the rows up to `step` of `steps`; later ones, or half a row, are of lost work.
        late: for the last row, what was not known when it was written."""
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        rows = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        if late:
            rows[-1] = json.dumps(json.loads(rows[-1]) | late).encode() + b"\n"
        write_atomic(path, b"".join(rows))
        write_json(path.with_name(STEPS), {"steps": steps})
        self.path, self.steps = path, steps
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, row: dict[str, Any], keep: bool = False) -> None:
        """keep: whichever step it is."""
        if not (keep or keeps(row["step"], self.steps) or row["skipped"]):
            return
        with disk_errors(self.path):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
