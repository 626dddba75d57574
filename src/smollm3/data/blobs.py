"""Texts by id out of a bucket: The Stack v2 holds ids, Software Heritage the files."""

from __future__ import annotations

import gzip
import http.client
import io
import random
import re
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from smollm3.data.readers import Row
from smollm3.data.spec import Blobs
from smollm3.errors import UserError

ATTEMPTS = 6
MAX_BYTES = 64 << 20  # of a text; a stream that gives more is no source file
TIMEOUT = 60.0
_ID = re.compile(r"[0-9A-Za-z_-]{1,128}")


class Missing(Exception):
    """The bucket has no such text, or not one that can be read; the message is the reason."""


def with_texts(
    rows: Iterable[tuple[int, Any]], blobs: Blobs, skipped: Counter[str]
) -> Iterator[tuple[int, Row]]:
    """The rows with what their ids name as the column `text`, in order.

    `blobs.requests` are under way at a time and as many answers are kept, no more. What the bucket
    does not have is counted; a bucket that does not answer after ATTEMPTS tries is a UserError.
    """
    with ThreadPoolExecutor(blobs.requests) as pool:
        asked: deque[tuple[int, Row, Future[str]]] = deque()

        def taken() -> Iterator[tuple[int, Row]]:
            number, row, answer = asked.popleft()
            try:
                yield number, {**row, "text": answer.result()}
            except Missing as e:
                skipped[str(e)] += 1

        try:
            for number, row in rows:
                if not isinstance(row, dict):
                    skipped["not an object"] += 1
                    continue
                asked.append((number, row, pool.submit(_text, row, blobs)))
                if len(asked) >= 2 * blobs.requests:
                    yield from taken()
            while asked:
                yield from taken()
        finally:
            pool.shutdown(cancel_futures=True)


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
    """What lies at `url`. Waits longer after each failure, up to half a minute."""
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                data: bytes = answer.read(MAX_BYTES + 1)
                return data
        except urllib.error.HTTPError as e:
            e.close()
            if e.code in (403, 404, 410):  # S3 answers 403 for what is not there
                raise Missing("not in the bucket") from None
            reason = f"HTTP {e.code}"
        except (OSError, http.client.HTTPException) as e:
            reason = str(e) or type(e).__name__
        if attempt + 1 < ATTEMPTS:
            time.sleep(min(30.0, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
    raise UserError(f"{url}: no answer after {ATTEMPTS} attempts ({reason}); run again later")
