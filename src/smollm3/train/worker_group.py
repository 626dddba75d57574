"""The workers of a data-parallel run on one machine: started once, given one job after another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from smollm3.errors import UserError
from smollm3.train.job import StepRecord, TrainJob, TrainResult
from smollm3.train.loop import train
from smollm3.train.process_group import ProcessGroup, ending
from smollm3.train.scores import Score
from smollm3.train.stop import Stopped

READY = "ready"


class WorkerGroup:
    """`train` on `size` processes: this one is the main process and starts the others, its
    workers, when they are first needed.

    They live as long as this process: each holds the end of a pipe that closes with the main
    process, however it dies. Under torchrun the processes exist already and `size` is its.
    """

    def __init__(self, size: int, folder: Path) -> None:
        """folder: where the processes meet, by a file `.rendezvous`."""
        self.size = size
        self._init_file = folder / ".rendezvous"
        self._workers: list[subprocess.Popen[str]] = []
        self._group: ProcessGroup | None = None

    def __enter__(self) -> WorkerGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def train(
        self,
        job: TrainJob,
        on_step: Callable[[StepRecord, int], None] | None = None,
        warn: Callable[[str], None] | None = None,
        score: Score | None = None,
    ) -> TrainResult:
        """`loop.train` on all processes; see there."""
        group = self._group = self._group or self._start()
        try:
            group.broadcast_text(job.to_json())
            return train(job, group, on_step, warn, score)
        except Stopped:  # by all at the same step: they wait for the next job
            raise
        except BaseException:
            # The others may wait in the middle of a step; they cannot take another job.
            self._end()
            raise

    def close(self) -> None:
        """End the workers; they are gone when this returns."""
        if self._group is not None and self._group.size > 1:
            with suppress(UserError):
                self._group.broadcast_text("")
        self._end()

    def _start(self) -> ProcessGroup:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return ProcessGroup.from_environment()
        if self.size == 1:
            return ProcessGroup.single()
        self._init_file.parent.mkdir(parents=True, exist_ok=True)
        self._init_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "smollm3.train.worker", str(self._init_file)]
        for rank in range(1, self.size):
            self._workers.append(
                subprocess.Popen(
                    [*command, str(rank), str(self.size)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C is for the main process
                )
            )
        for rank, worker in enumerate(self._workers, start=1):
            assert worker.stdout is not None
            if worker.stdout.readline().strip() != READY:
                how = ending(worker)
                self._end()
                raise UserError(f"training process {rank + 1} of {self.size} {how} at its start")
        return ProcessGroup.join(0, self.size, self._init_file, self._workers)

    def _end(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.destroy()
        for worker in self._workers:
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.close()
            worker.stdout.close()
        for worker in self._workers:
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._workers = []
        self._init_file.unlink(missing_ok=True)


def run_worker(group: ProcessGroup) -> None:
    """Take part in the main process's jobs until it has no more; it reports the errors."""
    while text := group.broadcast_text():
        with suppress(Stopped, UserError):
            train(TrainJob.from_json(text), group)
    group.destroy()
