"""Check another implementation of SmolLM3 on a tiny checkpoint made for it.

    from smollm3.conformance import run
    report = run("transformers")       # rows, .table(), .to_json(), .exit_code

Other programs are checked by subclassing `Target` and handing it to `check`.
"""

from smollm3.conformance.kit import make_kit
from smollm3.conformance.result import Report, Row
from smollm3.conformance.run import TARGETS, check, make, run
from smollm3.conformance.target import Answer, Broken, Target, Tokens, Unsupported

__all__ = [
    "TARGETS",
    "Answer",
    "Broken",
    "Report",
    "Row",
    "Target",
    "Tokens",
    "Unsupported",
    "check",
    "make",
    "make_kit",
    "run",
]
