"""The published answers of HumanEval+ and MBPP+ pass their tests in the sandbox, and broken ones fail.

Where SMOLLM3_EVAL_DATA names a folder with the two data sets; `-s` shows what took how long.
"""

import gzip
import json
import os
import time
from pathlib import Path

import pytest

from smollm3.eval import code

DATA = "SMOLLM3_EVAL_DATA"
# Something where the right answer is nothing, and nothing where it is something: three items of
# MBPP+ compare no more than that.
BROKEN = "\n_right = {name}\n{name} = lambda *given: 1 if _right(*given) is None else None\n"


def humaneval(row):
    return (
        f"{row['prompt']}{row['canonical_solution']}",
        row["entry_point"],
        code.humaneval_tests(row),
    )


def mbpp(row):
    called = row["test"].rsplit("assertion(", 1)[1]
    return row["code"], called.split("(", 1)[0], code.mbpp_tests(row)


@pytest.mark.slow
@pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} names no folder of data sets")
@pytest.mark.parametrize(
    ("folder", "parts", "count"), [("humaneval_plus", humaneval, 164), ("mbpp_plus", mbpp, 378)]
)
def test_published_programs_pass_and_broken_ones_fail(folder, parts, count):
    with gzip.open(Path(os.environ[DATA], folder, "test.jsonl.gz"), "rt", encoding="utf-8") as rows:
        items = [json.loads(row) for row in rows]
    assert len(items) == count
    wrong, times = [], []
    for item in items:
        program, name, tests = parts(item)
        began = time.monotonic()
        right = code.run_tests(program, tests)
        times.append((time.monotonic() - began, item["task_id"]))
        broken = code.run_tests(program + BROKEN.format(name=name), tests)
        if not right.passed or broken.passed:
            wrong.append((item["task_id"], right, broken))
    print(f"\n{folder}: {count} programs; the slowest: {sorted(times)[-3:]}")
    assert not wrong
