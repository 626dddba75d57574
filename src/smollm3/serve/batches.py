"""Batches of the API: a file of requests, answered one after another beside everything else.

They run on the resumable batch of `smollm3.batch`: what was answered when the server ended is not
answered again after its next start.
"""

from __future__ import annotations

import datetime
import hashlib
import io
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from smollm3.batch.answers import Answers
from smollm3.batch.run import BatchRun, Tally
from smollm3.errors import UserError
from smollm3.files import PARTIAL, read_json
from smollm3.infer import Engine
from smollm3.infer.errors import EngineClosed
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import readable
from smollm3.serve.errors import ApiError
from smollm3.serve.file_store import OWNER, FileStore
from smollm3.serve.service import new_id
from smollm3.turn import Reply, Usage

Json = dict[str, Any]
log = logging.getLogger("smollm3.serve")
MAX_LINES = 50_000  # as OpenAI has it
MAX_ERRORS = 20  # told of a file that is no batch
ENDED = ("completed", "failed", "cancelled")


class Stopped(Exception):
    """The batch is cancelled, or the server ends."""


@dataclass(frozen=True)
class Limits:
    """batches: that wait or run, of all `keys`, each of which has an equal share; line: bytes."""

    batches: int
    line: int
    keys: int = 1


@dataclass(frozen=True)
class Finished:
    """The complete answers to a request, as the dialects tell them."""

    ask: Ask
    replies: Sequence[Reply]

    @property
    def prompt(self) -> list[int]:
        return self.replies[0].prompt

    @property
    def cached(self) -> int:
        return self.replies[0].usage.cached

    @property
    def usage(self) -> Usage:
        """A prompt is read once, however many answers it has."""
        total = Usage()
        for i, reply in enumerate(self.replies):
            used = reply.usage
            total += Usage(0, 0, used.completion, used.reasoning) if i % self.ask.n else used
        return total


# What an endpoint makes of a body: what it asks, and how its answers are told. Raises ApiError and
# UserError for a body that is wrong.
MakeAsk = Callable[[Json], tuple[Ask, Callable[[Finished], Json]]]


class ApiLine:
    """A line of a batch's file."""

    def __init__(
        self, values: Json, place: str, make: MakeAsk, salt: str, check: Callable[[], None]
    ) -> None:
        """salt: of the cache, its key's. check: raises Stopped."""
        self._salt = salt
        self.id: str | int = values["custom_id"]
        self.place = place
        self.key = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
        self._body = values["body"]
        self._make = make
        self._check = check
        self._ask: Ask | None = None
        self._tell: Callable[[Finished], Json] | None = None

    def start(self, engine: Engine, date: datetime.date) -> list[Reply]:
        self._check()
        body = dict(self._body)
        # The same answer whenever it is made.
        body.setdefault("seed", int(self.key[:12], 16))
        try:
            self._ask, self._tell = self._make(body)
            return self._ask.start(engine, self._salt)
        except EngineClosed:
            raise Stopped from None
        except ApiError as e:
            raise UserError(e.message) from None

    def answer(self, replies: Sequence[Reply], date: datetime.date) -> Json:
        assert self._ask is not None
        assert self._tell is not None
        try:
            for reply in replies:
                reply.result()
        except EngineClosed:
            raise Stopped from None
        return {"body": self._tell(Finished(self._ask, replies)), "date": date.isoformat()}


class Batches:
    """The batches of a server, which one thread works on, the oldest first.

    makers: what answers an endpoint's requests. busy: whether others wait for the engine.
    """

    def __init__(
        self,
        store: FileStore,
        engine: Engine,
        makers: dict[str, MakeAsk],
        limits: Limits,
        concurrency: int,
        busy: Callable[[], bool],
    ) -> None:
        self._store = store
        self._engine = engine
        self._makers = makers
        self._limits = limits
        self._concurrency = concurrency
        self._busy = busy
        self._cancelled: set[str] = set()
        self._ending = threading.Event()
        self._lock = threading.Lock()  # of records
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        open_ones = [r for r in store.all("batches") if r["status"] not in ENDED]
        for record in reversed(open_ones):
            self._queue.put(record["id"])
        self._thread = threading.Thread(target=self._work, name="smollm3-batches", daemon=True)
        self._thread.start()

    # from any thread

    def create(self, source: Json, endpoint: str, metadata: Json | None, owner: str) -> Json:
        """A new batch of the requests in a file."""
        with self._lock:
            self._check_room(owner)
            record = {
                "id": new_id("batch_"),
                "object": "batch",
                "endpoint": endpoint,
                "errors": None,
                "input_file_id": source["id"],
                "completion_window": "24h",
                "status": "validating",
                "output_file_id": None,
                "error_file_id": None,
                "created_at": int(time.time()),
                "in_progress_at": None,
                "completed_at": None,
                "failed_at": None,
                "cancelling_at": None,
                "cancelled_at": None,
                "request_counts": {"total": 0, "completed": 0, "failed": 0},
                "metadata": metadata,
                OWNER: owner,
            }
            self._store.put("batches", record)
        self._queue.put(record["id"])
        return record

    def _check_room(self, owner: str) -> None:
        """Raises ApiError where too many wait; the oldest that have ended are forgotten."""
        records = list(self._store.all("batches"))
        mine = [r for r in records if r[OWNER] == owner]
        waiting, own = (sum(r["status"] not in ENDED for r in each) for each in (records, mine))
        most = self._limits.batches
        if waiting >= most or own >= max(most // self._limits.keys, 1):
            raise ApiError(
                429, f"{own} batches wait already", code="too_many_batches", retry_after=60
            )
        ended = [r for r in mine if r["status"] in ENDED]
        for record in ended[self._store.each - 1 :]:
            self._store.forget("batches", record["id"])

    def cancel(self, record: Json) -> Json:
        """What is answered by then is kept."""
        if record["status"] in ENDED:
            raise ApiError(409, f"the batch is {record['status']} already", code="batch_has_ended")
        self._cancelled.add(record["id"])
        return self._change(record["id"], status="cancelling", cancelling_at=int(time.time()))

    def close(self) -> None:
        """Stop; what was answered is kept for the next start."""
        self._ending.set()
        self._queue.put(None)
        self._thread.join()

    # in the thread

    def _work(self) -> None:
        while (name := self._queue.get()) is not None:
            try:
                self._run(name)
            except Stopped:
                if self._ending.is_set():
                    return
            except ApiError as e:  # no room
                self._fail(name, [_error(None, e.message)])
            except Exception as e:
                log.exception("batch %s", name)
                self._fail(name, [_error(None, f"the server has failed: {type(e).__name__}")])

    def _run(self, name: str) -> None:
        record = self._read(name)
        if record["status"] == "cancelling":
            self._cancelled.add(name)
        content = self._store.path("files", record["input_file_id"])
        if not content.exists():
            self._fail(name, [_error(None, "its input file was deleted")])
            return
        with content.open("rb") as file:
            errors, total = _check_lines(file, record["endpoint"], self._limits.line)
        if errors or not total:
            self._fail(name, errors or [_error(None, "the file holds no requests")])
            return
        self._change(
            name,
            status="cancelling" if name in self._cancelled else "in_progress",
            in_progress_at=int(time.time()),
            request_counts={"total": total, "completed": 0, "failed": 0},
        )
        answers = self._store.path("batches", f"{name}.answers")
        view = _View(lambda tally: self._progress(name, total, tally))
        stopped = False
        with content.open("rb") as file, Answers(answers) as kept:
            run = BatchRun(
                self._engine, kept, view, self._concurrency, welcome=lambda: not self._busy()
            )
            try:
                run.run(self._lines(record, file))
            except Stopped:
                kept.sync()
                if name not in self._cancelled:
                    raise
                stopped = True
        self._finish(name, total, stopped)

    def _lines(self, record: Json, file: io.BufferedReader) -> Iterator[ApiLine]:
        make = self._makers[record["endpoint"]]
        for number, line in _numbered(file, self._limits.line):
            values = _values(line)
            check = partial(self._check, record["id"])
            yield ApiLine(values, f"line {number}", make, record[OWNER], check)

    def _check(self, name: str) -> None:
        if self._ending.is_set() or name in self._cancelled:
            raise Stopped

    def _progress(self, name: str, total: int, tally: Tally) -> None:
        counts = {
            "total": total,
            "completed": tally.done - tally.errors,
            "failed": tally.errors,
        }
        if counts != self._read(name)["request_counts"]:
            self._change(name, request_counts=counts)
        self._check(name)
        if self._store.path("batches", f"{name}.answers").stat().st_size > self._store.share:
            raise ApiError(413, "its answers need more room than there is for files")

    def _finish(self, name: str, total: int, cancelled: bool) -> None:
        """Make the files of what was answered."""
        record = self._read(name)
        path = self._store.path("batches", f"{name}.answers")
        counts = {"total": total, "completed": 0, "failed": 0}
        for good, _ in _answers(path):
            counts["completed" if good else "failed"] += 1
        files: Json = {}
        for wanted, key, count in (
            (True, "output", counts["completed"]),
            (False, "error", counts["failed"]),
        ):
            if count:
                pieces = (_told(answer) for good, answer in _answers(path) if good == wanted)
                filename = f"{name}_{key}.jsonl"
                made = self._store.add(
                    new_id("file-"), filename, "batch_output", record[OWNER], pieces
                )
                files[f"{key}_file_id"] = made["id"]
        now, state = int(time.time()), "cancelled" if cancelled else "completed"
        self._change(name, status=state, **{f"{state}_at": now}, request_counts=counts, **files)
        self._drop_answers(name)

    def _fail(self, name: str, errors: list[Json]) -> None:
        told = {"object": "list", "data": errors}
        self._drop_answers(name)  # first: who reads that it failed finds their room free
        self._change(name, status="failed", failed_at=int(time.time()), errors=told)

    def _drop_answers(self, name: str) -> None:
        path = self._store.path("batches", f"{name}.answers")
        path.unlink(missing_ok=True)
        path.with_name(f".{path.name}{PARTIAL}").unlink(missing_ok=True)

    def _read(self, name: str) -> Json:
        record: Json = read_json(self._store.path("batches", f"{name}.json"))
        return record

    def _change(self, name: str, **fields: Any) -> Json:
        with self._lock:
            record = self._read(name) | fields
            self._store.put("batches", record)
        return record


class _View:
    """Nobody looks on; errors stand in the file."""

    def __init__(self, progress: Callable[[Tally], None]) -> None:
        self._progress = progress

    def error(self, message: str) -> None:
        """Nothing."""

    def progress(self, tally: Tally) -> None:
        self._progress(tally)


def _answers(path: Path) -> Iterator[tuple[bool, Json]]:
    """Those in the file, one after the other, and whether each is one."""
    with Answers(path) as kept:
        for answer in kept.begun():
            yield "body" in answer, answer


def _numbered(file: io.BufferedReader, most: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank; one that is too long is cut, which makes it no JSON."""
    number = 0
    while line := file.readline(most):
        number += 1
        if line.strip():
            yield number, line


def _values(line: bytes) -> Any:
    """What a line says, measured as a body is. Raises ApiError and ValueError."""
    return json.loads(readable(line))


def _check_lines(file: io.BufferedReader, endpoint: str, most: int) -> tuple[list[Json], int]:
    """What is wrong with the lines, and how many there are."""
    errors: list[Json] = []
    seen: set[str] = set()
    total = 0
    for number, line in _numbered(file, most):
        total += 1
        if total > MAX_LINES:
            errors.append(_error(number, f"more than {MAX_LINES} requests"))
        elif problem := _problem(line, endpoint, seen):
            errors.append(_error(number, problem))
        if len(errors) >= MAX_ERRORS:
            break
    return errors, total


def _problem(line: bytes, endpoint: str, seen: set[str]) -> str | None:
    try:
        values = _values(line)
    except ApiError as e:
        return e.message.replace("the body", "the line")
    except (ValueError, RecursionError):
        return "no JSON"
    if not isinstance(values, dict):
        return "must be an object"
    name = values.get("custom_id")
    if not isinstance(name, str) or not 0 < len(name) <= 512:
        return "custom_id: must be a text"
    if name in seen:
        return f"custom_id: {name!r:.80} comes twice"
    seen.add(name)
    if values.get("method", "POST") != "POST":
        return "method: must be POST"
    if values.get("url") != endpoint:
        return f"url: must be {endpoint}, as the batch says"
    return None if isinstance(values.get("body"), dict) else "body: must be an object"


def _error(line: int | None, message: str) -> Json:
    return {"code": "invalid_batch", "message": message, "param": None, "line": line}


def _told(answer: Json) -> bytes:
    """A line of the output as OpenAI has it."""
    good = "body" in answer
    body = answer["body"] if good else ApiError(400, answer["error"]).body("openai")
    response = {"status_code": 200 if good else 400, "request_id": new_id("req_"), "body": body}
    told = {
        "id": new_id("batch_req_"),
        "custom_id": answer["id"],
        "response": response,
        "error": None,
    }
    return json.dumps(told, ensure_ascii=False).encode() + b"\n"
