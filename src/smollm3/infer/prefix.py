"""Prompts' keys and values on disk, so that a long prompt starts at once the next time.

A safetensors file: `ids` int32 [T], `blocks` uint8 [T / BLOCK, bytes of a block], and in the header
what they are of. Blocks go through memory a few at a time, and others are served meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from smollm3.errors import UserError
from smollm3.files import disk_errors, own_file
from smollm3.infer.adapters import LoadedAdapter
from smollm3.infer.backends import BLOCK
from smollm3.infer.blocks import BlockPool, block_keys, root
from smollm3.infer.jobs import Prefill
from smollm3.infer.worker import Worker

FORMAT = "smollm3 prefix 1"
AT_ONCE = 64 << 20  # bytes


def save(
    worker: Worker,
    ids: list[int],
    cache_salt: str,
    adapter: LoadedAdapter | None,
    path: Path,
    origin: str,
) -> int:
    """Returns the number of tokens written. origin: what else keys and values depend on."""
    ids = ids[: len(ids) // BLOCK * BLOCK]
    if not ids:
        raise UserError(f"a prefix of fewer than {BLOCK} tokens is not worth saving")
    pool = worker.blocks
    job = Prefill(ids, cache_salt, adapter, pool.share)
    worker.add([job])
    blocks = job.result.result()
    try:
        _write(worker, path, ids, blocks, {"format": FORMAT, "origin": origin, "salt": cache_salt})
    finally:
        worker.ask(lambda: pool.release(blocks)).result()
    return len(ids)


def load(
    worker: Worker, adapter: LoadedAdapter | None, path: Path, origin: str, entries: int
) -> list[int]:
    """Returns the ids. entries: of the vocabulary."""
    pool = worker.blocks
    try:
        with safe_open(path, framework="np") as file:
            ids, cache_salt = _checked(file, path, origin, worker.backend.block_bytes, entries)
            blocks = worker.ask(lambda: _take(pool, len(ids) // BLOCK)).result()
            keys = block_keys(ids, root(cache_salt, adapter.key if adapter else ""))
            try:
                data = file.get_slice("blocks")
                for part in _parts(len(blocks), worker.backend.block_bytes):
                    _import(worker, blocks[part], data[part])
                worker.ask(lambda: _publish(pool, blocks, keys)).result()
            finally:
                worker.ask(lambda: pool.release(blocks)).result()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path}: not a whole saved prefix ({e}); save it again") from None
    return ids


def _write(
    worker: Worker, path: Path, ids: list[int], blocks: list[int], metadata: dict[str, str]
) -> None:
    size = worker.backend.block_bytes
    after = 4 * len(ids)
    header: dict[str, Any] = {
        "__metadata__": metadata,
        "ids": {"dtype": "I32", "shape": [len(ids)], "data_offsets": [0, after]},
        "blocks": {
            "dtype": "U8",
            "shape": [len(blocks), size],
            "data_offsets": [after, after + len(blocks) * size],
        },
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with own_file(path) as temporary:
            with temporary.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.write(np.array(ids, "<i4").tobytes())
                for part in _parts(len(blocks), size):
                    file.write(_export(worker, blocks[part]))
            temporary.replace(path)


def _export(worker: Worker, blocks: list[int]) -> bytes:
    return worker.ask(lambda: worker.backend.export_blocks(blocks)).result().tobytes()


def _import(worker: Worker, blocks: list[int], data: Any) -> None:
    worker.ask(lambda: worker.backend.import_blocks(blocks, data)).result()


def _checked(
    file: Any, path: Path, origin: str, block_bytes: int, entries: int
) -> tuple[list[int], str]:
    """The ids and the cache salt of a file that fits."""
    metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: not a saved prefix of this version; save it again")
    if metadata.get("origin") != origin:
        raise UserError(
            f"{path}: saved with another model, dtype, context, engine or type of cache; "
            "save it again with this one"
        )
    ids_T = file.get_tensor("ids")
    ids: list[int] = ids_T.tolist()
    whole = ids_T.ndim == 1 and ids and not len(ids) % BLOCK and 0 <= min(ids) <= max(ids) < entries
    shape = list(file.get_slice("blocks").get_shape())
    if not whole or shape != [len(ids) // BLOCK, block_bytes]:
        raise UserError(f"{path}: ids and blocks do not fit each other; save it again")
    return ids, metadata.get("salt", "")


def _take(pool: BlockPool, count: int) -> list[int]:
    """Blocks of one's own. Only what nobody uses: no request gives way."""
    if count > pool.available:
        raise UserError(
            f"the prefix needs {count} blocks of the cache, of whose {pool.count} now "
            f"{pool.available} are free; give the cache more memory, or wait"
        )
    blocks = [pool.take() for _ in range(count)]
    return [block for block in blocks if block is not None]


def _publish(pool: BlockPool, blocks: list[int], keys: list[bytes]) -> None:
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, [key])


def _parts(count: int, size: int) -> Iterator[slice]:
    step = max(1, AT_ONCE // size)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))
