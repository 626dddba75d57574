"""What a recipe says about an evaluation: what is measured, and what is claimed of it."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from smollm3.config import StrictModel


def in_nats(metric: str) -> bool:
    """Whether a metric is measured in nats; any other is a share."""
    return metric.startswith("loss/") or metric == "preference/margin"


class Claim(StrictModel):
    """One line of the score card: a metric of a model against a number or another metric.

    metric: e.g. `loss/maths`, `accuracy/sum/think`, `adherence/no_think`, `tool_json`.
    model: the stage it is measured on. baseline_metric, baseline_model: what it is compared
    with (each defaults to the claim's own; none given: the bare value is judged).
    compare: value, value - baseline, or value / baseline. Exactly one of at_least and at_most.
    """

    claim: str
    metric: str
    model: str
    baseline_metric: str | None = None
    baseline_model: str | None = None
    compare: Literal["value", "difference", "ratio"] = "value"
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("give exactly one of at_least and at_most")
        has_baseline = self.baseline_metric is not None or self.baseline_model is not None
        if has_baseline != (self.compare != "value"):
            raise ValueError("compare: difference or ratio goes with a baseline, value without")
        lowest = -math.inf if self.metric == "preference/margin" else 0
        highest = math.inf if in_nats(self.metric) else 1
        if self.compare == "value" and (
            (self.at_least is not None and self.at_least <= lowest)
            or (self.at_most is not None and self.at_most >= highest)
        ):
            raise ValueError(f"every model reaches this; {self.metric} needs a bound that can fail")
        return self

    @property
    def wants_better(self) -> bool:
        """Whether the bound asks for a good value: a low loss, a high share."""
        return (self.at_most if self.metric.startswith("loss/") else self.at_least) is not None


class BenchmarkStage(StrictModel):
    """Scores a model on benchmarks, as `smollm3 eval` does: results.json, a table in the report.

    from: absent: the nearest model above. suite: one of the report's tables; or tasks of
    lm-evaluation-harness and of ours. data: a folder of data sets; absent: the Hub. limit: items
    of each task. few_shot: examples instead of the task's number. think: reason before answering,
    in a chat. beside: a second model that is asked the same, so that the report shows what the
    first gained and lost against it.
    """

    kind: Literal["benchmark"]
    from_: str | None = Field(default=None, alias="from")
    suite: str | None = None
    tasks: list[str] = Field(default_factory=list)
    data: str | None = None
    limit: int | None = Field(default=None, gt=0)
    few_shot: int | None = Field(default=None, ge=0)
    think: bool | None = None
    beside: str | None = None

    @model_validator(mode="after")
    def _says_what(self) -> BenchmarkStage:
        if (self.suite is None) == (not self.tasks):
            raise ValueError("give either suite or tasks")
        return self


class EvalStage(StrictModel):
    """Measures models and writes scorecard.json.

    items: procedural test items for each task and mode; documents: held-out documents for each
    source's loss; samples: answers of the last model kept for the report; answers: held-out
    conversations that the last claim's model and its baseline are asked to end, side by side.
    panel: further metrics of these two, without a bound, so that forgetting is seen.
    """

    kind: Literal["eval"]
    claims: list[Claim] = Field(min_length=1)
    items: int = Field(default=100, gt=0)
    documents: int = Field(default=100, gt=0)
    max_tokens: int = Field(default=96, gt=0)
    samples: int = Field(default=6, ge=0)
    answers: int = Field(default=0, ge=0)
    panel: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _panel_has_two_models(self) -> EvalStage:
        if self.panel and self.claims[-1].baseline_model is None:
            raise ValueError("panel: the last claim names no baseline_model to compare with")
        return self

    @property
    def metrics(self) -> list[str]:
        """Every metric that is measured."""
        claimed = [m for c in self.claims for m in (c.metric, c.baseline_metric) if m]
        return list(dict.fromkeys([*claimed, *self.panel]))
