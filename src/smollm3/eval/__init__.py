"""Evaluation: what is measured on held-out data, and the claims that are judged by it."""

from smollm3.eval.scorecard import check_claims, evaluate, interval, show, table, title
from smollm3.eval.spec import Claim, EvalStage

__all__ = ["Claim", "EvalStage", "check_claims", "evaluate", "interval", "show", "table", "title"]
