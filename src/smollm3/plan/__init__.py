"""What a recipe will cost before it runs: tokens, steps, memory, FLOPs and time of every stage."""

from smollm3.plan.costs import (
    TOKENS_PER_DOCUMENT,
    StageCost,
    kv_bytes_per_token,
    stage_costs,
)
from smollm3.plan.hardware import GPUS, Hardware
from smollm3.plan.table import describe_rate, render

__all__ = [
    "GPUS",
    "TOKENS_PER_DOCUMENT",
    "Hardware",
    "StageCost",
    "describe_rate",
    "kv_bytes_per_token",
    "render",
    "stage_costs",
]
