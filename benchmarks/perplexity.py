"""What speed costs in quality: perplexity of the same file on the same prose, ours and llama.cpp's.

    python -m benchmarks.perplexity      writes benchmarks/results/perplexity.json

SmolLM2-135M in Q4_1 reads the language reference that comes with every Python (pydoc_data.topics),
in rows of 512 tokens. Both round activations to 8 bits; the row in float32 does not.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from benchmarks.peers import HERE, PEERS_PYTHON, Worker, machine

from smollm3.checkpoint import load_tokenizer, locate
from smollm3.files import write_json

RESULTS = HERE / "results" / "perplexity.json"
MODEL = "smollm2-135m"
ROW = 512
ROWS = 40  # 20,480 tokens
COLUMNS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "ours": ("ours", {"cache": "bf16"}),
    "ours, int8 cache": ("ours", {"cache": "int8"}),
    "ours, float32": ("ours", {"engine": "torch", "dtype": "float32", "cache": None}),
    "llama.cpp": ("llama.cpp", {}),
    "llama.cpp, q8_0 cache": ("llama.cpp", {"cache": "q8_0"}),
}
# A column, what it is held against, and by how much it may be worse.
TARGETS = (("ours", "llama.cpp", 0.01), ("ours, int8 cache", "ours", 0.005))


def prose(rows: int = ROWS) -> list[list[int]]:
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = load_tokenizer(locate(MODEL)).encode(text)
    return [ids[n * ROW : (n + 1) * ROW] for n in range(rows)]


def perplexity(scores: Sequence[Sequence[float]]) -> float:
    """exp of the mean negative log-probability of all tokens that have others before them."""
    values = [score for row in scores for score in row]
    return math.exp(-math.fsum(values) / len(values))


def judge(found: Mapping[str, float]) -> list[dict[str, Any]]:
    """How much worse each column of TARGETS is than its other, as a share."""
    verdicts = []
    for column, other, most in TARGETS:
        worse = found[column] / found[other] - 1
        verdicts.append(
            {"column": column, "against": other, "worse": worse, "most": most, "met": worse <= most}
        )
    return verdicts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", type=Path, default=PEERS_PYTHON)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of {ROW} tokens")
    args = parser.parse_args()
    batch, model = prose(args.rows), str(locate(MODEL))
    found, versions = {}, {}
    for column, (engine, settings) in COLUMNS.items():
        with Worker(engine, args.peers_python) as worker:
            opened = {"model": model, "context": ROW, "threads": args.threads, **settings}
            worker.ask("open", opened)
            found[column] = perplexity(worker.ask("score", {"batch": batch}))
            versions[column] = worker.ask("info", {})
        print(f"{column:24}{found[column]:.4f}", flush=True)
    verdicts = judge(found)
    for v in verdicts:
        print(f"{v['column']} against {v['against']}: {v['worse']:+.3%}, at most {v['most']:.1%}")
    write_json(
        RESULTS,
        {
            "date": datetime.date.today().isoformat(),
            "machine": machine(args.threads),
            "text": f"pydoc_data.topics of Python {platform.python_version()}",
            "tokens": sum(map(len, batch)),
            "perplexity": found,
            "targets": verdicts,
            "versions": versions,
        },
    )


if __name__ == "__main__":
    main()
