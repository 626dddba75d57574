"""What lies behind a URL that fsspec knows: tried again where the network fails.

Each file system brings exceptions of its own; botocore's, aiohttp's and azure's derive from
Exception alone. A file that the network did not bring is not a damaged one: what a source holds may
not depend on that, so it ends the reading, and the same command goes on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import SEEK_SET, RawIOBase
from typing import Any, TypeVar

from smollm3.errors import UserError, first_line

ATTEMPTS = 6  # each up to twice as long after the one before: half a minute together at most
T = TypeVar("T")
_FINAL = (FileNotFoundError, PermissionError, ImportError, ValueError)


def again(act: Callable[[], T]) -> T:
    """Do it, some more times where the network fails."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return act()
        except _FINAL:
            raise
        except Exception as e:
            if not _of_a_file_system(e):
                raise
            time.sleep(2.0**attempt * random.uniform(0.5, 1))  # not all workers at once
    return act()


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn what a file system raises into a UserError that begins with `what`."""
    try:
        yield
    except Exception as e:
        if not _of_a_file_system(e):
            raise
        raise UserError(f"{what} ({first_line(e)})") from None


def _of_a_file_system(error: Exception) -> bool:
    known = isinstance(error, OSError | ImportError | ValueError)
    return known or type(error).__module__.partition(".")[0] not in ("builtins", "smollm3")


class RemoteFile(RawIOBase):
    """The bytes at a URL. A read that fails is made again, from the same place of the file opened
    anew; UserError where that does not help."""

    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        self._file: Any = None
        self._tried(lambda: None)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        self._tried(lambda: None)
        return bool(self._file.seekable())

    def readinto(self, buffer: Any) -> int:
        data = self._tried(lambda: self._file.read(len(buffer)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._at = self._tried(lambda: self._file.seek(offset, whence))
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._let_go()
        super().close()

    def _tried(self, act: Callable[[], T]) -> T:
        def once() -> T:
            try:
                if self._file is None:
                    self._open()
                return act()
            except Exception:
                self._let_go()  # it may be anywhere now
                raise

        with in_one_line(f"{self._url}: cannot be read"):
            return again(once)

    def _open(self) -> None:
        import fsspec

        self._file = fsspec.open(self._url, "rb").open()
        if self._at and self._file.seekable():
            self._file.seek(self._at)
        elif self._at:  # a server that gives whole files only
            left = self._at
            while left and (data := self._file.read(min(left, 1 << 20))):
                left -= len(data)

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                file.close()
