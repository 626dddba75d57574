"""The file of a batch's answers: in the order of the requests, durable, taken up where it stopped.

A line stands in the output once all before it do. What is finished before its turn waits in a
journal beside it, so a kill at any moment loses only what was being computed, and the finished
file is the same whatever happened on the way.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from smollm3.errors import UserError
from smollm3.files import PARTIAL, disk_errors, fsync_folder
from smollm3.portable import read_at

Answer = dict[str, Any]
START = b'{"id": '  # of every line
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)


class Answers:
    """The answers to requests 0, 1, ... in `path`; one process at a time.

    Ask `old` for each request in turn; `add` an answer where there is none or after `redo`; `sync`
    makes what was added durable; `finish` after the last request. Raises UserError for a file
    that this class did not write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.next = 0  # the request whose answer the output's next line is
        self._asked = -1  # the newest request that `old` was asked for
        self._places: dict[int, tuple[int, int]] = {}  # request -> offset and length in the journal
        self._journal_path = path.with_name(f".{path.name}{PARTIAL}")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._take()
            self._output = os.open(path, _FLAGS, 0o666)
            self._journal = os.open(self._journal_path, _FLAGS, 0o666)
            fsync_folder(path.parent)
        head = read_at(self._output, len(START), 0)
        if not START.startswith(head):
            raise self._foreign(1)
        self._old: BinaryIO | None = path.open("rb")  # while its lines are compared with requests
        self._line = 0  # where the line read last begins
        self._index()

    def __enter__(self) -> Answers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._old:
            self._old.close()
        os.close(self._journal)
        os.close(self._output)
        self._release()

    def old(self, request: int) -> Answer | None:
        """The answer to the next request, if there is one."""
        self._asked = request
        if self._old:
            if request == 0:
                self._old.seek(0)
            self._line = self._old.tell()
            line = self._old.readline()
            if line.endswith(b"\n"):
                self.next = request + 1
                return self._parsed(line, request + 1)
            self._leave_old()
        if request not in self._places:
            return None
        offset, length = self._places[request]
        return self._parsed(read_at(self._journal, length, offset), request + 1)

    def begun(self) -> Iterator[Answer]:
        """All answers of earlier runs; before the first `old`."""
        assert self._old
        for number, line in enumerate(self._old, 1):
            if line.endswith(b"\n"):
                yield self._parsed(line, number)
        for request, (offset, length) in self._places.items():
            yield self._parsed(read_at(self._journal, length, offset), request + 1)

    def redo(self) -> None:
        """The answer that `old` just gave is to be made again; those behind it stay."""
        if self._old:
            request = self._asked
            for later, line in enumerate(self._old, request + 1):
                if line.endswith(b"\n"):
                    self._write_journal(later, line)
            os.fsync(self._journal)
            self.next = request
            self._leave_old()
        self._places.pop(self._asked, None)

    def add(self, request: int, answer: Answer) -> None:
        line = json.dumps(answer, ensure_ascii=False).encode() + b"\n"
        with disk_errors(self.path):
            if request == self.next:
                _write(self._output, line)
                self.next += 1
            else:
                self._write_journal(request, line)

    def sync(self) -> None:
        """What was added survives a loss of power from here on."""
        with disk_errors(self.path):
            while self.next in self._places and self.next <= self._asked:
                offset, length = self._places.pop(self.next)
                _write(self._output, read_at(self._journal, length, offset))
                self.next += 1
            os.fsync(self._output)
            if not self._places:
                os.ftruncate(self._journal, 0)
            os.fsync(self._journal)

    def finish(self) -> None:
        """All requests are answered."""
        self.sync()
        if any(r >= self.next for r in self._places) or (self._old and self._old.read(1)):
            raise UserError(
                f"{self.path}: holds answers to more than the {self.next} requests given; choose "
                "another --output"
            )
        self._journal_path.unlink()

    def _take(self) -> None:
        """The lock beside the output, which the kernel drops with its holder."""
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path}: another process writes it; wait for its end") from None

    def _release(self) -> None:
        """Nobody waits for the lock, so its file can go: before the release, as the next process
        makes a new one. Windows deletes no file that is open, and after it only if nobody has it.
        """
        file = Path(self._lock.lock_file)
        if sys.platform == "win32":
            self._lock.release()
            with suppress(OSError):
                file.unlink()
        else:
            file.unlink(missing_ok=True)
            self._lock.release()

    def _index(self) -> None:
        """Where each answer is in the journal: lines of the request's number and the answer."""
        with self._journal_path.open("rb") as journal:
            offset = 0
            for line in journal:
                number, _, answer = line.partition(b" ")
                if not (line.endswith(b"\n") and number.isdigit()):
                    break
                self._places[int(number)] = (offset + len(number) + 1, len(answer))
                offset += len(line)
        os.ftruncate(self._journal, offset)

    def _leave_old(self) -> None:
        """All of the output up to its last line read is good; drop the rest, a part of a line."""
        assert self._old
        self._old.close()
        self._old = None
        os.ftruncate(self._output, self._line)
        # Left by a kill between the output and the journal.
        self._places = {r: place for r, place in self._places.items() if r >= self.next}

    def _write_journal(self, request: int, line: bytes) -> None:
        number = b"%d " % request
        offset = os.lseek(self._journal, 0, os.SEEK_END) + len(number)
        _write(self._journal, number + line)
        self._places[request] = (offset, len(line))

    def _parsed(self, line: bytes, number: int) -> Answer:
        try:
            answer: Answer = json.loads(line)
            if not isinstance(answer["key"], str):
                raise self._foreign(number)
        except (ValueError, KeyError, TypeError):
            raise self._foreign(number) from None
        return answer

    def _foreign(self, line: int) -> UserError:
        return UserError(f"{self.path}:{line}: no answer of this command; choose another --output")


def _write(file: int, data: bytes) -> None:
    """All of it: near the end of a disk a part may be taken."""
    while data:
        data = data[os.write(file, data) :]
