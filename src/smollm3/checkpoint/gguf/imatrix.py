"""Importance matrices: how large the inputs of each matrix are, column by column.

A column of weights whose input is large on average changes the answer more when it is rounded. The
second moments of the inputs, measured on text, are the diagonal of the Hessian of the squared error
of a matrix's output, and weigh the errors of quantisation. Files are those of llama.cpp's
llama-imatrix: GGUF, and the older `.dat`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from smollm3.checkpoint.gguf.names import gguf_name
from smollm3.checkpoint.gguf.quants import Floats
from smollm3.checkpoint.gguf.reader import MAGIC, Gguf
from smollm3.errors import UserError
from smollm3.files import new_file
from smollm3.model import Transformer

# Mean square of each input column, by GGUF's name of the matrix.
Importance = Mapping[str, Floats]
SUMS, COUNTS = ".in_sum2", ".counts"
DAT_BYTES = 1 << 30  # an older file that is larger is not read; that of a 405B model has 0.3 GB
NAME_BYTES, COLUMNS = 256, 1 << 20


@torch.no_grad()
def measure(model: Transformer, rows: Iterable[Sequence[int]]) -> tuple[dict[str, Floats], int]:
    """Sums of squares of the inputs of every matrix over all tokens of `rows`, by GGUF's names, and
    the number of tokens.

    The matrix that makes the logits is among them; of a tied model it is named after the embedding.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sums[name] += inputs[0].float().square().sum((0, 1), dtype=torch.float64)

    hooks, tokens = [], 0
    device = model.embed.weight.device
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            ours = "embed" if model.config.tied and name == "unembed" else name
            sums[gguf_name(ours)] = torch.zeros(
                module.in_features, dtype=torch.float64, device=device
            )
            hooks.append(module.register_forward_pre_hook(partial(add, gguf_name(ours))))
    try:
        for row in rows:
            model(torch.tensor([row], device=device))
            tokens += len(row)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: x.float().cpu().numpy() for name, x in sums.items()}, tokens


def write(
    path: Path, sums: Mapping[str, Floats], tokens: int, texts: Iterable[str], chunk: int
) -> None:
    """The file of `sums` over `tokens` tokens, read `chunk` at a time from `texts`; it appears
    whole or not at all."""
    import gguf

    with new_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "imatrix")
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", list(texts))
        writer.add_uint32("imatrix.chunk_count", tokens // chunk)
        writer.add_uint32("imatrix.chunk_size", chunk)
        for name, values in sums.items():
            writer.add_tensor(name + SUMS, values[None])
            writer.add_tensor(name + COUNTS, np.array([[tokens]], np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read(path: str | Path) -> dict[str, Floats]:
    """The mean square of each input column, by GGUF's name of the matrix. Raises UserError for a
    file that is no importance matrix, or holds what cannot be one."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from None
    found = _of_gguf(Gguf(path)) if is_gguf else _of_dat(path)
    if not found:
        raise UserError(f"{path}: holds no importance matrix; make one with `smollm3 imatrix`")
    for name, values in found.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise UserError(f"{path}: {name}: mean squares must be finite numbers of at least 0")
    return found


def _of_gguf(file: Gguf) -> dict[str, Floats]:
    found = {}
    for key in file.tensors:
        name = key.removesuffix(SUMS)
        if name == key:
            continue
        if name + COUNTS not in file.tensors:
            raise file.fail(name + COUNTS, "missing")
        # Several rows: the experts of a mixture, which no model here has.
        sums, counts = file.read(key), file.read(name + COUNTS)
        if sums.shape[:-1] not in ((), (1,)) or counts.size != 1 or not counts.item() > 0:
            raise file.fail(key, "not one row of sums over a number of tokens above 0")
        found[name] = sums.reshape(-1) / np.float32(counts.item())
    return found


def _of_dat(path: Path) -> dict[str, Floats]:
    """The older form: a number of entries, of each the length of its name, the name, how often it
    was added to, the number of columns, and float32 means times that."""
    if path.stat().st_size > DAT_BYTES:
        raise UserError(f"{path}: more than {DAT_BYTES >> 30} GiB; this is no importance matrix")
    data, at = path.read_bytes(), 0

    def take(size: int) -> bytes:
        nonlocal at
        at += size
        if size < 0 or at > len(data):
            raise UserError(f"{path}: not an importance matrix, or cut short at byte {at - size}")
        return data[at - size : at]

    def number(most: int) -> int:
        value = int(struct.unpack("<i", take(4))[0])
        if not 0 < value <= most:
            raise UserError(f"{path}: not an importance matrix: {value} at byte {at - 4}")
        return value

    found: dict[str, Floats] = {}
    for _ in range(number(1 << 20)):
        name = take(number(NAME_BYTES)).decode("utf-8", "replace")
        calls, columns = number(1 << 30), number(COLUMNS)
        found[name] = np.frombuffer(take(4 * columns), np.float32) / np.float32(calls)
    return found
