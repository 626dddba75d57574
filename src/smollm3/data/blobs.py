"""Texts by id out of a bucket: The Stack v2 holds ids, Software Heritage the files."""

from __future__ import annotations

import gzip
import io
import re
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from smollm3.data.readers import Read, Row
from smollm3.data.remote import again, in_one_line
from smollm3.data.spec import Blobs

MAX_BYTES = 64 << 20  # of a text; a stream that gives more is no source file
TIMEOUT = 60.0
_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")


class Missing(Exception):
    """The bucket has no such text, or not one that can be read; the message is the reason."""


def with_texts(reads: Iterable[Read], blobs: Blobs) -> Iterator[Read]:
    """The rows with what their ids name as the column `text`, in order.

    `blobs.requests` are under way at a time and as many answers are kept, no more. What the bucket
    does not have is a fault; a bucket that does not answer is asked again, and then a UserError.
    """
    with ThreadPoolExecutor(blobs.requests) as pool:
        asked: deque[tuple[Read, Future[str] | None]] = deque()

        def taken() -> Read:
            read, answer = asked.popleft()
            try:
                return read if answer is None else _with_text(read, answer.result())
            except Missing as e:
                return read._replace(row=None, fault=str(e))

        try:
            for read in reads:
                is_row = isinstance(read.row, dict)
                asked.append((read, pool.submit(_text, read.row, blobs) if is_row else None))
                if len(asked) >= 2 * blobs.requests:
                    yield taken()
            while asked:
                yield taken()
        finally:
            pool.shutdown(cancel_futures=True)


def _with_text(read: Read, text: str) -> Read:
    return read._replace(row={**read.row, "text": text})


def _text(row: Row, blobs: Blobs) -> str:
    identity = row.get(blobs.id)
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise Missing(f"without the field {blobs.id!r}")
    data = _fetch(blobs.url.replace("{id}", identity))
    try:
        return _unpacked(data).decode(row.get(blobs.encoding) or "utf-8")
    except (OSError, EOFError):
        raise Missing("a damaged text in the bucket") from None
    except (UnicodeDecodeError, LookupError):
        raise Missing("not in the encoding that it is said to have") from None


def _unpacked(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as f:
        text = f.read(MAX_BYTES + 1)
    if len(text) > MAX_BYTES:
        raise Missing(f"a text above {MAX_BYTES >> 20} MiB")
    return text


def _fetch(url: str) -> bytes:
    def once() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                data: bytes = answer.read(MAX_BYTES + 1)
                return data
        except urllib.error.HTTPError as e:
            e.close()
            if e.code in (403, 404, 410):  # S3 answers 403 for what is not there
                raise Missing("not in the bucket") from None
            raise

    with in_one_line(f"{url}: cannot be read"):
        return again(once)
