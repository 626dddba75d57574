"""The finished items of an evaluation on the disk, so that a killed one goes on where it was."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from smollm3.errors import UserError
from smollm3.files import disk_errors, fsync_folder, sha256_json

SYNC_SECONDS = 1.0  # of work lost with the power, at most; a killed process loses none
FORMAT = "smollm3 eval items 1"


def key_of(*parts: Any) -> str:
    """The name of an item: a checksum of all that decides its value beside the model."""
    return sha256_json(parts)[:32]


class Journal:
    """Values by key in `path`, a JSON line each behind one that says what they belong to.

    origin: the model and the settings, plain JSON; another evaluation's file is refused, unless
    there is no value in it. What is found of a value whose line a kill cut off is dropped.
    """

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        self._synced = time.monotonic()
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        try:
            self._read(origin)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        with disk_errors(self.path):
            os.fsync(self._file.fileno())
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def add(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._write({"key": key, "value": value})
        if time.monotonic() - self._synced > SYNC_SECONDS:
            with disk_errors(self.path):
                os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _read(self, origin: dict[str, Any]) -> None:
        good, there = 0, dict[str, Any]()
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                there |= self._take(line, number)
                good += len(line)
        if self._values:
            self._check(_flat(there), _flat(origin))
        else:
            good = 0
        self._file.truncate(good)
        if not good:
            self._write({"format": FORMAT, "origin": origin})
            os.fsync(self._file.fileno())
            fsync_folder(self.path.parent)

    def _take(self, line: bytes, number: int) -> dict[str, Any]:
        """Keep the value of a line; the first says what all belong to."""
        try:
            entry = json.loads(line)
            if number == 1:
                if entry["format"] != FORMAT:
                    raise KeyError
                return dict(entry["origin"])
            self._values[entry["key"]] = entry["value"]
            return {}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path}:{number}: not of an evaluation of this version; choose another --out"
            ) from None

    def _check(self, there: dict[str, Any], ours: dict[str, Any]) -> None:
        for name in sorted(ours.keys() | there.keys()):
            if there.get(name) != ours.get(name):
                raise UserError(
                    f"{self.path}: was made with {name} {there.get(name)!r}, now it is "
                    f"{ours.get(name)!r}; choose another --out"
                )

    def _write(self, entry: dict[str, Any]) -> None:
        data = json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with disk_errors(self.path):
            while data:
                data = data[self._file.write(data) :]


def _flat(origin: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Settings by their own names, so that one which differs is told alone."""
    found: dict[str, Any] = {}
    for name, value in origin.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
