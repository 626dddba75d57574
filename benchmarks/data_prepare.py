"""Tokenise and shard: MB of text a core-second, ours and datatrove's own step, run in turns.

    python benchmarks/data_prepare.py TOKENIZER_FOLDER TEXTS.jsonl [...] [--rounds 3]

Both read JSON lines ({"text": ...}) and write datatrove's .ds files with documents shuffled. Time
is that of the processor (user and system), so that what else runs on the machine counts little; the
ratio is of medians. Each run is a process of its own, whose peak memory is told; what it spends
before its first document (imports, the tokenizer) is told apart and not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any


def spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ours(tokenizer: str, files: list[str], out: str, answer: Any) -> None:
    from smollm3.data.preparation import MakePart, Preparation, _encoder, load_tokenizer, plan
    from smollm3.data.spec import FileSource

    work = Path(out) / "ours"
    shutil.copytree(tokenizer, work / "tokenizer")
    source = FileSource(kind="jsonl", files=files, part=64)
    job = Preparation("bench", source, 0, work, plan(source, 0), None)
    loaded = load_tokenizer(work / "tokenizer")
    _ = _encoder(loaded), loaded.digest
    begun, wall = spent(), time.perf_counter()
    for part in range(len(job.plan.parts)):
        MakePart(job)(None, part, len(job.plan.parts))
    tokens = sum(
        p.stat().st_size for split in ("train", "heldout") for p in (work / split).glob("*.ds")
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send((spent() - begun, time.perf_counter() - wall, begun, peak, tokens // 4))


def theirs(tokenizer: str, files: list[str], out: str, answer: Any) -> None:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from loguru import logger

    logger.remove()
    folder = Path(files[0]).parent
    names = Path(out) / "names.txt"
    names.write_text("\n".join(Path(file).name for file in files))
    step = DocumentTokenizer(
        f"{out}/theirs", f"{tokenizer}/tokenizer.json", local_working_dir=f"{out}/theirs-work",
        eos_token="<|end_of_text|>", shuffle_documents=True, seed=0,
    )  # fmt: skip
    _ = step.tokenizer
    reader = JsonlReader(str(folder), paths_file=str(names))
    begun, wall = spent(), time.perf_counter()
    step.run(reader.run(None, 0, 1), 0, 1)
    tokens = sum(p.stat().st_size for p in Path(out, "theirs").glob("*.ds"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    answer.send((spent() - begun, time.perf_counter() - wall, begun, peak, tokens // 4))


def run(target: Any, tokenizer: str, files: list[str]) -> tuple[float, ...]:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as out:
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=target, args=(tokenizer, files, out, send)
        )
        process.start()
        send.close()
        result: tuple[float, ...] = receive.recv()
        process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    characters = 0
    for file in options.files:
        with Path(file).open(encoding="utf-8") as f:
            characters += sum(len(json.loads(line)["text"].encode()) for line in f)
    megabytes = characters / 1e6
    speeds: dict[str, list[float]] = {"ours": [], "datatrove": []}
    for _ in range(options.rounds):
        for name, target in (("ours", ours), ("datatrove", theirs)):
            cpu, wall, start, peak, tokens = run(target, options.tokenizer, options.files)
            speeds[name].append(megabytes / cpu)
            print(
                f"{name:10} {megabytes / cpu:6.2f} MB a core-second ({wall:.0f}s by the clock, "
                f"start {start:.1f}s), peak {peak / 1e6:.0f} MB, {tokens:,} tokens",
                flush=True,
            )
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ratio = medians["ours"] / medians["datatrove"]
    print(f"{megabytes:.0f} MB of text; medians {medians}; ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
