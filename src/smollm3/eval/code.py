"""Programs that a model wrote, run against their tests in the sandbox of `smollm3.agent`."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smollm3.agent.sandbox import Limits, RunOutput, StartError, find_sandbox
from smollm3.errors import UserError

# The clock's limit is wide, so that on a busy computer the processor's decides.
LIMITS = Limits(seconds=240.0, cpu_seconds=120, memory=4 << 30, threads=1, calls=0)
MOST_BYTES = 256 << 20  # of an item's hidden tests
_BLOCK = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)
# The sandbox has the standard library alone, and this is all that the tests of HumanEval+ and
# MBPP+ want of NumPy: comparing numbers, also nested and in sets, as allclose does.
_NUMPY = """
def _make_numpy():
    import sys, types
    numpy = types.ModuleType("numpy")
    class ndarray: pass
    numpy.ndarray, numpy.float64, numpy.float32 = ndarray, float, float
    def flat(x):
        if isinstance(x, (list, tuple)):
            return [z for y in x for z in flat(y)]
        if not isinstance(x, (int, float, complex)):
            raise TypeError("no number: " + type(x).__name__)
        return [x]
    def close(x, y, rtol, atol):
        return x == y or abs(x - y) <= atol + rtol * abs(y) < float("inf")
    def allclose(a, b, rtol=1e-05, atol=1e-08):
        x, y = flat(a), flat(b)
        if len(x) != len(y) and 1 not in (len(x), len(y)):
            raise ValueError("operands could not be broadcast together")
        size = max(len(x), len(y))
        x, y = (z * size if len(z) == 1 else z for z in (x, y))
        return all(close(p, q, rtol, atol) for p, q in zip(x, y))
    numpy.allclose = allclose
    sys.modules["numpy"] = numpy
_make_numpy()
del _make_numpy
"""


@dataclass(frozen=True)
class Verdict:
    """why: a program did not pass: the last line of its error, or how it was ended."""

    passed: bool
    why: str = ""


def need_sandbox(task: str) -> None:
    """UserError where nothing isolates a model's code."""
    try:
        find_sandbox()
    except UserError as e:
        raise UserError(f"{task}: {e}") from None


def run_tests(program: str, tests: str) -> Verdict:
    """Whether a program and its tests run to their end, in an interpreter of their own."""
    # What the last line gives: a program that leaves early has not passed.
    token = secrets.token_hex(16)
    text = f"{_NUMPY}\n{program}\n\n{tests}\n\n{token!r}\n"
    interpreter = find_sandbox().interpreter(limits=LIMITS)
    try:
        run = interpreter.run(text)
    except StartError as e:
        raise UserError(f"the sandbox does not start: {e}") from None
    finally:
        interpreter.close()
    if run.ok and run.value == repr(token):
        return Verdict(True)
    return Verdict(False, _why(run))


def _why(run: RunOutput) -> str:
    if run.ended:
        return run.ended
    lines = (run.error or "it ended before its tests did").strip().splitlines()
    return lines[-1][:300]


def code_of(answer: str, prompt: str, entry_point: str) -> str:
    """The program in an answer: a block of code or all of it, behind the prompt unless the answer
    has the function itself."""
    block = _BLOCK.search(answer)
    code = block[1] if block else answer
    return code if f"def {entry_point}" in code else prompt + code


def humaneval(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """pass@1 of an item of HumanEval+, in the harness's form."""
    entry_point = doc["entry_point"]
    program = code_of(results[0], doc["prompt"], entry_point)
    return {"pass@1": float(run_tests(program, humaneval_tests(doc)).passed)}


def humaneval_tests(doc: Mapping[str, Any]) -> str:
    """The item's tests. In the published file those of HumanEval/32 take a root for its polynomial,
    so that no program can pass: they are read as they are meant."""
    test = doc["test"].replace(
        "_poly(*candidate(*inp), inp) <= 0.0001", "abs(_poly(*inp, candidate(*inp))) <= 0.0001"
    )
    return f"{test}\ncheck({doc['entry_point']})"


def mbpp(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """pass@1 of an item of MBPP+."""
    program = code_of(results[0], "", "")
    return {"pass@1": float(run_tests(program, mbpp_tests(doc)).passed)}


def mbpp_tests(doc: Mapping[str, Any]) -> str:
    """The item's tests. In the published file those of 737, 787 and 794 compare and then assert
    nothing, so that every program passes: here they assert what they compared."""
    compared = "        exact_match = exp == (out is not None)\n"
    return str(doc["test"]).replace(compared, f"{compared}    assert exact_match\n")


def livecodebench(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """pass@1 of an item of LiveCodeBench: all of its tests, the hidden ones too where the file has
    them, by input and output or by calls of a method of Solution."""
    program = code_of(results[0], "", "")
    cases = cases_in(doc["public_test_cases"]) + cases_in(doc.get("private_test_cases") or "[]")
    if not cases:
        return {"pass@1": 0.0}
    name = _method(doc["starter_code"])
    tests = _CALLS if name else _STREAMS
    program = f"PROGRAM = {program!r}\nCASES = {[(c['input'], c['output']) for c in cases]!r}\n"
    return {"pass@1": float(run_tests(program, f"NAME = {name!r}\n{tests}").passed)}


def cases_in(text: str) -> list[dict[str, Any]]:
    """Tests as the file has them: JSON; or the same as a pickled text, packed and in base64, of
    which nothing but a text is read. UserError for anything else."""
    try:
        if text.lstrip()[:1] == "[":
            found = json.loads(text)
        else:
            packed = zlib.decompressobj()
            data = packed.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
            if not packed.eof:
                raise ValueError(f"more than {MOST_BYTES >> 20} MiB, or cut off")
            found = json.loads(_Text(io.BytesIO(data)).load())
        return [{"input": case["input"], "output": case["output"]} for case in found]
    except (ValueError, KeyError, TypeError, zlib.error, pickle.UnpicklingError, EOFError) as e:
        raise UserError(f"livecodebench: tests that cannot be read ({e})") from None


class _Text(pickle.Unpickler):
    """Of a pickle without any class or function: nothing in it can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


def _method(starter: str) -> str | None:
    """The method that a starter code wants written, None where programs read their input."""
    found = re.findall(r"def (\w+)\(self", starter)
    return found[-1] if found else None


_STREAMS = """
def _run():
    import contextlib, io, sys
    for given, wanted in CASES:
        out = io.StringIO()
        sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()), encoding="utf-8")
        try:
            with contextlib.redirect_stdout(out):
                exec(compile(PROGRAM, "<program>", "exec"), {"__name__": "__main__"})
        except SystemExit as e:
            assert e.code in (None, 0), e.code
        made = [line.strip() for line in out.getvalue().strip().split("\\n")]
        expected = [line.strip() for line in wanted.strip().split("\\n")]
        assert made == expected, (made, expected)
_run()
"""
_CALLS = """
def _run():
    import json
    names = {"__name__": "solution"}
    exec("from typing import *\\nfrom collections import *\\nimport math, heapq, bisect", names)
    exec("import itertools, functools, string, re", names)
    exec(compile(PROGRAM, "<program>", "exec"), names)
    for given, wanted in CASES:
        arguments = [json.loads(line) for line in given.strip().split("\\n")]
        made = getattr(names["Solution"](), NAME)(*arguments)
        made = json.loads(json.dumps(made))
        assert made == json.loads(wanted), (made, wanted)
_run()
"""
