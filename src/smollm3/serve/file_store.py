"""Uploaded files and batches on disk: whole or absent, each found with its own key only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smollm3.errors import UserError
from smollm3.files import PARTIAL, disk_errors, fsync_file, fsync_folder, read_json, write_json
from smollm3.serve.errors import ApiError

Json = dict[str, Any]
OWNER = "owner"  # the key's salt, in what is kept of a file or batch; never told


class FileStore:
    """Records (`KIND/ID.json`) in `folder`, of which files have contents (`files/ID`). Thread-safe.

    size, count: of all files together, in bytes; each of so many `keys` has an equal share of both,
    so that nobody's files are kept out by another's.
    """

    def __init__(self, folder: Path, size: int, count: int, keys: int = 1) -> None:
        self._folder = folder
        self._size, self._count = size, count
        self.share = max(size // keys, 1)  # bytes of one key
        self.each = max(count // keys, 1)  # records of a kind of one key
        self._lock = threading.Lock()
        with disk_errors(folder):
            for kind in ("files", "batches"):
                (folder / kind).mkdir(parents=True, exist_ok=True)

    def path(self, kind: str, name: str) -> Path:
        return self._folder / kind / name

    # records

    def put(self, kind: str, record: Json) -> None:
        write_json(self.path(kind, f"{record['id']}.json"), record)

    def get(self, kind: str, name: str, owner: str) -> Json:
        """Raises ApiError 404 for one that is not here, or another's."""
        path = self.path(kind, f"{name}.json")
        plain = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
        if not plain or len(name) > 100 or not path.is_file():
            raise _absent(kind, name)
        record: Json = read_json(path)
        if record[OWNER] != owner:
            raise _absent(kind, name)
        return record

    def all(self, kind: str) -> Iterator[Json]:
        """Of all owners, the newest first."""
        found = [read_json(path) for path in self.path(kind, "").glob("*.json")]
        yield from sorted(found, key=lambda r: (r["created_at"], r["id"]), reverse=True)

    def forget(self, kind: str, name: str) -> None:
        """Drop a record."""
        self.path(kind, f"{name}.json").unlink(missing_ok=True)

    # files

    def add(
        self, name: str, filename: str, purpose: str, owner: str, pieces: Iterable[bytes]
    ) -> Json:
        """Keep a new file of these pieces. Raises ApiError where there is no room for it."""
        final = self.path("files", name)
        partial = final.with_name(name + PARTIAL)
        try:
            with disk_errors(final), partial.open("wb") as out:
                out.writelines(pieces)
            return self._keep(partial, final, filename, purpose, owner)
        except UserError as e:
            raise ApiError(507, str(e).rpartition(": ")[2], code="no_room") from None
        finally:
            partial.unlink(missing_ok=True)

    def _keep(self, partial: Path, final: Path, filename: str, purpose: str, owner: str) -> Json:
        size = partial.stat().st_size
        record = {
            "id": final.name,
            "object": "file",
            "bytes": size,
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
            OWNER: owner,
        }
        with self._lock:
            self._check_room(size, partial, owner)
            fsync_file(partial)
            partial.rename(final)
            self.put("files", record)
        fsync_folder(final.parent)
        return record

    def _check_room(self, size: int, partial: Path, owner: str) -> None:
        contents = (p for p in self.path("files", "").iterdir() if p != partial)
        sizes = [path.stat().st_size for path in contents if path.suffix != ".json"]
        mine = [record["bytes"] for record in self.all("files") if record[OWNER] == owner]
        full = size + sum(sizes) > self._size or size + sum(mine) > self.share
        if full or len(sizes) >= self._count or len(mine) >= self.each:
            raise ApiError(
                413, "there is no more room for files; delete some", code="files_are_full"
            )

    def drop(self, name: str) -> None:
        """Forget a file: first that it is here."""
        self.forget("files", name)
        self.path("files", name).unlink(missing_ok=True)


def _absent(kind: str, name: str) -> ApiError:
    what = "file" if kind == "files" else "batch"
    return ApiError(404, f"there is no {what} {name!r:.100} here", param=f"{what}_id")
