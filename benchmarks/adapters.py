"""Tokens a second with eight adapters beside a model against the model alone, in turns.

32 answers at once, each with its adapter (rank 16, on all linear layers, random weights). Wall and
processor time are taken: on a machine that others use the second tells more.

    python benchmarks/adapters.py [--repeat 5]      writes benchmarks/results/adapters.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from smollm3 import load_engine
from smollm3.checkpoint import load_config, locate
from smollm3.checkpoint.adapter import AdapterLayer, AdapterWeights, write_adapter
from smollm3.infer import Engine, SamplingParams
from smollm3.machine import machine

MODEL, ADAPTERS, ANSWERS, RANK, TOKENS = "smollm2-135m", 8, 32, 16, 24


def make_adapter(folder: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    layers = {
        name: AdapterLayer(random(RANK, columns) / columns**0.5, random(rows, RANK) * 0.02)
        for name, (rows, columns) in load_config(locate(MODEL)).linear_shapes.items()
    }
    folder.mkdir()
    write_adapter(folder, AdapterWeights("lora", RANK, 2.0 * RANK, layers))


def seconds(engine: Engine, adapters: list[str | None]) -> tuple[float, float]:
    """(wall, processor) seconds of an answer with each of these."""
    params = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    wall, cpu = time.perf_counter(), time.process_time()
    with engine.together():
        running = [
            engine.submit(list(range(10 + i, 42 + i)), params, adapter=name)
            for i, name in enumerate(adapters)
        ]
    for generation in running:
        generation.result()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(backend: str, repeat: int, place: Path) -> dict[str, dict[str, float]]:
    """Tokens a second of each case, and its share of the model's alone."""
    cases: dict[str, list[str | None]] = {
        "the model, 32 answers": [None] * ANSWERS,
        "eight adapters, 32 answers": [f"a{i % ADAPTERS}" for i in range(ANSWERS)],
        "one adapter, 32 answers": ["a0"] * ANSWERS,
        "the model, 1 answer": [None],
        "one adapter, 1 answer": ["a0"],
    }
    with load_engine(MODEL, engine=backend, threads=1, speculation=False) as engine:
        for i in range(ADAPTERS):
            engine.adapters.load(f"a{i}", place / f"a{i}")
        for adapters in cases.values():
            seconds(engine, adapters)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(repeat):
            for name, adapters in cases.items():
                times[name].append(seconds(engine, adapters))
    found = {}
    for name, taken in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*taken, strict=True))
        alone = times[f"the model, {name.split(', ')[1]}"]
        ratios = [a[1] / b[1] for a, b in zip(alone, taken, strict=True)]
        found[name] = {
            "tokens_per_second": len(cases[name]) * TOKENS / wall,
            "tokens_per_processor_second": len(cases[name]) * TOKENS / cpu,
            "share_of_the_model": statistics.median(ratios),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        for i in range(ADAPTERS):
            make_adapter(Path(folder) / f"a{i}", i)
        found = {name: measure(name, repeat, Path(folder)) for name in ("native", "torch")}
    out = Path(__file__).parent / "results/adapters.json"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"date": date, "machine": machine(), "model": MODEL, "results": found}
    out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
