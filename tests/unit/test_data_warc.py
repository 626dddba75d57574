"""Web archives: which records are pages, and their text."""

import gzip

import pytest

from smollm3.data import documents
from smollm3.data.places import Span
from smollm3.data.readers import count_rows, rows
from smollm3.data.sources import Skipped
from smollm3.data.spec import FileSource

pytest.importorskip("warcio")
pytest.importorskip("trafilatura")


def said(i):
    return f"This is what page {i} has to say, in enough words to be taken for running text. " * 5


def page(i):
    return (
        f"<html><head><title>Page {i}</title></head><body><nav><a href='/'>Home</a></nav>"
        f"<article><h1>Page {i}</h1><p>{said(i)}</p></article>"
        "<footer>All rights reserved</footer></body></html>"
    )


def record(i, kind, media, content):
    """A WARC record; a response is an HTTP message with its own header."""
    if kind == "response":
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {len(content)}\r\n\r\n"
        media, content = "application/http; msgtype=response", head.encode() + content
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://site/{i}\r\n"
        f"WARC-Date: 2026-01-0{1 + i % 9}T00:00:00Z\r\nWARC-Record-ID: <urn:uuid:{i}>\r\n"
        f"Content-Type: {media}\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return header.encode() + content + b"\r\n\r\n"


def archive(path, records):
    """Writes (type, media type, content) as records, in .gz each a member of its own."""
    parts = [record(i, *fields) for i, fields in enumerate(records)]
    path.write_bytes(b"".join(map(gzip.compress, parts) if path.suffix == ".gz" else parts))
    return str(path)


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz"])
def test_pages_are_rows_and_nothing_else_is(tmp_path, name):
    file = archive(
        tmp_path / name,
        [
            ("request", "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"),
            ("response", "text/html; charset=utf-8", page(1).encode()),
            ("response", "image/png", b"\x89PNG"),
            ("metadata", "text/plain", b"fetchTimeMs: 3"),
            ("response", "application/xhtml+xml", page(2).encode("latin-1")),
            ("response", "text/html", b"<html><body></body></html>"),
        ],
    )
    reads = list(rows(Span(file, 0)))
    assert [read.fault for read in reads] == [None, None, "a page without running text"]
    for i, read in enumerate(reads[:2], 1):
        assert said(i).strip() in read.row["text"]
        assert "Home" not in read.row["text"]
        assert "rights" not in read.row["text"]
    assert reads[1].row["url"] == "http://site/4"
    assert reads[1].row["date"] == "2026-01-05T00:00:00Z"
    assert count_rows(Span(file, 0)) == 3


def test_conversions_are_texts_already(tmp_path):
    texts = ["Plain, as it is.\nTwo lines.", "Über alles."]
    records = [("conversion", "text/plain", text.encode()) for text in texts]
    records.append(("conversion", "text/plain", b"\xff\xfe no text"))
    file = archive(tmp_path / "a.wet.gz", records)
    skipped = Skipped()
    source = FileSource(kind="warc", files=[file])
    assert [d.text for d in documents(source, 0, skipped)] == texts
    assert skipped == {"not UTF-8": 1}


def test_what_is_damaged_is_named_and_the_rest_is_read(tmp_path):
    large = [page(i).replace("</p>", f"{said(i) * 200}</p>") for i in range(40)]
    archive(tmp_path / "a.warc.gz", [("response", "text/html", p.encode()) for p in large])
    data = (tmp_path / "a.warc.gz").read_bytes()
    (tmp_path / "a.warc.gz").write_bytes(data[: len(data) * 3 // 4])
    (tmp_path / "b.warc").write_bytes(b"no archive at all\n" * 9)
    (tmp_path / "c.warc.gz").write_bytes(gzip.compress(b"WARC/1.0\r\n")[:-3])
    archive(tmp_path / "d.warc", [("response", "text/html", page(99).encode())])
    skipped = Skipped()
    source = FileSource(kind="files", files=[str(tmp_path)])
    found = [d.text for d in documents(source, 0, skipped)]
    assert any(said(99).strip() in text for text in found)
    assert 1 < len(found) < 41
    named = {reason.partition(": cannot be read to its end")[0] for reason in skipped}
    assert named == {str(tmp_path / name) for name in ("a.warc.gz", "b.warc", "c.warc.gz")}
