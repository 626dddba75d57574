"""What the suites of `smollm3 eval` ask of a model: counted, not run.

    python -m benchmarks.evaluation_sizes --data FOLDER --tokenizer smollm3-3b/

Each task is asked of a target that counts instead of answering: items, tokens read (the options of
a question share its own, as in the engine) and tokens that its answers may have at most. Tasks
whose data are not in the folder stand in `not_counted`. Writes results/evaluation_sizes.json, from
which docs/write_evaluation.py makes the table of docs/evaluation.md; what it has already is not
counted again.
"""

from __future__ import annotations

import argparse
import tempfile
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from smollm3.errors import UserError
from smollm3.eval import code, harness
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.suites import suite_of
from smollm3.eval.target import Ask, EngineTarget, Prompt, Settings, Work, Written
from smollm3.files import read_json, write_json
from smollm3.tokenizer import Tokenizer

SUITES = ("base", "instruct", "multilingual", "tools")  # RULER's size follows from its lengths
RESULTS = Path(__file__).parent / "results" / "evaluation_sizes.json"
CONTEXT = 1 << 20  # nothing is cut


class Counting(EngineTarget):
    """Reads and scores nothing. read, written: tokens, those of an answer at their limit."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        engine: Any = SimpleNamespace(tokenizer=tokenizer, config=SimpleNamespace(context=CONTEXT))
        super().__init__(engine, "counted", settings)
        self.read = self.written = 0
        self._known: set[tuple[int, ...]] = set()

    def origin(self) -> str:
        return "counted"

    def score(self, prompt: Prompt, continuation: str) -> Work:
        context, rest = self.pair(prompt, continuation)
        self._read_once(context)
        self.read += len(rest)
        return _done([0.0, False])

    def answer(self, ask: Ask) -> Work:
        self._read_once(self.request(ask).ids(self.tokenizer))
        self.written += ask.max_tokens
        return _done(asdict(Written("", "stop", 0)))

    def _read_once(self, context: list[int]) -> None:
        if tuple(context) not in self._known:
            self._known.add(tuple(context))
            self.read += len(context)


def _done(value: Any) -> Work:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class _Nobody:
    def progress(self, what: str, done: int, total: int, fresh: int) -> None: ...


def count(task: str, settings: Settings, data: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """items, read and written of a task. UserError where its data are not there."""
    target = Counting(tokenizer, settings)
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "items", {"model": "counted"}) as journal,
    ):
        found = run_tasks(target, Wanted([task], data=data), settings, journal, _Nobody())
    items = sum(len({s["doc_id"] for s in samples}) for samples in found["samples"].values())
    return {"items": items, "read": target.read, "written": target.written}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    chosen = parser.parse_args()
    tokenizer = Tokenizer.load(chosen.tokenizer)
    harness.BOOTSTRAP = 0  # nothing is scored, nor are programs run
    code.run_tests = lambda program, tests: code.Verdict(False)
    found: dict[str, Any] = read_json(RESULTS) if RESULTS.exists() else {}
    for name in SUITES:
        suite = suite_of(name)
        known = found.get(name, {}).get("tasks", {})
        tasks: dict[str, Any] = {}
        without: list[str] = []
        for task in suite.tasks:
            try:
                tasks[task] = known.get(task) or count(task, suite.settings, chosen.data, tokenizer)
            except UserError as e:
                without.append(task)
                print(f"{name}: {e}", flush=True)
        found[name] = {"tasks": tasks, "not_counted": without}
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
