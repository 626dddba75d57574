"""What this machine needs for a step of training and for preparing data: measured, in seconds.

In seconds of the processor and not of the clock, so that what else runs at the moment changes no
plan: they are those of an otherwise idle machine.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F

from smollm3 import data
from smollm3.chat import default_template
from smollm3.data import places, readers
from smollm3.data.places import Span
from smollm3.data.readers import Read
from smollm3.data.spec import FileSource, ProceduralSource, Source, StdlibSource
from smollm3.model import ModelConfig, Transformer, packed
from smollm3.tokenizer import Tokenizer

# A step of more FLOPs is not taken: its time follows from that of one product of its width.
LARGEST_FLOPS = 2e10
PRODUCT_TOKENS, PRODUCT_OUTPUTS = 32, 1024  # 0.4 GFLOP at a width of 2048
SAMPLE_DOCUMENTS = 96
SAMPLE_BYTES = 1_000_000  # of a source's rows, as JSON lines
PACKED = 3  # bytes of text in a byte of a compressed file, about
BYTES_PER_TOKEN = 4  # of a text, about


def step_seconds(
    config: ModelConfig, rows: int, context: int, *, bfloat16: bool, threads: int, document: int
) -> float:
    """Seconds of forward, backward and update over `rows` rows of `context` tokens on this CPU.

    threads: of the process, as in the run. document: tokens of one, for the attention masks.
    """
    flops = config.flops_per_token(context) * rows * context
    precision = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
    if flops > LARGEST_FLOPS:
        # By one thread: several wait for each other busily where others want the cores too.
        with _threads(1), precision:
            return flops * _seconds_per_flop(config) / threads
    with _threads(threads), precision:
        model = Transformer(config)
        model.init_weights(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
        ids_BT = torch.randint(config.vocab_size, (rows, context + 1))
        documents_BT = (torch.arange(context) // document).expand(rows, -1)

        def step() -> None:
            h_BTE = model.hidden(ids_BT[:, :-1], attend=packed(documents_BT))
            logits_BTV = model.logits(h_BTE)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return min(_processor_seconds(step) for _ in range(2)) / threads


def _seconds_per_flop(config: ModelConfig) -> float:
    """Of the processor, for the product that most of a large model's FLOPs are: a part of a
    feed-forward matrix, forward and backward (6 FLOPs a weight and token)."""
    layer = torch.nn.Linear(config.hidden, min(config.ffn, PRODUCT_OUTPUTS), bias=False)
    x_TE = torch.randn(PRODUCT_TOKENS, config.hidden, requires_grad=True)

    def product() -> None:
        torch.autograd.backward(layer(x_TE).float().sum())

    product()
    seconds = min(_processor_seconds(product) for _ in range(2))
    return seconds / (6 * layer.weight.numel() * PRODUCT_TOKENS)


def _processor_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def slowdown(processes: int, threads: int) -> float:
    """How many times a process is slower because all of them together want more cores than there
    are."""
    return max(1.0, processes * threads / (os.cpu_count() or 1))


def preparation_seconds(
    name: str, source: Source, seed: int, tokenizer: Tokenizer | None = None
) -> float | None:
    """Seconds to prepare a source that is made here or lies here, from a sample of it; None for all
    others, and where documents are filtered. tokenizer: the run's, where it is known."""
    chosen = tokenizer or _tokenizer()
    match source:
        case ProceduralSource(documents=of):
            size = "documents"
        case StdlibSource(rows=int(of)):
            size = "rows"
        case FileSource(steps=[], blobs=None):
            return _file_seconds(name, source, seed, chosen)
        case _:
            return None

    # What one document takes, apart from what a source takes whatever its size.
    sample = min(SAMPLE_DOCUMENTS, of)
    one, many = (
        _prepared(name, source.model_copy(update={size: n}), seed, chosen) for n in (1, sample)
    )
    return one + max(many - one, 0.0) / max(sample - 1, 1) * (of - 1)


def _prepared(name: str, source: Source, seed: int, tokenizer: Tokenizer) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return _processor_seconds(lambda: data.prepare(name, source, tokenizer, Path(folder), seed))


def _file_seconds(name: str, source: FileSource, seed: int, tokenizer: Tokenizer) -> float:
    """From the first rows, which are prepared as JSON lines."""
    files = places.find(source.files)
    of = float(sum(size * (PACKED if _is_packed(file) else 1) for file, size in files))
    reads = (read for n, (file, _) in enumerate(files) for read in _rows(Span(file, n), source))
    lines, size = [], 0
    for row in (read.row for read in reads if read.fault is None):
        lines.append(json.dumps(row, default=str, ensure_ascii=False) + "\n")
        size += len(lines[-1].encode())
        if size >= SAMPLE_BYTES:
            break
    if not lines:
        return 0.0
    if source.tokens is not None:
        of = min(of, source.tokens * BYTES_PER_TOKEN)

    def seconds(part: list[str]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "sample.jsonl"
            file.write_text("".join(part), encoding="utf-8", errors="surrogatepass")
            changed = {"kind": "jsonl", "files": [str(file)], "rows": None, "tokens": None}
            return _prepared(name, source.model_copy(update=changed), seed, tokenizer)

    first = len(lines[0].encode())
    one, many = seconds(lines[:1]), seconds(lines)
    return one + max(many - one, 0.0) / max(size - first, 1) * max(of - first, 0.0)


def _rows(span: Span, source: FileSource) -> Iterator[Read]:
    return readers.rows(span, None, source.read_as)


def _is_packed(file: str) -> bool:
    is_compressed = Path(file.lower()).suffix in places.COMPRESSED
    return is_compressed or places.named_kind(file) == "parquet"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _tokenizer() -> Tokenizer:
    """Of bytes and a few words: encoding takes about as long with any vocabulary."""
    return Tokenizer.train(["the sum of a and b is"] * 4, 320, default_template())
