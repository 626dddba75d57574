"""Prepared data on disk: a folder for each source, cut into parts.

    train/00000.ds           tokens, one after another: uint16, or uint32 for a large vocabulary
    train/00000.ds.index     uint64: the number of tokens up to the end of each document
    train/00000.ds.metadata  tokenizer|bytes a token, tokens in all
    train/00000.ds.masks     uint8 a token (chat, preference): bit 0 generated, bit 1 published
    heldout/00000.ds ...     the same for documents that are never trained on
    parts/00000.json         what went into the part and what did not, sizes and checksums
    meta.json                of the source: its parts in reading order; written last

A part's JSON is written after its files, so a part is whole or not there. The first three files are
datatrove's format: nanotron and datatrove read `train/` as it is.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smollm3.data.store import Store, upload
from smollm3.errors import UserError
from smollm3.files import PARTIAL, disk_errors, read_json, read_object, sha256_json, write_json
from smollm3.portable import read_ahead

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
GENERATED, PUBLISHED = 1, 2  # bits of a mask
BLOCK_BYTES = 192 << 20  # tokens that are shuffled together, in memory
OPEN_FILES = 64  # mapped at a time: a map keeps its file open
AHEAD_BYTES = 32 << 20  # of the next part, asked of the disk when a part is opened
_MEND = "prepare the data again, or delete the folder"
Ints = NDArray[np.int64]


class Shard:
    """One split of a prepared source, as one long row of tokens over all of its parts.

    tokens [n_tokens]: sliced like an array; files are mapped as they are read.
    masks [n_tokens] or None: which tokens are trained on under `loss: assistant`.
    In preference data documents 2i and 2i+1 are the chosen and rejected sides of pair i, each
    with its prompt, and both mask bits mark the answer up to its stop token.
    digest: checksum of the prepared content of both splits. meta: what is in meta.json.
    """

    def __init__(self, folder: Path, split: Split, meta: dict[str, Any]) -> None:
        self.folder, self.split, self.meta = folder, split, meta
        self.name: str = meta["name"]
        self.format: Literal["text", "chat", "preference"] = meta["format"]
        self.digest: str = meta["digest"]
        self.dtype = np.dtype(f"uint{8 * meta['token_bytes']}")
        counts = [(p["name"], *p[split]) for p in meta["parts"] if p[split][0]]
        self._parts = [name for name, _, _ in counts]
        self._documents = np.cumsum([0, *(documents for _, documents, _ in counts)])
        self._tokens = np.cumsum([0, *(tokens for _, _, tokens in counts)])
        self._maps: OrderedDict[tuple[int, str], NDArray[Any]] = OrderedDict()
        self.tokens = _Tokens(self, "")
        self.masks = _Tokens(self, ".masks") if self.format != "text" else None
        self._store = _store(meta)

    @classmethod
    def open(cls, folder: str | Path, split: Split = "train") -> Shard:
        """Open a prepared folder; one that is damaged is a UserError that names the file.

        Sizes are checked here, which takes milliseconds, or of files that lie in a store when they
        are fetched; `verify` compares checksums.
        """
        folder = Path(folder)
        meta = read_object(folder / "meta.json")
        try:
            shard = cls(folder, split, meta)
            if shard._store is None:
                shard._check_sizes()
        except (LookupError, TypeError, ValueError, ArithmeticError):
            raise UserError(f"{folder / 'meta.json'}: is damaged; {_MEND}") from None
        return shard

    def _check_sizes(self) -> None:
        here = {e.name: e.stat().st_size for e in _entries(self.folder / self.split)}
        suffixes = ("", ".index") if self.masks is None else ("", ".index", ".masks")
        for i, part in enumerate(self._parts):
            for suffix in suffixes:
                name, size = f"{part}.ds{suffix}", self._size(i, suffix)
                if here.get(name) != size:
                    found = f"{here[name]} bytes instead of {size}" if name in here else "missing"
                    raise UserError(f"{self.folder / self.split / name}: {found}; {_MEND}")

    def _size(self, part: int, suffix: str) -> int:
        """Bytes of a part's file."""
        if suffix == ".index":
            return 8 * int(self._documents[part + 1] - self._documents[part])
        each = 1 if suffix else self.dtype.itemsize
        return each * int(self._tokens[part + 1] - self._tokens[part])

    @property
    def documents(self) -> int:
        return int(self._documents[-1])

    @property
    def n_tokens(self) -> int:
        return int(self._tokens[-1])

    @property
    def ends(self) -> Ints:
        """Where each document ends in `tokens`: 8 bytes a document, so for sources that fit."""
        pieces = [self._file(i, ".index") + start for i, start in enumerate(self._tokens[:-1])]
        return np.concatenate([*pieces, np.zeros(0, np.int64)]).astype(np.int64)

    def lengths(self) -> Ints:
        """Tokens of each document."""
        return np.diff(self.ends, prepend=0)

    def document(self, index: int) -> slice:
        """Where document `index` lies in `tokens` and `masks`."""
        part = int(np.searchsorted(self._documents, index, side="right")) - 1
        if not 0 <= part < len(self._parts):
            raise IndexError(index)
        ends, base = self._file(part, ".index"), int(self._tokens[part])
        local = index - int(self._documents[part])
        return slice(base + (int(ends[local - 1]) if local else 0), base + int(ends[local]))

    def documents_of(self, start: int, stop: int) -> Ints:
        """The number of the document that each of tokens start..stop-1 belongs to."""
        found = []
        for part, first, last in self._pieces(start, stop):
            ends = self._file(part, ".index")
            low, high = (int(np.searchsorted(ends, x, side="right")) for x in (first, last - 1))
            places = np.arange(first, last, dtype=np.uint64)
            local = np.searchsorted(ends[low : high + 1], places, side="right")
            found.append(local + (low + int(self._documents[part])))
        return np.concatenate(found)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(part, first, last): the parts that tokens start..stop-1 lie in, and where in them."""
        part = int(np.searchsorted(self._tokens, start, side="right")) - 1
        while start < stop:
            base, end = int(self._tokens[part]), int(self._tokens[part + 1])
            yield part, start - base, min(stop, end) - base
            start, part = end, part + 1

    def _file(self, part: int, suffix: str) -> NDArray[Any]:
        """A part's file as an array. The OPEN_FILES last used stay mapped."""
        key = part, suffix
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        if len(self._maps) >= OPEN_FILES:
            self._maps.popitem(last=False)
        dtype = {"": self.dtype, ".index": np.dtype(np.uint64), ".masks": np.dtype(np.uint8)}
        with self._open(part, suffix) as f:
            self._maps[key] = np.memmap(f, dtype[suffix], mode="r")
        if not suffix and part + 1 < len(self._parts):
            self._ask_ahead(part + 1)
        return self._maps[key]

    def _open(self, part: int, suffix: str) -> BufferedReader:
        name = f"{self.split}/{self._parts[part]}.ds{suffix}"
        if self._store is not None:
            return self._store.open(name, self._size(part, suffix))
        return (self.folder / name).open("rb")

    def _ask_ahead(self, part: int) -> None:
        """Ask the disk, or the store, for the tokens of a part before they are needed."""
        if self._store is not None:
            self._store.ahead(f"{self.split}/{self._parts[part]}.ds", self._size(part, ""))
            return
        with self._open(part, "") as f:
            read_ahead(f, AHEAD_BYTES)


class _Tokens:
    """A source's tokens or masks as one array, of which only slices are read."""

    def __init__(self, shard: Shard, suffix: str) -> None:
        self._shard, self._suffix = shard, suffix
        self.dtype = shard.dtype if not suffix else np.dtype(np.uint8)

    def __len__(self) -> int:
        return self._shard.n_tokens

    def __getitem__(self, where: slice) -> NDArray[Any]:
        start, stop, _ = where.indices(len(self))
        pieces = [
            self._shard._file(part, self._suffix)[first:last]
            for part, first, last in self._shard._pieces(start, stop)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([*pieces, np.zeros(0, self.dtype)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except FileNotFoundError:
        raise UserError(f"{folder}: no such folder; {_MEND}") from None


def _store(meta: dict[str, Any]) -> Store | None:
    if "store" not in meta:
        return None
    return Store(meta["store"]["url"], meta["store"]["cache"], meta["digest"][:16])


# Writing


class _File:
    """A file under a name of its own until it is whole; its checksum is taken on the way."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes, self._hash = path, 0, hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PARTIAL}")
        self._out = self._temporary.open("wb")

    def write(self, data: bytes) -> None:
        self._out.write(data)
        self._hash.update(data)
        self.bytes += len(data)

    def publish(self) -> dict[str, Any]:
        self._out.flush()
        os.fsync(self._out.fileno())
        self._out.close()
        self._temporary.replace(self.path)
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}

    def discard(self) -> None:
        self._out.close()
        self._temporary.unlink(missing_ok=True)


class PartWriter:
    """Writes one part: documents come in reading order and leave shuffled.

    BLOCK_BYTES of tokens are shuffled at a time, so memory is bounded whatever a part holds, and a
    part below that is shuffled whole.
    """

    def __init__(
        self, folder: Path, name: str, *, token_bytes: int, masks: bool, group: int,
        holdout: float, alone: bool, tokenizer: str,
    ) -> None:  # fmt: skip
        """group: documents that stay together, 2 for preference pairs. holdout: share of documents
        for `heldout`. alone: it is the source's only part, so that a small source keeps a document
        on each side. tokenizer: checksum."""
        self.folder, self.name, self.group = folder, name, group
        self.holdout, self.alone, self.tokenizer = holdout, alone, tokenizer
        self.code, self.token_bytes = ("I", 4) if token_bytes == 4 else ("H", 2)
        self._suffixes = ["", ".masks"] if masks else [""]
        self._files = {
            (split, suffix): _File(folder / split / f"{name}.ds{suffix}")
            for split in SPLITS
            for suffix in self._suffixes
        }
        self._ends: dict[Split, array[int]] = {split: array("Q") for split in SPLITS}
        self._written: dict[Split, int] = dict.fromkeys(SPLITS, 0)
        self._begin_block()

    def _begin_block(self) -> None:
        self._documents: dict[str, list[bytes]] = {suffix: [] for suffix in self._suffixes}
        self._keys, self._contents = array("Q"), array("Q")
        self._size = 0

    def add(
        self, tokens: Sequence[Sequence[int]], masks: Sequence[Sequence[int]] | None,
        key: int, content: int,
    ) -> None:  # fmt: skip
        """One group of documents. key: decides its place. content: decides its split."""
        for ids in tokens:
            data = array(self.code, ids).tobytes()
            self._documents[""].append(data)
            self._size += len(data)
        for mask in masks or ():
            self._documents[".masks"].append(bytes(mask))
        self._keys.append(key)
        self._contents.append(content)
        if self._size >= BLOCK_BYTES:
            self.alone = False
            self._write_block()

    @property
    def tokens(self) -> int:
        """Of both splits so far."""
        return sum(self._written.values()) + self._size // self.token_bytes

    def _write_block(self) -> None:
        order = np.argsort(np.array(self._keys, np.uint64), kind="stable")
        held = _held_out(np.array(self._contents, np.uint64), self.holdout, self.alone)
        for split in SPLITS:
            groups = order[held[order] == (split == "heldout")]
            chosen = (groups[:, None] * self.group + np.arange(self.group)).ravel().tolist()
            for suffix, documents in self._documents.items():
                file = self._files[split, suffix]
                for document in chosen:
                    file.write(documents[document])
            for document in chosen:
                self._written[split] += len(self._documents[""][document]) // self.token_bytes
                self._ends[split].append(self._written[split])
        self._begin_block()

    def finish(self, ledger: Mapping[str, Any]) -> None:
        """Write what is left, the index and, last, the part's JSON with `ledger` in it."""
        self._write_block()
        for split in SPLITS:
            at = self.folder / split
            tokens = self._written[split]
            index = self._files[split, ".index"] = _File(at / f"{self.name}.ds.index")
            index.write(self._ends[split].tobytes())
            metadata = self._files[split, ".metadata"] = _File(at / f"{self.name}.ds.metadata")
            metadata.write(f"{self.tokenizer}|{self.token_bytes}\n{tokens}\n".encode())
        files = {f"{s}/{f.path.name}": f.publish() for (s, _), f in self._files.items()}
        self._files = {}
        counts: dict[str, list[int]] = {
            split: [len(self._ends[split]), self._written[split]] for split in SPLITS
        }
        digest = sha256_json({name: file["sha256"] for name, file in files.items()})
        part = {
            "name": self.name,
            **counts,
            "digest": digest,
            **ledger,
            "files": files,
        }
        write_json(part_file(self.folder, self.name), part)

    def close(self) -> None:
        """Leave nothing of a part that was not finished."""
        for file in self._files.values():
            file.discard()


def _held_out(contents: NDArray[np.uint64], share: float, alone: bool) -> NDArray[np.bool_]:
    """Which documents are held out: those with low hashes, so equal ones go together. `alone`:
    at least one and never all, if there are two different ones and a share is asked for."""
    threshold = np.uint64(int(share * 2**64))
    if alone:
        different = np.unique(contents)
        if share == 0 or len(different) < 2:
            return np.zeros(len(contents), np.bool_)
        n = int(np.searchsorted(different, threshold))
        threshold = different[min(max(n, 1), len(different) - 1)]
    held: NDArray[np.bool_] = contents < threshold
    return held


# Folders


def part_file(folder: Path, name: str) -> Path:
    return folder / "parts" / f"{name}.json"


def read_part(folder: Path, name: str) -> dict[str, Any] | None:
    """A part's JSON; None if it is not there or not all of its files have their sizes."""
    try:
        part: dict[str, Any] = read_json(part_file(folder, name))
        for file, expected in part["files"].items():
            if (folder / file).stat().st_size != expected["bytes"]:
                return None
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return None
    return part


def write_meta(folder: Path, meta: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    """Write meta.json of a source from its parts, in reading order."""
    kept = ("name", *SPLITS, "digest")
    total = {s: [sum(p[s][i] for p in parts) for i in (0, 1)] for s in SPLITS}
    meta = {
        **meta,
        "documents": total["train"][0],
        "tokens": total["train"][1],
        "heldout": {"documents": total["heldout"][0], "tokens": total["heldout"][1]},
        "digest": sha256_json([part["digest"] for part in parts]),
        "parts": [{key: part[key] for key in kept} for part in parts],
    }
    write_json(folder / "meta.json", meta)


def move(folder: Path, url: str, cache: int) -> None:
    """Move the files of a prepared source to <url>/<its name>. meta.json stays and says where they
    are; what is read of them is kept on each machine, up to `cache` bytes."""
    meta = read_json(folder / "meta.json")
    files = _files(folder, meta)
    if "store" not in meta:
        where = upload(folder, url, {name: file["bytes"] for name, file in files.items()})
        write_json(folder / "meta.json", {**meta, "store": {"url": where, "cache": cache}})
    for name in files:
        (folder / name).unlink(missing_ok=True)


def _files(folder: Path, meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: {"bytes", "sha256"}} of all parts."""
    parts = [read_json(part_file(folder, entry["name"])) for entry in meta["parts"]]
    return {name: file for part in parts for name, file in part["files"].items()}


def verify(folder: Path) -> Iterator[str]:
    """Compare every file of a prepared source with its checksum; yields what is wrong."""
    meta = read_json(folder / "meta.json")
    store = _store(meta)
    for entry in meta["parts"]:
        part = read_json(part_file(folder, entry["name"]))
        if part["digest"] != entry["digest"]:
            yield f"{part_file(folder, entry['name'])}: not the part that meta.json names"
    for name, expected in _files(folder, meta).items():
        path = folder / name
        try:
            with (
                disk_errors(path),
                store.open(name, expected["bytes"]) if store else path.open("rb") as file,
            ):
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            yield f"{path}: missing"
        except UserError as e:
            if store is None:
                raise
            yield str(e)
        else:
            if found != expected["sha256"]:
                yield f"{path}: damaged (its checksum has changed)"
