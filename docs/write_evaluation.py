"""Prints two tables of docs/evaluation.md; a test compares them. smollm2-135m beside what is
published of it, as `smollm3 eval compare --json` found it (results/smollm2_scores.json). And the
3B's published tables, the command that makes each and what it takes on one H100.

Items and tokens were counted by benchmarks/evaluation_sizes.py. Times are computed: reading by the
planner's FLOPs and its share of an H100's peak; writing by what each step reads, all weights and
the caches of as many answers as fit, at the share of the data sheet's bandwidth that decoding one
stream reached on an H200 (benchmarks/results/gpu_check.json).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smollm3.eval.measure import Z
from smollm3.eval.ruler import TASKS
from smollm3.eval.suites import suite_of
from smollm3.model import ModelConfig
from smollm3.plan import Hardware
from smollm3.plan.costs import kv_bytes_per_token
from smollm3.recipe import load_recipe
from smollm3.units import count, duration

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BANDWIDTH = {"h100": 3.35e12, "h200": 4.8e12}  # bytes/s, by its maker's data sheet (SXM)
MEMORY = 0.9  # of the card, for weights and caches
VOCABULARY, BYTES = 128_256, 2  # bfloat16
PROMPTS = 500  # of each task of RULER
LENGTHS = (32_768, 65_536, 131_072)
FILES = "--essays FOLDER --squad FILE --hotpotqa FILE"


@dataclass(frozen=True)
class Work:
    """items; tokens read, and written at most; of a prompt, and of an answer at most."""

    items: int
    read: int
    written: int
    prompt: int
    answer: int


@dataclass(frozen=True)
class Line:
    """A published table, or a part of one: the command, what it asks, what could not be counted."""

    table: str
    command: str
    parts: tuple[Work, ...]
    uncounted: tuple[str, ...] = ()


def lines() -> list[Line]:
    base, chat = "smollm3 eval smollm3-3b-base", "smollm3 eval smollm3-3b"
    lengths = ",".join(f"{n >> 10}k" for n in LENGTHS)
    return [
        _counted("smollm3-base", f"{base} --suite base", "base"),
        Line(
            "smollm3-base, RULER",
            f"{base} --suite long --lengths {lengths} {FILES}",
            tuple(map(_ruler, LENGTHS)),
        ),
        _counted("smollm3-base-multilingual", f"{base} --suite multilingual", "multilingual"),
        _counted("smollm3-no-think", f"{chat} --suite instruct", "instruct"),
        _counted("smollm3-no-think, BFCL", f"{chat} --suite tools", "tools"),
        _counted("smollm3-think", f"{chat} --suite instruct --think", "instruct"),
        _counted("smollm3-think, BFCL", f"{chat} --suite tools --think", "tools"),
    ]


def _counted(table: str, command: str, suite: str) -> Line:
    sizes = json.loads((RESULTS / "evaluation_sizes.json").read_text())[suite]
    works = tuple(
        Work(n["items"], n["read"], n["written"], n["read"] // n["items"], _answer(suite, n))
        for n in sizes["tasks"].values()
    )
    return Line(table, command, works, tuple(sizes["not_counted"]))


def _answer(suite: str, sizes: dict[str, int]) -> int:
    """Tokens of one answer at most."""
    return suite_of(suite).settings.max_tokens or -(-sizes["written"] // sizes["items"])


def _ruler(length: int) -> Work:
    written = PROMPTS * sum(task.tokens for task in TASKS.values())
    items = PROMPTS * len(TASKS)
    return Work(
        items, items * length - written, written, length, max(t.tokens for t in TASKS.values())
    )


def seconds(config: ModelConfig, work: Work) -> tuple[float, float]:
    """Of reading, and of writing at most."""
    card = Hardware.of("h100", 1)
    reading = card.seconds(work.read * config.flops_per_token(work.prompt) / 3)
    if not work.written:
        return reading, 0.0
    weights, cache = config.parameters * BYTES, kv_bytes_per_token(config)
    longest = work.prompt + work.answer
    at_once = max(1, min(work.items, int((MEMORY * card.memory - weights) / (cache * longest))))
    step = weights + at_once * cache * (work.prompt + work.answer / 2)
    return reading, work.written / at_once * step / (BANDWIDTH["h100"] * _share())


def _share() -> float:
    """Of its bandwidth, what an H200 reached while it decoded one stream."""
    rows: list[dict[str, Any]] = json.loads((RESULTS / "gpu_check.json").read_text())["rows"]
    read = next(row["value"] for row in rows if row["what"] == "decode reads")
    return float(read) * 1e9 / BANDWIDTH["h200"]


def table() -> str:
    shape = load_recipe("smollm3-3b").model
    assert shape is not None
    config = shape.config(VOCABULARY, context=LENGTHS[-1])
    titles = "published table|command|items|read|written, at most|reading|writing, at most"
    out = [
        f"| {' | '.join(titles.split('|'))} | not counted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines():
        times = [seconds(config, work) for work in line.parts]
        read, written = (sum(getattr(w, kind) for w in line.parts) for kind in ("read", "written"))
        cells = [
            line.table,
            f"`{line.command}`",
            f"{sum(work.items for work in line.parts):,}",
            count(read),
            count(written),
            duration(sum(reading for reading, _ in times)),
            duration(sum(writing for _, writing in times)),
            f"{len(line.uncounted)} of {len(line.parts) + len(line.uncounted)} tasks"
            if line.uncounted
            else "–",
        ]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out) + "\n"


def scores() -> str:
    """Of each published score the evaluation that is nearest to its protocol."""
    found = json.loads((RESULTS / "smollm2_scores.json").read_text())["published"]
    nearest: dict[tuple[str, str], dict[str, Any]] = {}
    for line in sorted(found, key=lambda line: len(line["why"]), reverse=True):
        nearest[line["table"], line["benchmark"]] = line
    out = [
        "| published table | benchmark | items | here, 95% interval | published | |",
        "|" + "---|" * 6,
    ]
    for (name, benchmark), line in sorted(nearest.items()):
        error = (line["high"] - line["low"]) / (2 * Z)
        off = (line["value"] - line["published"]) / error
        out.append(
            f"| {name} | {benchmark} | {line['n']:,} | {line['value']:.1f} ({line['low']:.1f} to "
            f"{line['high']:.1f}) | {line['published']:.1f} | {off:+.1f} standard errors"
            + (f"; {line['why']} |" if line["why"] else " |")
        )
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    print(scores())
    print(table(), end="")
