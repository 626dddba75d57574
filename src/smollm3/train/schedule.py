"""The learning rate of a step: warm-up, hold, decay."""

from __future__ import annotations

import math

from smollm3.errors import UserError
from smollm3.train.spec import LearningRate


def warmup_steps(lr: LearningRate, steps: int) -> int:
    """How many of the first steps rise; a share of the stage is rounded up."""
    return lr.warmup if isinstance(lr.warmup, int) else math.ceil(lr.warmup * steps)


def decay_steps(lr: LearningRate, steps: int) -> int:
    """How many of the last steps fall; without `decay_steps`, all after the warm-up."""
    if lr.decay == "none":
        return 0
    return steps - warmup_steps(lr, steps) if lr.decay_steps is None else lr.decay_steps


def check(lr: LearningRate, steps: int) -> None:
    """UserError where warm-up and decay do not fit into the stage's `steps`."""
    rising = warmup_steps(lr, steps)
    falling = decay_steps(lr, steps) if rising <= steps else 0
    if rising + falling > steps:
        what = f"warmup {rising}" + (f" and decay_steps {falling}" if falling else "")
        raise UserError(
            f"lr: {what} do not fit into the stage's {steps} steps; lower them or train longer"
        )


def learning_rate(lr: LearningRate, step: int, steps: int) -> float:
    """Rate of `step` (from 0) of a stage of `steps`.

    Warm-up of w: step i < w has peak·(i+1)/w, so the first step already learns and step w-1
    has the peak. Decay over the last d: step steps-d-1 still has the peak, the last step has
    end·peak; between them it falls along a line or half a cosine wave.
    """
    rising = warmup_steps(lr, steps)
    if step < rising:
        return lr.peak * (step + 1) / rising
    falling = decay_steps(lr, steps)
    fallen = step + 1 - (steps - falling)  # 1 .. falling within the decay
    if fallen <= 0:
        return lr.peak
    if lr.decay == "linear":
        share = 1 - fallen / falling
    else:
        share = (1 + math.cos(math.pi * fallen / falling)) / 2
    return lr.peak * (lr.end + (1 - lr.end) * share)
