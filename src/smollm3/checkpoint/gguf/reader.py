"""A bounded reader of GGUF files, versions 2 and 3 (little-endian), whole or split into parts.

Layout: magic, version, number of tensors, number of metadata entries; the entries; for each tensor
its name, shape, type and offset; then, aligned, the data. Every count, length and offset is held
against the bytes that are there before anything is made from it, so a damaged or hostile file costs
a UserError that names the file and the key or tensor.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
import struct
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from smollm3.checkpoint.gguf.quants import FORMATS, NAMES, Bytes, Floats, dequantize
from smollm3.errors import UserError

MAGIC = b"GGUF"
# 280,147 merges and 128,256 tokens take 8 MB; strings of Python need up to seven times that.
HEADER_BYTES = 64 << 20
STRING_BYTES = 4 << 20
NAME_BYTES = 1 << 16
STRING, ARRAY = 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}


class Tensor(NamedTuple):
    """format: a key of FORMATS. shape: as in torch, rows last. start, size: bytes in the file, or
    in that `part` of a split one."""

    format: str
    shape: tuple[int, ...]
    start: int
    size: int
    part: int = 0


class _Header:
    """Reads one value after another and never past the header's bound."""

    def __init__(self, path: Path, data: bytes | mmap.mmap) -> None:
        self.path, self.data = path, data
        self.at = 0
        self.end = min(len(data), HEADER_BYTES)

    def fail(self, what: str, problem: str) -> UserError:
        return UserError(f"{self.path}: {what}: {problem}")

    def skip(self, size: int, what: str) -> int:
        """Go past `size` bytes; where they start."""
        start = self.at
        if size > self.end - start:
            if size > len(self.data) - start:
                raise self.fail(what, "the file ends before it does; fetch it again")
            raise self.fail(what, f"lies beyond the {HEADER_BYTES >> 20} MiB a header may take")
        self.at = start + size
        return start

    def u32(self, what: str) -> int:
        return int(struct.unpack_from("<I", self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack_from("<Q", self.data, self.skip(8, what))[0])

    def count(self, what: str, item_bytes: int) -> int:
        """A number of items, each of at least `item_bytes`, that can all still follow."""
        count = self.u64(what)
        if count > (self.end - self.at) // item_bytes:
            raise self.fail(what, f"{count} entries do not fit in the rest of the file")
        return count

    def string(self, what: str, longest: int = STRING_BYTES) -> str:
        size = self.u64(what)
        if size > longest:
            raise self.fail(what, f"a string of {size} bytes; at most {longest} are read")
        start = self.skip(size, what)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError as e:
            raise self.fail(what, f"not UTF-8 ({e.reason})") from None

    def strings(self, what: str, count: int) -> list[str]:
        """As `string`, for the hundreds of thousands of a vocabulary."""
        data, at, end, number = self.data, self.at, self.end, int.from_bytes
        found: list[str] = []
        try:
            for _ in range(count):
                size = number(data[at : at + 8], "little")
                at += 8
                if size > end - at or size > STRING_BYTES:
                    raise self.fail(what, f"a string of {size} bytes does not fit")
                found.append(data[at : at + size].decode())
                at += size
        except UnicodeDecodeError as e:
            raise self.fail(what, f"damaged ({e})") from None
        self.at = at
        return found

    def scalars(self, kind: int, count: int, what: str) -> NDArray[Any]:
        dtype = SCALARS[kind]
        return np.frombuffer(self.data, dtype, count, self.skip(count * dtype.itemsize, what))

    def value(self, key: str) -> Any:
        """A Python scalar or string, a list of strings, or an array of numbers."""
        kind = self.u32(key)
        if kind == STRING:
            return self.string(key)
        if kind in SCALARS:
            return self.scalars(kind, 1, key)[0].item()
        if kind != ARRAY:
            raise self.fail(key, f"unknown type {kind}")
        kind = self.u32(key)
        if kind == STRING:
            return self.strings(key, self.count(key, 8))
        if kind in SCALARS:
            return self.scalars(kind, self.count(key, SCALARS[kind].itemsize), key).copy()
        raise self.fail(key, f"array of unknown type {kind}")


# As llama-gguf-split names the parts of a model, the first as 00001.
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MOST_PARTS = 1000


class _Part:
    """One file: its metadata, where its tensors lie, and its bytes, which stay mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError) as e:  # a folder, no permission, an empty file
            raise UserError(f"{path}: cannot be read as GGUF ({e})") from None
        header = _Header(path, self.data)
        if self.data[:4] != MAGIC:
            raise UserError(f"{path}: not a GGUF file: it does not start with 'GGUF'")
        header.skip(4, "magic")
        version = header.u32("version")
        if version not in (2, 3):
            mend = "big-endian files are not read" if version >= 1 << 16 else "only 2 and 3 are"
            raise header.fail("version", f"{version} is not supported; {mend}")
        tensors = header.count("number of tensors", 8 + 4 + 8 + 4 + 8)
        entries = header.count("number of metadata entries", 8 + 4 + 1)
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):
            key = header.string("metadata", NAME_BYTES)
            if key in self.metadata:
                raise header.fail(key, "appears twice")
            self.metadata[key] = header.value(key)
        self.tensors = self._tensors(header, tensors)
        self.header_bytes = header.at

    def _tensors(self, header: _Header, count: int) -> dict[str, Tensor]:
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment.bit_count() != 1:
            raise header.fail("general.alignment", f"{alignment!r} is not a power of two")
        found: dict[str, Tensor] = {}
        for _ in range(count):
            name = header.string("tensor name", NAME_BYTES)
            if name in found:
                raise header.fail(name, "appears twice")
            found[name] = self._tensor(header, name, alignment)
        base = -(-header.at // alignment) * alignment
        placed = {name: t._replace(start=base + t.start) for name, t in found.items()}
        for name, tensor in placed.items():
            if tensor.start + tensor.size > len(self.data):
                raise header.fail(name, "its data lie beyond the end; fetch the file again")
        by_start = sorted(placed, key=lambda name: placed[name].start)
        for first, second in pairwise(by_start):
            if placed[first].start + placed[first].size > placed[second].start:
                raise header.fail(second, f"overlaps {first}")
        return placed

    def _tensor(self, header: _Header, name: str, alignment: int) -> Tensor:
        """`start` still counts from the data's beginning."""
        dimensions = header.u32(name)
        if not 1 <= dimensions <= 4:
            raise header.fail(name, f"has {dimensions} dimensions")
        shape = tuple(header.u64(name) for _ in range(dimensions))[::-1]
        number = header.u32(name)
        if number not in NAMES:
            known = ", ".join(FORMATS)
            raise header.fail(name, f"tensor type {number} is not supported, only {known}")
        form = FORMATS[NAMES[number]]
        if min(shape) < 1 or shape[-1] % form.block:
            raise header.fail(name, f"shape {list(shape)} is not whole {NAMES[number]} blocks")
        start = header.u64(name)
        if start % alignment:
            raise header.fail(name, f"offset {start} is not a multiple of {alignment}")
        size = math.prod(shape) // form.block * form.dtype.itemsize
        if start + size > len(self.data):
            raise header.fail(name, "its data lie beyond the end; fetch the file again")
        return Tensor(NAMES[number], shape, start, size)


class Gguf:
    """metadata: values by key. tensors: where each lies. files: all parts of a split model, of
    which `path` is the first. Nothing of the data is read before `read`."""

    def __init__(self, path: str | Path) -> None:
        """Raises UserError for a file that is not a whole GGUF of supported types."""
        self.path = Path(path)
        self._parts = [_Part(self.path)]
        self.metadata = self._parts[0].metadata
        self._parts += [_Part(other) for other in self._others()]
        self.files = [part.path for part in self._parts]
        self.tensors: dict[str, Tensor] = {}
        for i, part in enumerate(self._parts):
            if part.metadata.get("split.no", 0) != i:
                raise UserError(f"{part.path}: split.no: is not {i}, as its name says")
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise UserError(f"{part.path}: {name}: is in another part, too")
                self.tensors[name] = tensor._replace(part=i)
        if self.metadata.get("split.tensors.count", len(self.tensors)) != len(self.tensors):
            raise self.fail("split.tensors.count", f"the parts hold {len(self.tensors)}")

    def _others(self) -> list[Path]:
        """The parts that follow this file, which must be the first of them."""
        count = self.metadata.get("split.count", 0)
        if type(count) is not int or not 0 <= count <= MOST_PARTS:
            raise self.fail("split.count", f"{count!r} is not a number of parts")
        if count < 2:
            return []
        name = PART.fullmatch(self.path.name)
        if name is None or int(name["count"]) != count:
            raise self.fail(
                "split.count",
                f"one of {count} parts, which are found by their names; name it as "
                f"NAME-00001-of-{count:05}.gguf",
            )
        parts = [
            self.path.with_name(f"{name['stem']}-{n:05}-of-{count:05}.gguf")
            for n in range(1, count + 1)
        ]
        if self.path != parts[0]:
            raise self.fail("split.no", f"not the first part of {count}; open {parts[0].name}")
        return parts[1:]

    def identity(self) -> list[Any]:
        """Differs where the content does: of each file its place, size, time and header."""
        found: list[Any] = []
        for part in self._parts:
            stat = part.path.stat()
            header = hashlib.blake2b(part.data[: part.header_bytes], digest_size=16).hexdigest()
            found.append([header, str(part.path.resolve()), stat.st_size, stat.st_mtime_ns])
        return found

    def read(self, name: str) -> Floats:
        """The values of a tensor, as float32 whatever it is stored as; finite, or a UserError."""
        tensor = self.tensors[name]
        values = dequantize(self.raw(name), tensor.format).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise UserError(f"{self.path}: {name}: holds NaN or infinity; fetch the file again")
        return values

    def raw(self, name: str) -> Bytes:
        """The bytes of a tensor as they lie in the mapped file."""
        tensor = self.tensors[name]
        return np.frombuffer(self._parts[tensor.part].data, np.uint8, tensor.size, tensor.start)

    # metadata

    def fail(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.path}: {key}: {problem}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value, which must be a `kind`, or `default`; without one the key must be there."""
        value = self.metadata.get(key, default)
        if value is None:
            raise self.fail(key, "missing")
        if type(value) is not kind:
            raise self.fail(key, f"must be a {kind.__name__}, not a {type(value).__name__}")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value: int = self.get(key, int, default)
        if value <= 0:
            raise self.fail(key, f"must be above 0, not {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Stored as float32: the shortest decimal that means the same,
        so 1e-5 is 1e-5 and not 9.999999747378752e-06."""
        value: float = self.get(key, float, default)
        if not math.isfinite(value) or value <= 0:
            raise self.fail(key, f"must be a finite number above 0, not {value}")
        return float(str(np.float32(value)))


def open_gguf(path: str | Path) -> Gguf:
    """`Gguf(path)`, or the one just opened if the file has not changed since: its header, with a
    vocabulary of 128,256, takes half a second to read."""
    try:
        stat = Path(path).stat()
    except OSError:
        return Gguf(path)
    return _open_gguf(Path(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def _open_gguf(path: Path, size: int, mtime_ns: int) -> Gguf:
    return Gguf(path)
