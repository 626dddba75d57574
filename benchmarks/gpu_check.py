"""What one GPU shows about training in ten minutes: a table, and an early stop with what is there.

Random weights of SmolLM3-3B's shape and random tokens; the model is built, sharded over one rank
(NCCL), compiled and stepped by the same code that trains. On a machine without a GPU
`--shape tiny` runs the arithmetic.

    python benchmarks/gpu_check.py [--minutes 10]      writes benchmarks/results/gpu_check.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from smollm3.data.batch import Batch
from smollm3.machine import machine
from smollm3.model import ModelConfig, initial_weight, nope_pattern, packed
from smollm3.train import ProcessGroup
from smollm3.train import optimizer as optimizers
from smollm3.train.attention import Segments, segmented
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS, language_modelling
from smollm3.train.memory import training_memory
from smollm3.train.parallel import Sharded
from smollm3.train.spec import TrainStage
from smollm3.train.training_checkpoint import Description, Progress

H100_FLOPS = 989e12  # dense bfloat16, H100 SXM and H200 alike


@dataclass(frozen=True)
class Shape:
    """What is trained. rows: of `context` tokens at once. long: tokens of the one long row."""

    config: ModelConfig
    context: int
    rows: int
    long: int
    square: int
    copied: int


SHAPES = {
    "3b": Shape(
        ModelConfig(128_256, 36, 2048, 16, 4, 128, 11_008, nope_pattern(36, 4), 5e6, 65_536),
        context=4096, rows=2, long=65_536, square=8192, copied=4 << 30,
    ),
    "tiny": Shape(
        ModelConfig(256, 2, 32, 4, 2, 8, 64, nope_pattern(2, 2), 1e4, 64),
        context=32, rows=2, long=64, square=64, copied=1 << 20,
    ),
}  # fmt: skip


def stage(context: int, rows: int, *, recompute: str, compiled: bool) -> TrainStage:
    return TrainStage.model_validate(
        {
            "kind": "train",
            "mixture": {"random": 1},
            "context": context,
            "batch": rows,
            "steps": 1,
            "lr": {"peak": 1e-4},
            "precision": "bfloat16",
            "recompute": recompute,
            "compile": compiled,
        }
    )


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


class Bench:
    """The model of a shape on one rank, and its steps."""

    def __init__(self, shape: Shape, spec: TrainStage) -> None:
        self.group = ProcessGroup.single()
        self.device = self.group.device
        self.parallel = Sharded(self.group, spec, Layout())
        config = replace(shape.config, context=spec.context)
        self.model = self.parallel.model(
            config, lambda name, whole, part: initial_weight(config, 0, name, whole, part)
        )
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
        norm, *_ = self.gradients.sum()
        self.gradients.scale(min(1.0, 1 / (norm + 1e-6)) / sums.weight)
        self.optimizer.step()
        synchronize()
        return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def forget_peak() -> None:
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
    ids_BT = documents(shape.rows, shape.context, 7)
    q, k, v = (
        torch.randn(shape.rows, shape.context, heads, config.head_dim, device=device)
        for heads in (config.heads, config.kv_heads, config.kv_heads)
    )
    exact = packed(ids_BT.to(device))(0, q, k, v)
    attend = segmented(Segments.of(ids_BT).to(device), shape.context)
    found = attend(0, q.to(half), k.to(half), v.to(half))
    error = (found.float() - exact).norm() / exact.norm()
    yield "attention, relative error to float32", float(error), ""


def training(shape: Shape) -> Rows:
    """Tokens a second, MFU, recompilations and memory of steps with changing documents."""
    forget_peak()
    spec = stage(shape.context, shape.rows, recompute="none", compiled=torch.cuda.is_available())
    bench = Bench(shape, spec)
    counters = torch._dynamo.utils.counters["stats"]
    seconds, compiled = [], 0
    for k in range(12):
        seconds.append(bench.step(batch(shape, shape.rows, shape.context, k)))
        if k == 2:
            compiled = counters["unique_graphs"]
    rate = shape.rows * shape.context / median(seconds[3:])
    yield f"{shape.rows} x {shape.context} tokens", rate, "tokens/s"
    flops = bench.model.config.flops_per_token(shape.context)
    yield "MFU (of 989 TFLOPS)", 100 * rate * flops / H100_FLOPS, "%"
    yield "graphs compiled after step 3", counters["unique_graphs"] - compiled, ""
    said = training_memory(bench.model.config, spec, Layout(), sharded=True, chunk=LOGITS).total
    yield "peak memory", peak_memory() / 1e9, "GB"
    yield "the planner says", said / 1e9, "GB"
    yield from saving(bench, shape)


def saving(bench: Bench, shape: Shape) -> Rows:
    """How long an asynchronous checkpoint stops training."""
    tensors: dict[str, torch.Tensor] = {f"model/{n}": p for n, p in bench.model.named_parameters()}
    tensors |= optimizers.tensors_of(bench.optimizer, bench.model)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = bench.parallel.checkpoints(Path(folder), None)
        stall = _timed(lambda: checkpoints.save(Description(Progress(1), "", {}), tensors))
        during = bench.step(batch(shape, shape.rows, shape.context, 99))
        checkpoints.finish()
    yield "asynchronous checkpoint stops training for", stall, "s"
    yield "a step while it is written", during, "s"


def long_row(shape: Shape) -> Rows:
    """One row of 65,536 tokens with full activation checkpointing."""
    forget_peak()
    spec = stage(shape.long, 1, recompute="full", compiled=torch.cuda.is_available())
    bench = Bench(shape, spec)
    seconds = [bench.step(batch(shape, 1, shape.long, k)) for k in range(3)]
    yield f"1 x {shape.long} tokens, recompute full", shape.long / min(seconds[1:]), "tokens/s"
    said = training_memory(bench.model.config, spec, Layout(), sharded=True, chunk=LOGITS).total
    yield "peak memory of it", peak_memory() / 1e9, "GB"
    yield "the planner says of it", said / 1e9, "GB"


CHECKS = (rates, attention, training, long_row)


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
