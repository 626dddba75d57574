"""Weights in the kernels' own layout: planned from any checkpoint, cached, mapped when used.

A packed file is a safetensors file whose data begin at a cache line. It is keyed by what it was
made from (header, size and time of the source) and by the layout's version, written by one process
at a time under a temporary name, and made again when it is not what its key says. The least
recently used go when the cache is full.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import smollm3_kernels
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from smollm3.checkpoint.gguf.names import ROTATED, gguf_name
from smollm3.checkpoint.gguf.quantize import RECODED, quantize, recode
from smollm3.checkpoint.gguf.quants import FORMATS
from smollm3.checkpoint.gguf.reader import open_gguf
from smollm3.checkpoint.hf import published_name
from smollm3.checkpoint.weights import Weights
from smollm3.errors import UserError
from smollm3.files import (
    PARTIAL,
    cache_folder,
    disk_errors,
    fsync_file,
    fsync_folder,
    own_file,
    sweep,
)
from smollm3.model import ModelConfig
from smollm3.portable import is_own, reserve

Bytes = NDArray[np.uint8]
CACHE_BYTES = 32 << 30  # the whole cache; the 3B model at 4 bits takes 1.9 GB
SMALL = 64 << 20  # models up to this are packed at every start, in less than a second
PACKING_SECONDS = 300.0  # that another may take, until it is packed in memory as well
PROBE = 1 << 20  # one page in so many bytes goes into the checksum
DTYPES = (None, "float32", "bfloat16", "q8_0", "q4_0")
PLAIN = ("F32", "F16", "BF16")
TORCH_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Matrices that multiply the same activations must want them in the same form.
SHARED_INPUT = {
    "attention.q": "in", "attention.k": "in", "attention.v": "in", "ffn.gate": "in", "ffn.up": "in",
    "attention.o": "o", "ffn.down": "down",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """The rows of one matrix in a GGUF type. pairs: the head size where they are in GGUF's order of
    pairs, else 0."""

    type: str
    pairs: int
    read: Callable[[], Bytes]


@dataclass(frozen=True)
class PackedPart:
    """One matrix of `rows` x `columns`, or two that are read together, tile by tile."""

    form: str
    rows: int
    columns: int
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        single = len(self.sources) == 1
        size = smollm3_kernels.matrix_bytes if single else smollm3_kernels.pair_bytes
        return size(self.form, self.rows, self.columns)

    def pack(self, out: Bytes, threads: int) -> None:
        for i, s in enumerate(self.sources):
            which = 0 if len(self.sources) == 1 else i + 1
            shape = self.rows, self.columns
            smollm3_kernels.pack(s.type, s.read(), *shape, s.pairs, self.form, which, threads, out)


@dataclass(frozen=True)
class Plan:
    """norms: float32 vectors by our names; key: fixes the packed bytes."""

    parts: dict[str, PackedPart]
    norms: dict[str, NDArray[np.float32]]
    key: str


def run_as(kind: str) -> str:
    """The GGUF type in which the kernels take a tensor of type `kind`: its own, one that holds the
    same values, or Q8_0, to whose 8 bits the values are rounded (docs/inference.md)."""
    if kind in smollm3_kernels.TYPES:
        return kind
    return RECODED[kind][0] if kind in RECODED else "Q8_0"


def matrix_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Rows and columns of each matrix by our names; a tied embedding appears once."""
    shapes = {"embed": (config.vocab_size, config.hidden)}
    if not config.tied:
        shapes["unembed"] = shapes["embed"]
    return shapes | config.linear_shapes


def norm_names(config: ModelConfig) -> list[str]:
    blocks = range(config.layers)
    return ["norm", *(f"blocks.{i}.{n}_norm" for i in blocks for n in ("attention", "ffn"))]


def can_pack(path: Path, dtype: str | None) -> bool:
    """Whether `plan` has a way to compute this checkpoint in this dtype without loss: float16 has
    none, and quantised weights are computed in dtypes of floats by others."""
    if path.is_file():
        plain = all(t.format in PLAIN for t in open_gguf(path).tensors.values())
        return dtype is None or (plain and dtype in DTYPES)
    stored = set(Weights(path).dtypes.values())
    return dtype in DTYPES and (dtype is not None or stored <= {"float32", "bfloat16"})


def plan(path: Path, config: ModelConfig, dtype: str | None) -> Plan:
    """How the checkpoint at `path` is packed.

    dtype: None keeps what the file holds; float32 and bfloat16 are for files of plain numbers,
    which q8_0 and q4_0 quantise as llama.cpp does.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: {dtype!r} is not one of {', '.join(map(str, DTYPES[1:]))}")
    types, read, norms, stamp = (_gguf if path.is_file() else _folder)(path, config)
    quantised = [name for name, kind in types.items() if kind not in PLAIN]
    if quantised and dtype is not None:
        raise UserError(
            f"{path}: its weights are quantised already; leave dtype {dtype} out, or take the "
            "PyTorch engine, which computes in it"
        )
    forms = _forms(types, dtype)
    parts: dict[str, PackedPart] = {}
    for name, (rows, columns) in matrix_shapes(config).items():
        stored, form = types[name], forms[name]
        kind = run_as(stored)
        pairs = config.head_dim if path.is_file() and f"{name}.weight".endswith(ROTATED) else 0
        if dtype in ("q8_0", "q4_0") and columns % 32 == 0:
            kind = dtype.upper()
            form = smollm3_kernels.form_of(kind)
            source = Source(kind, pairs, _quantising(read, name, kind))
        elif kind in PLAIN or (form == smollm3_kernels.form_of(kind) and kind == stored):
            source = Source(kind, pairs, _raw(read, name))
        elif form == smollm3_kernels.form_of(kind) and stored in RECODED:
            source = Source(kind, pairs, _recoding(read, name, stored))
        elif form in ("f32", "bf16"):
            source = Source("F32", pairs, _floats(read, name))
        else:
            source = Source("Q8_0", pairs, _quantising(read, name, "Q8_0"))
        together = name.removesuffix("up") + "gate" if name.endswith(".up") else name
        before = parts[together].sources if together in parts else ()
        parts[together] = PackedPart(form, rows, columns, (*before, source))
    described = [(n, p.form, [s.type for s in p.sources]) for n, p in parts.items()]
    made_of = json.dumps([stamp, smollm3_kernels.VERSION, described])
    key = hashlib.blake2b(made_of.encode(), digest_size=16).hexdigest()
    return Plan(parts, norms, key)


Reader = Callable[[str, bool], NDArray[Any]]  # name, as float32? -> raw bytes or values


def _raw(read: Reader, name: str) -> Callable[[], Bytes]:
    return lambda: read(name, False)


def _floats(read: Reader, name: str) -> Callable[[], Bytes]:
    return lambda: np.ascontiguousarray(read(name, True)).view(np.uint8).ravel()


def _recoding(read: Reader, name: str, kind: str) -> Callable[[], Bytes]:
    return lambda: recode(read(name, False), kind)


def _quantising(read: Reader, name: str, kind: str) -> Callable[[], Bytes]:
    return lambda: quantize(read(name, True), kind)


def _forms(types: dict[str, str], dtype: str | None) -> dict[str, str]:
    """The form of each matrix; where one that shares an input is plain, all of them are."""

    def group(name: str) -> str:
        return SHARED_INPUT.get(name.split(".", 2)[-1], name)

    plain = {group(n) for n, kind in types.items() if kind in PLAIN}
    half = {group(n) for n, kind in types.items() if kind in ("F16", "BF16")}
    forms = {}
    for name, kind in types.items():
        if group(name) not in plain:
            forms[name] = smollm3_kernels.form_of(run_as(kind))
        elif dtype == "float32" or (dtype is None and group(name) not in half):
            forms[name] = "f32"
        else:
            forms[name] = "bf16"
    for name, form in list(forms.items()):
        up = name.removesuffix("gate") + "up"
        if name.endswith(".gate") and form != forms[up]:
            forms[name] = forms[up] = "q8"  # read together, so alike; 8 bits hold whatever they are
    return forms


def _gguf(path: Path, config: ModelConfig) -> tuple[dict[str, str], Reader, Any, Any]:
    file = open_gguf(path)
    names = {name: gguf_name(f"{name}.weight") for name in matrix_shapes(config)}

    def read(name: str, floats: bool) -> NDArray[Any]:
        name = names[name]
        if floats:
            return file.read(name)
        raw = file.raw(name)
        _check_finite(path, name, raw.view(FORMATS[file.tensors[name].format].dtype))
        return raw

    for name, (rows, columns) in matrix_shapes(config).items():
        tensor = file.tensors.get(names[name])
        if tensor is None or tensor.shape != (rows, columns):
            raise file.fail(names[name], f"missing, or not of shape {[rows, columns]}")
    types = {name: file.tensors[names[name]].format for name in names}
    norms = {name: file.read(gguf_name(f"{name}.weight")) for name in norm_names(config)}
    return types, read, norms, file.identity()


def _check_finite(path: Path, name: str, records: NDArray[Any]) -> None:
    fields = records.dtype.names
    scales = [records[f] for f in ("d", "dmin", "m") if f in fields] if fields else []
    if fields is None and records.dtype.kind == "f":
        scales = [records]
    if not all(np.isfinite(values).all() for values in scales):
        raise UserError(f"{path}: {name}: holds NaN or infinity; fetch the file again")


def _folder(path: Path, config: ModelConfig) -> tuple[dict[str, str], Reader, Any, Any]:
    weights = Weights(path)

    def tensor(name: str) -> torch.Tensor:
        return weights[published_name(f"{name}.weight")]

    def read(name: str, floats: bool) -> NDArray[Any]:
        values = tensor(name).contiguous()
        if floats or values.dtype == torch.float64:
            values = values.float()
            return values.numpy() if floats else values.view(torch.uint8).numpy().ravel()
        return values.view(torch.uint8).numpy().ravel()

    types = {}
    for name, shape in matrix_shapes(config).items():
        published = published_name(f"{name}.weight")
        if weights.shapes.get(published) != shape:
            raise UserError(f"{path}: {published}: missing, or not of shape {list(shape)}")
        types[name] = TORCH_NAMES.get(weights.dtypes[published], "F32")
    norms = {name: tensor(name).float().numpy().copy() for name in norm_names(config)}
    files = sorted({*weights.files.values(), path / "config.json"})
    return types, read, norms, [_stamp(file) for file in files]


def _stamp(path: Path) -> tuple[str, int, int]:
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


# The cache


def load(plan: Plan, threads: int, use_cache: bool = True) -> dict[str, Bytes]:
    """The packed matrices by our names: mapped from the cache, into which they are packed first
    where it has none; in memory for small models and without `use_cache`."""
    total = sum(part.size for part in plan.parts.values())
    if not use_cache or total <= SMALL:
        return _packed_in_memory(plan, threads)
    file = cache_folder() / "packed" / f"{plan.key}.safetensors"
    found = _mapped(file, plan)
    if found is None:
        try:
            with _only_writer(file.parent):
                found = _mapped(file, plan)  # another has packed it meanwhile
                if found is None:
                    _write(file, plan, threads)
                    found = _mapped(file, plan)
        except (UserError, Timeout):  # no room, no permission: the cache is only for speed
            pass
        if found is None:
            return _packed_in_memory(plan, threads)
    with suppress(OSError):
        os.utime(file)  # the newest is the last to go
    return found


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    """Two who start at once would pack twice, and count each other's room. Raises UserError for a
    place that cannot be written, Timeout where somebody packs for minutes."""
    with disk_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=PACKING_SECONDS)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def aligned(size: int) -> Bytes:
    """Memory that begins at a cache line."""
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def _packed_in_memory(plan: Plan, threads: int) -> dict[str, Bytes]:
    packed = {}
    for name, part in plan.parts.items():
        packed[name] = aligned(part.size)
        part.pack(packed[name], threads)
    return packed


def _header(plan: Plan, checksum: int) -> bytes:
    """Length and JSON of a safetensors file, filled up with spaces to a cache line."""
    entries: dict[str, Any] = {"__metadata__": {"key": plan.key, "checksum": f"{checksum:08x}"}}
    at = 0
    for name, part in plan.parts.items():
        span = [at, at + part.size]
        entries[name] = {"dtype": "U8", "shape": [part.size], "data_offsets": span}
        at += part.size
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text


def _checksum(data: Bytes) -> int:
    """Of one page in every PROBE bytes and the last: finds pages that never reached the disk."""
    checksum = 0
    for at in (*range(0, len(data), PROBE), max(len(data) - 4096, 0)):
        checksum = zlib.crc32(data[at : at + 4096].tobytes(), checksum)
    return checksum


def _mapped(file: Path, plan: Plan) -> dict[str, Bytes] | None:
    """None for a file that is absent or not what it should be; that one is deleted."""
    blank = len(_header(plan, 0))
    size = blank + sum(part.size for part in plan.parts.values())
    try:
        stat = file.stat()
        if not is_own(stat):
            return None
        if stat.st_size == size:
            data = np.memmap(file, np.uint8, "r")
            if bytes(data[:blank]) == _header(plan, _checksum(data[blank:])):
                found, at = {}, blank
                for name, part in plan.parts.items():
                    found[name] = data[at : at + part.size]
                    at += part.size
                # Pages are there when the first step wants them, all of them.
                Thread(target=data[::PAGESIZE].max, daemon=True).start()
                return found
        file.unlink()
    except OSError:
        pass
    return None


def _write(file: Path, plan: Plan, threads: int) -> None:
    blank = len(_header(plan, 0))
    size = blank + sum(part.size for part in plan.parts.values())
    with disk_errors(file):
        sweep(file.parent)
        _make_room(file.parent, size)
        with own_file(file) as temporary:
            with temporary.open("wb") as f:
                reserve(f, size)
            data = np.memmap(temporary, np.uint8, "r+")
            at = blank
            for part in plan.parts.values():
                part.pack(data[at : at + part.size], threads)
                at += part.size
            header = _header(plan, _checksum(data[blank:]))
            data[:blank] = np.frombuffer(header, np.uint8)
            data.flush()
            del data
            fsync_file(temporary)
            temporary.replace(file)
            fsync_folder(file.parent)


def _make_room(folder: Path, size: int) -> None:
    """Delete the least recently used files until `size` more fit into CACHE_BYTES."""
    files = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):
            stat = path.stat()
            files.append((stat.st_mtime_ns, stat.st_size, path))
    used = sum(size for _, size, _ in files)
    used += sum(path.stat().st_size for path in folder.glob(f".*{PARTIAL}") if path.exists())
    for _, freed, path in sorted(files):
        if used + size <= CACHE_BYTES:
            return
        with suppress(OSError):  # gone already; or on Windows in use
            path.unlink()
            used -= freed
