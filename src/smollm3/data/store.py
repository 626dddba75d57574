"""Prepared data behind a URL that fsspec knows: files are fetched when they are read, into a cache
of bounded size that all processes of a machine share."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from smollm3.data.remote import again, in_one_line
from smollm3.errors import UserError
from smollm3.files import PARTIAL, cache_folder, disk_errors


class Store:
    """The files of one prepared source. room: bytes that the cache may hold, all sources together;
    a file above that is there alone."""

    def __init__(self, url: str, room: int, key: str) -> None:
        self.url, self.room = url.rstrip("/"), room
        self.folder = cache_folder() / "parts" / key
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="fetch")

    def open(self, name: str, size: int) -> BufferedReader:
        """File `name` of `size` bytes, fetched if it is not here; open, so that it stays readable
        when another process makes room."""
        from filelock import FileLock

        path = self.folder / name
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                return self._kept(path, size) or self._fetch(name, path, size)

    @staticmethod
    def _kept(path: Path, size: int) -> BufferedReader | None:
        try:
            file = path.open("rb")
            os.utime(path)  # the cache drops what was not used for longest
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size == size:
            return file
        file.close()
        return None

    def ahead(self, name: str, size: int) -> None:
        """Have a file fetched meanwhile; what fails shows when it is read."""
        self._ahead.submit(lambda: self.open(name, size).close())

    def _fetch(self, name: str, path: Path, size: int) -> BufferedReader:
        self._make_room(size)
        unfinished = path.with_name(f".{path.name}{PARTIAL}")
        where = f"{self.url}/{name}"
        with in_one_line(f"{where}: cannot be fetched"):
            try:
                again(lambda: _get(where, unfinished))
            except FileNotFoundError:
                raise UserError(f"{where}: is not there any more") from None
        if unfinished.stat().st_size != size:
            raise UserError(f"{where}: {unfinished.stat().st_size} bytes instead of {size}")
        file = unfinished.open("rb")
        unfinished.replace(path)
        return file

    def _make_room(self, size: int) -> None:
        here = []
        for path in self.folder.parent.rglob("*.ds*"):
            if path.suffix not in (".lock", PARTIAL):
                try:
                    here.append((path.stat().st_mtime, path.stat().st_size, path))
                except FileNotFoundError:  # another process made room
                    continue
        total = sum(size for _, size, _ in here)
        for _, bytes_, path in sorted(here):
            if total + size <= self.room:
                break
            path.unlink(missing_ok=True)
            total -= bytes_


def _get(url: str, file: Path) -> None:
    import fsspec

    system, remote = fsspec.url_to_fs(url)
    system.get_file(remote, str(file))


def upload(folder: Path, url: str, files: dict[str, int]) -> str:
    """Copy `files` {name: bytes} of a prepared source to <url>/<name of the folder>; its URL."""
    where = f"{url.rstrip('/')}/{folder.name}"
    with in_one_line(f"{where}: cannot be written"):
        import fsspec

        system, base = fsspec.url_to_fs(where)
        for name, size in files.items():
            again(partial(_put, system, folder / name, f"{base}/{name}", size))
            if _size(system, f"{base}/{name}") != size:
                raise UserError(f"{where}/{name}: did not arrive whole; run again")
    return where


def _put(system: Any, file: Path, remote: str, size: int) -> None:
    if not system.exists(remote) or _size(system, remote) != size:
        system.makedirs(remote.rpartition("/")[0], exist_ok=True)
        system.put_file(str(file), remote)


def _size(system: Any, path: str) -> int:
    return int(system.info(path)["size"])
