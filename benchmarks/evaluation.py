"""`smollm3 eval` beside lm-evaluation-harness's own Hugging Face backend, on the same requests.

    python benchmarks/evaluation.py smollm2-135m --data FOLDER --runs evals/*

Both score the options of the same items, in turns (ours, theirs, ours, ...), with as many threads
each; the peer reads the same weights dequantised, through transformers. Writes the ratio of the
medians to results/evaluation.json, and the largest difference of a log-probability where ours
computes in float32 on PyTorch; and what the evaluations in the folders of --runs took.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from smollm3 import load_engine, load_model, load_tokenizer, save_model
from smollm3.eval.local import DataFolder
from smollm3.eval.results import read_results
from smollm3.eval.target import EngineTarget, Prompt, Settings
from smollm3.files import read_json, write_json
from smollm3.machine import machine

RESULTS = Path(__file__).parent / "results" / "evaluation.json"


def requests(data: Path, items: int) -> list[tuple[str, str]]:
    rows = DataFolder(data).load("allenai/ai2_arc", "ARC-Easy")
    assert rows
    return [
        (f"Question: {row['question']}\nAnswer:", f" {choice}")
        for row in rows["test"][:items]
        for choice in row["choices"]["text"]
    ]


def ours(target: EngineTarget, asked: list[tuple[str, str]]) -> list[float]:
    works = [target.score(Prompt(context), rest) for context, rest in asked]
    return [work.result()[0] for work in works]


def theirs(model: HFLM, asked: list[tuple[str, str]]) -> list[float]:
    instances = [Instance("loglikelihood", {}, pair, 0) for pair in asked]
    return [value for value, _ in model.loglikelihood(instances)]


def peer(model: str, folder: Path, dtype: torch.dtype, batch: int) -> HFLM:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return HFLM(pretrained=loaded, tokenizer=tokenizer, batch_size=batch)


def whole(run: Path) -> dict[str, Any]:
    """Items of each task of an evaluation that somebody made, and the seconds that it took."""
    counted = read_results(run).results["n-samples"]
    items = {task: n["effective"] for task, n in counted.items()}
    return {"items": items, "seconds": read_json(run / "run.json")["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="Of the peer; its best here.")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = requests(options.data, options.items)
    with tempfile.TemporaryDirectory() as folder:
        save_model(load_model(options.model), load_tokenizer(options.model), folder)
        peers = {
            str(dtype).removeprefix("torch."): peer(
                options.model, Path(folder), dtype, options.batch
            )
            for dtype in (torch.float32, torch.bfloat16)
        }
        with load_engine(folder, engine="torch", dtype="float32") as engine:
            exact = ours(EngineTarget(engine, "float32", Settings()), asked)
        with load_engine(options.model, threads=options.threads) as engine:
            seconds: dict[str, list[float]] = {"smollm3": []}
            for number in range(options.rounds):
                # A salt of its own for each round would do; a fresh text is as good.
                fresh = [(f"{number}. {context}", rest) for context, rest in asked]
                started = time.perf_counter()
                ours(EngineTarget(engine, options.model, Settings()), fresh)
                seconds["smollm3"].append(time.perf_counter() - started)
                for name, model in peers.items():
                    started = time.perf_counter()
                    theirs(model, fresh)
                    seconds.setdefault(name, []).append(time.perf_counter() - started)
        largest = max(
            abs(a - b) for a, b in zip(exact, theirs(peers["float32"], asked), strict=True)
        )
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    found = {
        "date": f"{datetime.date.today()}",
        "machine": machine(),
        "model": options.model,
        "threads": options.threads,
        "items": options.items,
        "requests": len(asked),
        "seconds": medians,
        "times as fast": {n: s / medians["smollm3"] for n, s in medians.items() if n != "smollm3"},
        "largest difference of a log-probability, float32": largest,
        "whole": {run.name: whole(run) for run in options.runs},
    }
    write_json(RESULTS, found)
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
