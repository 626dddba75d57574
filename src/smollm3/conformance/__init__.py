"""Check another implementation of SmolLM3 on a tiny checkpoint made for it.

    from smollm3.conformance import run
    report = run("transformers")       # rows, .table(), .to_json(), .exit_code

Other programs are checked by subclassing `Target` and handing it to `check`.
"""

from smollm3.conformance.kit import make_kit
from smollm3.conformance.result import Report, ResultRow
from smollm3.conformance.run import TARGETS, check, make, run
from smollm3.conformance.target import Broken, ChatAnswer, Target, TargetTokens, Unsupported

__all__ = [
    "TARGETS",
    "Broken",
    "ChatAnswer",
    "Report",
    "ResultRow",
    "Target",
    "TargetTokens",
    "Unsupported",
    "check",
    "make",
    "make_kit",
    "run",
]
