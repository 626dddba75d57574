"""Web archives (WARC and WET, as Common Crawl has them): a row is a page with its running text.

Of a response with HTML the text is what trafilatura extracts with `favor_precision`, as for
FineWeb, but without its deduplication, which depends on the pages that came before; a conversion
(WET) is text already. Other records and other media are no rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from smollm3.data.places import unreadable
from smollm3.data.readers import Read, open_text, reason
from smollm3.errors import UserError

_HTML = {"text/html", "application/xhtml+xml"}


def warc_rows(file: str) -> Iterator[Read]:
    """{"text", "url", "date"} of each page. A record that cannot be read ends the file."""
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError as e:
        raise UserError(
            f"{file}: web archives need {e.name}; pip install 'smollm3[data]'"
        ) from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what it says is counted here
    number = 0
    try:
        with open_text(file) as f, closing(ArchiveIterator(f)) as records:
            for record in records:
                if not _is_page(record):
                    continue
                yield _page(record, number)
                number += 1
    except (ArchiveLoadFailed, *unreadable()) as e:
        yield Read(number, None, fault=f"{file}: cannot be read to its end ({reason(e)})")


def _is_page(record: Any) -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or record.http_headers is None:
        return False
    kind = record.rec_headers.get_header("WARC-Identified-Payload-Type")
    kind = kind or record.http_headers.get_header("Content-Type") or ""
    return str(kind).partition(";")[0].strip().lower() in _HTML


def _page(record: Any, number: int) -> Read:
    from trafilatura import extract

    content = record.content_stream().read()
    if record.rec_type == "conversion":
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:
            return Read(number, None, fault="not UTF-8")
    else:
        text = extract(content, favor_precision=True, include_comments=False)
        if text is None:
            return Read(number, None, fault="a page without running text")
    names = {"url": "WARC-Target-URI", "date": "WARC-Date"}
    headers = {key: record.rec_headers.get_header(name) for key, name in names.items()}
    return Read(number, None, {"text": text, **headers})
