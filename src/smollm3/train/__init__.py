"""Training: one loop, its losses, optimizer, schedule, training checkpoints, parallelism."""

from smollm3.train.job import StepRecord, TrainJob, TrainResult
from smollm3.train.loop import train
from smollm3.train.process_group import ProcessGroup
from smollm3.train.stop import Stopped
from smollm3.train.worker_group import WorkerGroup, run_worker

__all__ = [
    "ProcessGroup",
    "StepRecord",
    "Stopped",
    "TrainJob",
    "TrainResult",
    "WorkerGroup",
    "run_worker",
    "train",
]
