"""What one GPU shows about training in ten minutes: a table, and an early stop with what is there.

Random weights of SmolLM3-3B's shape and random tokens; the model is built, sharded over one rank
(NCCL), compiled and stepped by the same code that trains. On a machine without a GPU
`--shape tiny` runs the arithmetic.

    python benchmarks/gpu_check.py [--minutes 10]      writes benchmarks/results/gpu_check.json
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smollm3.data.batch import Batch
from smollm3.infer.backends import BLOCK, StepBatch
from smollm3.infer.backends.torch import TorchBackend
from smollm3.machine import machine
from smollm3.model import ModelConfig, Transformer, nope_pattern, packed
from smollm3.train import ProcessGroup
from smollm3.train import optimizer as optimizers
from smollm3.train.attention import Segments, segmented
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS, language_modelling
from smollm3.train.memory import Memory, fits, training_memory
from smollm3.train.parallel import Sharded
from smollm3.train.replicated import Replicated
from smollm3.train.spec import TrainStage
from smollm3.train.training_checkpoint import Description, Progress

H100_FLOPS = 989e12  # dense bfloat16, H100 SXM and H200 alike


@dataclass(frozen=True)
class Shape:
    """What is trained. long: tokens of the one long row; square: a side of the matrices whose
    product is timed; copied: bytes that are."""

    config: ModelConfig
    context: int
    long: int
    square: int
    copied: int


SHAPES = {
    "3b": Shape(
        ModelConfig(128_256, 36, 2048, 16, 4, 128, 11_008, nope_pattern(36, 4), 5e6, 65_536),
        context=4096, long=65_536, square=8192, copied=4 << 30,
    ),
    "tiny": Shape(
        ModelConfig(256, 2, 32, 4, 2, 8, 64, nope_pattern(2, 2), 1e4, 64),
        context=32, long=64, square=64, copied=1 << 20,
    ),
}  # fmt: skip


def stage(context: int, rows: int, **more: Any) -> TrainStage:
    settings = {
        "kind": "train",
        "mixture": {"random": 1},
        "context": context,
        "batch": rows,
        "steps": 1,
        "lr": {"peak": 1e-4},
        "precision": "bfloat16",
        "compile": torch.cuda.is_available(),
    }
    return TrainStage.model_validate(settings | more)


def planned_memory(config: ModelConfig, spec: TrainStage) -> Memory:
    return training_memory(config, spec, Layout(), on_gpus=True, chunk=LOGITS)


def documents(rows: int, width: int, seed: int) -> torch.Tensor:
    """[rows, width] document numbers: a few to dozens of cuts, another number in each batch."""
    generator = torch.Generator().manual_seed(seed)
    cuts = torch.rand(rows, width, generator=generator) < (2 + seed % 30) / width
    return cuts.long().cumsum(1)


def batch(shape: Shape, rows: int, width: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(shape.config.vocab_size, (rows, width + 1), generator=generator)
    return Batch(
        tokens[:, :-1], tokens[:, 1:], torch.ones(rows, width), documents(rows, width, seed), {}
    )


def start(name: str, whole: tuple[int, ...], part: tuple[slice, ...]) -> torch.Tensor:
    """Random weights, made where they are wanted."""
    if len(whole) == 1:
        return torch.ones(whole)[part]
    return (torch.randn(whole, device=ProcessGroup.single().device) / whole[1] ** 0.5)[part]


class Bench:
    """The model of a shape on one rank, and its steps."""

    def __init__(self, shape: Shape, spec: TrainStage) -> None:
        group = ProcessGroup.single()
        self.parallel = (
            Sharded(group, spec, Layout()) if spec.adapter is None else Replicated(group, spec)
        )
        config = replace(shape.config, context=spec.context)
        torch.manual_seed(0)
        self.model = self.parallel.model(config, start)
        self.forward = self.parallel.forward(self.model)
        self.optimizer = optimizers.adamw(self.model, spec.optimizer)
        self.gradients = self.parallel.gradients(self.model, 3)
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-4

    def step(self, part: Batch) -> float:
        """One whole step; seconds, with the device at rest at both ends."""
        synchronize()
        began = time.perf_counter()
        self.gradients.zero()
        with self.parallel.losses(), self.forward.precision():
            own = self.forward.mine(part)
            sums = language_modelling(self.model, self.forward(own), own)
        torch.autograd.backward(sums.total)
        self.norm, *_ = self.gradients.sum()
        self.gradients.scale(min(1.0, 1 / (self.norm + 1e-6)) / sums.weight)
        self.optimizer.step()
        synchronize()
        return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def forget_peak() -> None:
    gc.collect()  # the shards of the model before refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def median(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 2]


# -- the rows of the table; each yields (what, value, unit) ---------------------------------------

Rows = Iterator[tuple[str, float, str]]


def rates(shape: Shape) -> Rows:
    """What the card itself can do."""
    device = ProcessGroup.single().device
    a = torch.randn(shape.square, shape.square, device=device, dtype=torch.bfloat16)
    best = min(_timed(lambda: a @ a) for _ in range(10))
    yield "matrix product, bfloat16", 2 * shape.square**3 / best / 1e12, "TFLOPS"
    source = torch.empty(shape.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_timed(lambda: target.copy_(source)) for _ in range(10))
    yield "copy, read and written", 2 * shape.copied / best / 1e9, "GB/s"


def _timed(work: Callable[[], Any]) -> float:
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def attention(shape: Shape) -> Rows:
    """Packed documents by the kernel in use, against float32 and one call for each document."""
    device, config = ProcessGroup.single().device, shape.config
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    ids_BT = documents(2, shape.context, 7)
    q, k, v = (
        torch.randn(2, shape.context, heads, config.head_dim, device=device)
        for heads in (config.heads, config.kv_heads, config.kv_heads)
    )
    exact = packed(ids_BT.to(device))(0, q, k, v)
    attend = segmented(Segments.of(ids_BT).to(device), shape.context)
    found = attend(0, q.to(half), k.to(half), v.to(half))
    error = (found.float() - exact).norm() / exact.norm()
    yield "attention, relative error to float32", float(error), ""


def training(shape: Shape) -> Rows:
    """Tokens a second, MFU, recompilations and memory of steps with changing documents."""
    norms = []
    for precision in ("bfloat16", "float8"):
        forget_peak()
        rows = most_rows(shape, precision)
        spec = stage(shape.context, rows, precision=precision)
        bench = Bench(shape, spec)
        counters = torch._dynamo.utils.counters["stats"]
        seconds, compiled = [], 0
        for k in range(12):
            seconds.append(bench.step(batch(shape, rows, shape.context, k)))
            if k == 0:
                norms.append(bench.norm)
            if k == 2:
                compiled = counters["unique_graphs"]
        rate = rows * shape.context / median(seconds[3:])
        yield f"{precision}, {rows} x {shape.context} tokens", rate, "tokens/s"
        flops = bench.model.config.flops_per_token(shape.context)
        yield f"{precision}, MFU (of 989 TFLOPS)", 100 * rate * flops / H100_FLOPS, "%"
        again = counters["unique_graphs"] - compiled
        yield f"{precision}, graphs compiled after step 3", again, ""
        yield from memory(precision, shape.config, spec)
        if precision == "bfloat16":
            yield from saving(bench, shape, rows)
        del bench
    yield "float8, gradient norm of step 1 to bfloat16's", norms[1] / norms[0], ""


def most_rows(shape: Shape, precision: str) -> int:
    """Rows at once for which the planner finds room on this card."""
    if not torch.cuda.is_available():
        return 2
    card = torch.cuda.get_device_properties(0).total_memory
    plans = ((n, stage(shape.context, n, precision=precision)) for n in (4, 2, 1))
    return next(n for n, spec in plans if fits(planned_memory(shape.config, spec), card))


def memory(what: str, config: ModelConfig, spec: TrainStage) -> Rows:
    yield f"{what}, peak memory", peak_memory() / 1e9, "GB"
    yield f"{what}, the planner says", planned_memory(config, spec).total / 1e9, "GB"


def saving(bench: Bench, shape: Shape, rows: int) -> Rows:
    """How long an asynchronous checkpoint stops training: of one of eight ranks' share of the
    states, the second time, when its place in the host's memory is there."""
    states: dict[str, torch.Tensor] = {f"model/{n}": p for n, p in bench.model.named_parameters()}
    states |= optimizers.tensors_of(bench.optimizer, bench.model)
    tensors = dict(itertools.islice(states.items(), 0, None, 8))
    size = sum(t.numel() * t.itemsize for t in tensors.values()) / 1e9
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = bench.parallel.checkpoints(Path(folder), None)
        for step in (1, 2):
            description = Description(Progress(step), "", {})
            checkpoints.finish()
            stall = _timed(lambda d=description: checkpoints.save(d, tensors))  # type: ignore[misc]
        yield f"asynchronous checkpoint of {size:.1f} GB stops training for", stall, "s"
        during = bench.step(batch(shape, rows, shape.context, 99))
        yield "a step while it is written", during, "s"
        yield "and until it is on the disk", _timed(checkpoints.finish), "s"


def long_row(shape: Shape) -> Rows:
    """One row of 65,536 tokens with full activation checkpointing."""
    forget_peak()
    spec = stage(shape.long, 1, recompute="full")
    bench = Bench(shape, spec)
    seconds = [bench.step(batch(shape, 1, shape.long, k)) for k in range(3)]
    yield f"1 x {shape.long} tokens, recompute full", shape.long / min(seconds[1:]), "tokens/s"
    yield from memory("long row", shape.config, spec)


def adapters(shape: Shape) -> Rows:
    """LoRA on a base in bfloat16 and in 4 bits, one row at once."""
    for name, base in (("LoRA", "own"), ("QLoRA", "nf4")):
        forget_peak()
        spec = stage(
            shape.context, 1, recompute="full", compile=False, adapter={"base": base, "rank": 16}
        )
        bench = Bench(shape, spec)
        seconds = [bench.step(batch(shape, 1, shape.context, k)) for k in range(3)]
        yield f"{name}, 1 x {shape.context} tokens", shape.context / min(seconds[1:]), "tokens/s"
        yield from memory(name, shape.config, spec)
        del bench


def decode(shape: Shape) -> Rows:
    """Single tokens of one sequence in bfloat16; each reads all weights once."""
    device = ProcessGroup.single().device
    model = Transformer(shape.config).to(device, torch.bfloat16)
    model.requires_grad_(False)
    for weight in model.parameters():
        weight.normal_(std=0.02)
    backend = TorchBackend(model, blocks=4)
    tables_SB = np.arange(4, dtype=np.int32)[None]

    def step(position: int) -> None:
        one = np.zeros(1, np.int32)
        backend.step(
            StepBatch(one, one + position, np.array([0, 1], np.int32), tables_SB, one)
        ).argmax().item()

    for position in range(4):
        step(position)
    seconds = [_timed(lambda p=p: step(p)) for p in range(4, 4 * BLOCK)]  # type: ignore[misc]
    yield "decode, 1 stream", 1 / median(seconds), "tokens/s"
    read = sum(p.numel() * p.itemsize for p in model.parameters())
    yield "decode reads", read / median(seconds) / 1e9, "GB/s"


CHECKS = (rates, attention, training, decode, adapters, long_row)


def run(shape: Shape, minutes: float) -> list[dict[str, Any]]:
    """The rows that there was time for; a check that fails is a row that says so."""
    ends = time.monotonic() + 60 * minutes
    rows: list[dict[str, Any]] = []
    for check in CHECKS:
        if time.monotonic() > ends:
            rows.append({"what": f"{check.__name__}: no time left", "value": None, "unit": ""})
            continue
        try:
            for what, value, unit in check(shape):
                rows.append({"what": what, "value": value, "unit": unit})
                print(f"{what:<45} {value:>14,.4g} {unit}", flush=True)
        except Exception as e:  # the next check can still tell something
            said = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
            rows.append({"what": f"{check.__name__} failed", "value": None, "unit": said})
            print(f"{check.__name__} failed: {said}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="3b")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results/gpu_check.json"
    )
    arguments = parser.parse_args()
    if arguments.shape == "3b" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that PyTorch can use; --shape tiny runs on a CPU")
    rows = run(SHAPES[arguments.shape], arguments.minutes)
    result = {"date": datetime.date.today().isoformat(), "machine": machine(), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
