"""Prepared data on disk: tokens, where documents end, and loss masks.

    <split>.ds           tokens, one after another: uint16, or uint32 where the vocabulary needs it
    <split>.ds.index     uint64: the number of tokens up to the end of each document
    <split>.ds.metadata  tokenizer|bytes a token, tokens in all
    <split>.ds.masks     uint8 a token (chat, preference): bit 0 generated, bit 1 published
    meta.json            counts, sizes and checksums; written last

for the splits `train` and `heldout`. The first three are datatrove's format, which nanotron reads.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from smollm3.errors import UserError
from smollm3.files import read_json, sha256_file, sha256_json, write_json

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
GENERATED, PUBLISHED = 1, 2  # bits of a mask


@dataclass(frozen=True, eq=False)
class Shard:
    """One split of a prepared source.

    tokens [n_tokens]: a memory map. ends [documents]: where each document ends in it.
    masks [n_tokens] or None: which tokens are trained on under `loss: assistant`.
    In preference data documents 2i and 2i+1 are the chosen and rejected sides of pair i, each
    with its prompt, and both mask bits mark the answer up to its stop token.
    digest: checksum of the prepared content of both splits. meta: what is in meta.json.
    """

    folder: Path
    split: Split
    name: str
    format: Literal["text", "chat", "preference"]
    tokens: NDArray[np.unsignedinteger[Any]]
    ends: NDArray[np.uint64]
    masks: NDArray[np.uint8] | None
    digest: str
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, split: Split = "train") -> Shard:
        """Map a prepared folder; one that is damaged is a UserError that names the file.

        The first opening in a process checks sizes and checksums.
        """
        folder = Path(folder)
        meta = read_json(folder / "meta.json")
        for file, expected in meta["files"].items():
            path = folder / file
            try:
                stat = path.stat()
            except FileNotFoundError:
                raise UserError(f"{path}: no such file; {_MEND}") from None
            sizes = (stat.st_size, expected["bytes"])
            if sizes[0] != sizes[1] or _checksum(path, stat.st_mtime_ns) != expected["sha256"]:
                raise UserError(f"{path}: damaged (its checksum has changed); {_MEND}")
        masks = folder / f"{split}.ds.masks"
        return cls(
            folder=folder,
            split=split,
            name=meta["name"],
            format=meta["format"],
            tokens=_map(folder / f"{split}.ds", f"uint{8 * meta['token_bytes']}"),
            ends=np.fromfile(folder / f"{split}.ds.index", np.uint64),
            masks=_map(masks, "uint8") if masks.exists() else None,
            digest=meta["digest"],
            meta=meta,
        )

    @property
    def documents(self) -> int:
        return len(self.ends)

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        lengths = self.ends.astype(np.int64)
        lengths[1:] -= lengths[:-1].copy()
        return lengths

    def document(self, index: int) -> slice:
        """Where document `index` lies in `tokens` and `masks`."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


_MEND = "prepare the data again, or delete the folder"


@cache
def _checksum(path: Path, modified: int) -> str:
    return sha256_file(path)


def _map(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:  # mmap refuses it
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


class ShardWriter:
    """Collects tokenised documents in a scratch file, then writes the splits in shuffled order.

    Memory is 24 bytes a document (length, order, content hash); tokens stay on disk.
    """

    def __init__(self, folder: Path, token_bytes: int, with_masks: bool, group: int) -> None:
        """group: documents that stay together, 2 for preference pairs."""
        self.folder = folder
        self.dtype = np.dtype(f"uint{8 * token_bytes}")
        self.group = group
        self._lengths, self._keys, self._contents = array("q"), array("Q"), array("Q")
        self._tokens = (folder / "scratch.ds").open("wb")
        self._masks = (folder / "scratch.masks").open("wb") if with_masks else None

    def add(
        self, tokens: list[list[int]], masks: list[list[int]] | None, key: int, content: int
    ) -> None:
        """One group of documents. key: decides its place. content: decides its split."""
        for ids in tokens:
            self._tokens.write(np.asarray(ids, self.dtype).tobytes())
            self._lengths.append(len(ids))
        if self._masks is not None:
            for mask in masks or ():
                self._masks.write(np.asarray(mask, np.uint8).tobytes())
        self._keys.append(key)
        self._contents.append(content)

    def close(self) -> None:
        self._tokens.close()
        if self._masks is not None:
            self._masks.close()

    def finish(self, holdout: float, meta: dict[str, Any]) -> None:
        """Write both splits, and last meta.json: `meta` (name, format, tokenizer, ...) with
        counts and checksums."""
        self.close()
        lengths = np.array(self._lengths, np.int64)
        ends = np.cumsum(lengths)
        order = np.argsort(np.array(self._keys, np.uint64), kind="stable")
        held = _held_out(np.array(self._contents, np.uint64), holdout)
        scratch = {".ds": _map(self.folder / "scratch.ds", self.dtype.name)}
        if self._masks is not None:
            scratch[".ds.masks"] = _map(self.folder / "scratch.masks", "uint8")
        counts: dict[str, dict[str, int]] = {}
        for split in SPLITS:
            groups = order[held[order] == (split == "heldout")]
            documents = (groups[:, None] * self.group + np.arange(self.group)).ravel()
            for suffix, values in scratch.items():
                with (self.folder / f"{split}{suffix}").open("wb") as out:
                    for document in documents:
                        end = ends[document]
                        out.write(values[end - lengths[document] : end].tobytes())
            split_ends = np.cumsum(lengths[documents]).astype(np.uint64)
            split_ends.tofile(self.folder / f"{split}.ds.index")
            tokens = int(split_ends[-1]) if len(split_ends) else 0
            (self.folder / f"{split}.ds.metadata").write_text(
                f"{meta['tokenizer']}|{self.dtype.itemsize}\n{tokens}\n"
            )
            counts[split] = {"documents": len(documents), "tokens": tokens}
        del scratch
        for file in self.folder.glob("scratch.*"):
            file.unlink()
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            for path in sorted(self.folder.iterdir())
        }
        meta = {
            **meta,
            **counts["train"],
            "heldout": counts["heldout"],
            "token_bytes": self.dtype.itemsize,
            "files": files,
            "digest": sha256_json({name: file["sha256"] for name, file in files.items()}),
        }
        write_json(self.folder / "meta.json", meta)


def _held_out(contents: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents are held out: those with the lowest hashes, so equal ones go together; at
    least one and never all, if there are two different ones and a share is asked for."""
    different = np.unique(contents)
    if share == 0 or len(different) < 2:
        return np.zeros(len(contents), np.bool_)
    n = int(np.searchsorted(different, np.uint64(int(share * 2**64))))
    threshold: np.uint64 = different[min(max(n, 1), len(different) - 1)]
    return contents < threshold
