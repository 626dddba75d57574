"""Training: one loop, its losses, optimizer, schedule, states, and data parallelism."""

from smollm3.train.followers import Followers, follow
from smollm3.train.job import StepRecord, TrainJob, TrainResult
from smollm3.train.loop import train
from smollm3.train.stop import Stopped
from smollm3.train.world import World

__all__ = [
    "Followers",
    "StepRecord",
    "Stopped",
    "TrainJob",
    "TrainResult",
    "World",
    "follow",
    "train",
]
