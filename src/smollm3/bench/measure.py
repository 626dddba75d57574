"""`smollm3 bench`: how fast a model runs here, and how far that is from what the machine can do."""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from smollm3 import units
from smollm3.errors import UserError
from smollm3.infer.engine import Engine
from smollm3.infer.generation import Generation
from smollm3.infer.params import SamplingParams
from smollm3.machine import machine
from smollm3.portable import peak_memory

PROMPT = 512  # tokens, or half the context where that is less
STREAMS = 8
# Of a plain read: more than caches hold, no more than a machine can spare.
LEAST_READ, MOST_READ = 1 << 26, 1 << 30
PRODUCT = 2048  # rows and columns of the product that prefill is compared with


@dataclass(frozen=True)
class BenchRow:
    """One measurement: the median of `values`, in tokens a second unless `unit` says otherwise.

    share: of `bound`, which is what the machine can do.
    """

    name: str
    values: list[float]
    unit: str = "tok/s"
    share: float | None = None
    bound: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Bench:
    """Measures an engine. weights: bytes of the model's files; tokens: of each decoding; told:
    called with what is measured next."""

    def __init__(
        self,
        engine: Engine,
        weights: int,
        long: int,
        repeat: int,
        tokens: int,
        told: Callable[[str], None] = lambda name: None,
    ) -> None:
        context = engine.config.context
        if long + tokens >= context:
            raise UserError(
                f"--long: {long} tokens and {tokens} new ones do not fit the context of {context}"
            )
        self.engine = engine
        self.long = long
        self.repeat = repeat
        self.tokens = tokens
        self.told = told
        self.prompt = min(PROMPT, (context - tokens) // 2)
        self._random = random.Random(0)
        config = engine.config
        used = config.parameters - (0 if config.tied else config.vocab_size * config.hidden)
        self.bytes_per_token = weights * used // config.parameters

    def rows(self) -> list[BenchRow]:
        self._submit(8, 2).result()  # pages, threads and kernels are there
        prefill = self._prefill_row()
        name = f"decode, {STREAMS} streams together"
        short = self.prompt // 8
        streams = BenchRow(name, self._repeated(name, lambda: self._decode([short] * STREAMS)))
        long = list(self._long_rows())
        # Before the bounds, which take memory of their own.
        peak = _peak_memory(self.engine)
        memory = [] if peak is None else [BenchRow("memory, at most", [peak], "bytes")]
        return [self._bounded(prefill), self._decode_row(), streams, *long, *memory]

    def _prefill_row(self) -> BenchRow:
        name = f"prefill of {self.prompt} tokens"
        return BenchRow(name, self._repeated(name, lambda: self._prefill(self.prompt)))

    def _bounded(self, prefill: BenchRow) -> BenchRow:
        product = statistics.median(_product(self.engine) for _ in range(self.repeat))
        config = self.engine.config
        # Only the last token of a prompt meets the vocabulary.
        vocabulary = 2 * config.vocab_size * config.hidden
        flops = config.flops_per_token(self.prompt) / 3 - vocabulary
        bound = f"{product / 1e9:,.0f} GFLOP/s, torch's best product"
        return replace(prefill, share=prefill.median * flops / product, bound=bound)

    def _decode_row(self) -> BenchRow:
        """Interleaved with plain reads: neighbours on the machine slow both."""
        name = "decode, one stream"
        read = _plain_read(self.engine, min(max(self.bytes_per_token, LEAST_READ), MOST_READ))
        speed, reads = [], []
        self.told(name)
        for _ in range(self.repeat):
            speed.append(self._decode([self.prompt // 8]))
            reads.append(read())
        rate = statistics.median(reads)
        share = statistics.median(speed) * self.bytes_per_token / rate
        bound = f"{rate / 1e9:.1f} GB/s, a plain read; {units.size(self.bytes_per_token)} a token"
        return BenchRow(name, speed, share=share, bound=bound)

    def _long_rows(self) -> Iterator[BenchRow]:
        """The prompt is read once; decoding finds it among the prefixes."""
        ids = self._ids(self.long)
        name = f"prefill of {self.long} tokens"
        self.told(name)
        yield BenchRow(name, [self.long / _timed(self.engine.submit(ids, self._params(1)).result)])

        def decode() -> float:
            return _rate([self.engine.submit(ids, self._params(self.tokens + 1))])

        name = f"decode behind {self.long} tokens"
        yield BenchRow(name, self._repeated(name, decode))

    def _prefill(self, count: int) -> float:
        return count / _timed(self._submit(count, 1).result)

    def _decode(self, prompts: Sequence[int]) -> float:
        return _rate([self._submit(count, self.tokens + 1) for count in prompts])

    def _submit(self, count: int, tokens: int) -> Generation:
        """New ids each time: nothing of them is found among the prefixes."""
        return self.engine.submit(self._ids(count), self._params(tokens))

    def _ids(self, count: int) -> list[int]:
        return self._random.choices(range(self.engine.tokenizer.vocab_size), k=max(1, count))

    def _params(self, tokens: int) -> SamplingParams:
        return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

    def _repeated(self, name: str, work: Callable[[], float]) -> list[float]:
        self.told(name)
        return [work() for _ in range(self.repeat)]


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _rate(generations: Sequence[Generation]) -> float:
    """Tokens a second of all together, from when each has its first until one has its last; where
    the first is done before the last begins, from the first token of all to the last."""
    times: list[list[float]] = [[] for _ in generations]

    def read(n: int) -> None:
        times[n] += [time.perf_counter() for _ in generations[n]]

    readers = [threading.Thread(target=read, args=(n,)) for n in range(len(generations))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    if begin >= end:
        begin, end = min(t[0] for t in times), max(t[-1] for t in times)
    return sum(begin < at <= end for t in times for at in t) / (end - begin)


def _peak_memory(engine: Engine) -> float | None:
    """Bytes: of the GPU where one is used, else the process's largest resident set, which counts
    weights that are mapped from a file."""
    if _device(engine).type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    peak = peak_memory()
    return None if peak is None else float(peak)


def _device(engine: Engine) -> torch.device:
    model = getattr(engine.backend, "model", None)  # the kernels have none, and only the CPU
    return torch.device("cpu") if model is None else next(model.parameters()).device


def _plain_read(engine: Engine, count: int) -> Callable[[], float]:
    """Measures bytes a second of reading `count` bytes, by all threads."""
    device = _device(engine)
    if device.type != "cpu":
        words_N = torch.ones(count // 8, dtype=torch.int64, device=device)
        return lambda: count / _timed(lambda: words_N.sum().item())
    threads = getattr(engine.backend, "threads", torch.get_num_threads())
    parts = np.array_split(np.ones(count // 8, np.int64), threads)
    pool = ThreadPoolExecutor(threads)
    return lambda: count / _timed(lambda: list(pool.map(np.bitwise_or.reduce, parts)))


def _product(engine: Engine) -> float:
    """FLOP/s of the faster of a float32 and a bfloat16 product."""
    device = _device(engine)
    best = 0.0
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(PRODUCT, PRODUCT, dtype=dtype, device=device)
        _multiply(a)
        best = max(best, 2 * PRODUCT**3 / _timed(partial(_multiply, a)))
    return best


def _multiply(a: torch.Tensor) -> None:
    (a @ a)[0, 0].item()  # waits for a GPU


def start_seconds(model: str, options: Sequence[str]) -> float:
    """Seconds from the start of a process to its first token."""
    words = ["generate", model, "x", "--max-tokens", "1", *options]
    command = [sys.executable, "-m", "smollm3", *words]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()  # a closed pipe would be an error to it
    if process.returncode:
        raise UserError(f"smollm3 {' '.join(words)}: failed, see above")
    return seconds


def bytes_of(path: Path) -> int:
    """Size of a model's weights on the disk."""
    files = [path] if path.is_file() else list(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)


def bench_on_console(
    load: Callable[[], Engine],
    make: Callable[[Engine, Callable[[str], None]], Bench],
    start: Callable[[], float],
    title: str,
) -> dict[str, Any]:
    """Measure and show a table; returns the figures with the machine's.

    start: measures a start, when all that is kept on the disk is there and memory is free again.
    """
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    with console.status("") as status:

        def told(name: str) -> None:
            status.update(name)
            if not console.is_terminal:
                console.print(f"> {name}", highlight=False)

        told("loading")
        with load() as engine:
            rows = make(engine, told).rows()
            backend = engine.backend
            about = {
                "model": title,
                "engine": backend.name,
                "kv_cache_dtype": backend.kv_cache_dtype,
            }
        del engine, backend
        told("start")
        first = [
            BenchRow("start of a process to its first token", [start()], "s"),
            BenchRow("of that, loading the model", [_timed(lambda: load().close())], "s"),
        ]
    rows = [*first, *rows]
    console.print(_table(title, rows))
    figures = [{**asdict(row), "median": row.median} for row in rows]
    return {**about, "date": time.strftime("%Y-%m-%d"), "rows": figures, "machine": machine()}


def _table(title: str, rows: Sequence[BenchRow]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("median", justify="right")
    table.add_column("range", justify="right")
    table.add_column("of what is there")
    for row in rows:
        low, high = min(row.values), max(row.values)
        span = f"{_number(low)}-{_number(high)}" if len(row.values) > 1 else ""
        share = "" if row.share is None else f"{row.share:.0%} of {row.bound}"
        table.add_row(row.name, _shown(row), span, share)
    return table


def _shown(row: BenchRow) -> str:
    match row.unit:
        case "bytes":
            return units.size(row.median)
        case unit:
            return f"{_number(row.median)} {unit}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
