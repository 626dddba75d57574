"""Training speed against transformers' SmolLM3, step for step in one interleaved run.

Both train the same shape from the same weights on the same batches with torch's AdamW, one thread.
Ours is the whole loop (loader, packing mask, guard, clipping, metrics); theirs is a bare
forward-backward-step on ready tensors with transformers' own loss.

    python benchmarks/training.py [--steps 30]      writes benchmarks/results/training.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from smollm3 import checkpoint, data
from smollm3.chat import default_template
from smollm3.data.spec import ProceduralSource
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer
from smollm3.train import ProcessGroup, TrainJob
from smollm3.train.loop import Trainer
from smollm3.train.spec import LearningRate, TrainStage

SHAPES = {  # name: (layers, hidden, ffn, rows, context)
    "nano 64 x 4, 8 x 128": (4, 64, 176, 8, 128),
    "mini 192 x 8, 8 x 256": (8, 192, 512, 8, 256),
    "long 128 x 4, 2 x 1024": (4, 128, 352, 2, 1024),
}


def compare(shape: tuple[int, int, int, int, int], steps: int, folder: Path) -> dict[str, float]:
    """Median seconds a step of both, and the ratio of medians."""
    layers, hidden, ffn, rows, context = shape
    source = ProceduralSource(kind="procedural", generator="longdoc", documents=400)
    texts = [text for d in data.documents(source, 0) for text in d.texts()]
    tokenizer = Tokenizer.train(texts, 1024, default_template("bench", None, None))
    tokenizer.save(folder / "tokenizer")
    config = ModelConfig(
        tokenizer.vocab_size, layers, hidden, 4, 2, hidden // 4, ffn,
        nope_pattern(layers, 4), 10_000.0, context,
    )  # fmt: skip
    start = Transformer(config)
    start.init_weights(0)
    checkpoint.save_model(start, tokenizer, folder / "model")
    shard = data.prepare("longdoc", source, tokenizer, folder / "data", 0)
    stage = TrainStage(
        kind="train", mixture={"longdoc": 1}, context=context, batch=rows, steps=steps,
        lr=LearningRate(peak=1e-3),
    )  # fmt: skip
    job = TrainJob(
        stage=stage, parent=str(folder / "model"), model=config,
        tokenizer=str(folder / "tokenizer"),
        shards={"longdoc": str(shard.folder)}, start={"longdoc": 0}, optimizer=None,
        work=str(folder / "work"), seed=0, threads=1,
    )  # fmt: skip
    ours = Trainer(job, ProcessGroup.single(), print)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32
    )
    theirs.train()
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
    batches = [ours.loader.batch(k) for k in range(steps)]

    seconds: dict[str, list[float]] = {"smollm3": [], "transformers": []}
    for k, batch in enumerate(batches):
        began = time.perf_counter()
        ours.step(k)
        between = time.perf_counter()
        optimizer.zero_grad()
        labels = batch.targets_BT.masked_fill(batch.weights_BT == 0, -100)
        theirs(batch.ids_BT, labels=labels, shift_labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        if k >= 3:  # the first steps warm up both
            seconds["smollm3"].append(between - began)
            seconds["transformers"].append(time.perf_counter() - between)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    flops = config.flops_per_token(context) * rows * context
    return {
        **medians,
        "speedup": medians["transformers"] / medians["smollm3"],
        "tokens_per_second": rows * context / medians["smollm3"],
        "gflops": flops / medians["smollm3"] / 1e9,
    }


def peak_gflops() -> float:
    """Best of 10 square float32 products on one thread: what the arithmetic could reach."""
    a = torch.randn(1024, 1024)
    best = min(_timed(lambda: a @ a) for _ in range(10))
    return 2 * 1024**3 / best / 1e9


def _timed(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    results = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = compare(shape, steps, Path(folder))
        print(name, {key: float(f"{value:.4g}") for key, value in results[name].items()})
    out = Path(__file__).parent / "results" / "training.json"
    out.write_text(
        json.dumps(
            {
                "date": datetime.date.today().isoformat(),
                "cpu": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "peak_gflops_one_thread": peak_gflops(),
                "results": results,
            },
            indent=2,
        )
        + "\n"
    )
    print(out)


if __name__ == "__main__":
    main()
