"""Local processes that train along with their leader: started once, given one job after another."""

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
from smollm3.train.stop import Stopped
from smollm3.train.world import World, ending

READY = "ready"


class Followers:
    """`train` on `size` processes: this one leads, the others are started when first needed.

    They live as long as this process: each holds the end of a pipe that closes with the
    leader, however it dies. Under torchrun the processes exist already and `size` is its.
    """

    def __init__(self, size: int, folder: Path) -> None:
        """folder: where the processes meet, by a file `.rendezvous`."""
        self.size = size
        self._init_file = folder / ".rendezvous"
        self._processes: list[subprocess.Popen[str]] = []
        self._world: World | None = None

    def __enter__(self) -> Followers:
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
    ) -> TrainResult:
        """`loop.train` on all processes; see there."""
        world = self._world = self._world or self._start()
        try:
            world.broadcast_text(job.to_json())
            return train(job, world, on_step, warn)
        except Stopped:  # by all at the same step: they wait for the next job
            raise
        except BaseException:
            # The others may wait in the middle of a step; they cannot be led on.
            self._end()
            raise

    def close(self) -> None:
        """Let the followers go; they are gone when this returns."""
        if self._world is not None and self._world.size > 1:
            with suppress(UserError):
                self._world.broadcast_text("")
        self._end()

    def _start(self) -> World:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return World.from_environment()
        if self.size == 1:
            return World.single()
        self._init_file.parent.mkdir(parents=True, exist_ok=True)
        self._init_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "smollm3.train.follower", str(self._init_file)]
        for rank in range(1, self.size):
            self._processes.append(
                subprocess.Popen(
                    [*command, str(rank), str(self.size)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # Ctrl-C is the leader's
                )
            )
        for rank, process in enumerate(self._processes, start=1):
            assert process.stdout is not None
            if process.stdout.readline().strip() != READY:
                how = ending(process)
                self._end()
                raise UserError(f"training process {rank + 1} of {self.size} {how} at its start")
        return World.join(0, self.size, self._init_file, self._processes)

    def _end(self) -> None:
        world, self._world = self._world, None
        if world is not None:
            world.leave()
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.stdout.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
        self._init_file.unlink(missing_ok=True)


def follow(world: World) -> None:
    """Take part in the leader's jobs until it has no more. Errors are the leader's to report."""
    while text := world.broadcast_text():
        with suppress(Stopped, UserError):
            train(TrainJob.from_json(text), world)
    world.leave()
