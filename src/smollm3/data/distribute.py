"""Parts made by many processes: datatrove's executors, for this machine, Slurm and Ray."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from smollm3.data.preparation import Step
from smollm3.errors import UserError


def _local() -> Any:
    import dill
    from datatrove.executor import LocalPipelineExecutor

    class Local(LocalPipelineExecutor):  # type: ignore[misc]
        """datatrove's tasks in a pool that notices when a worker is killed; multiprocess.Pool
        would wait for its answer for ever."""

        def run(self) -> None:
            context = multiprocessing.get_context("forkserver")
            with ProcessPoolExecutor(self.workers, context, initializer=_begin) as pool:
                send = partial(_run_task, dill.dumps(self))
                tasks = [pool.submit(send, rank) for rank in range(self.tasks)]
                try:
                    for task in tasks:
                        task.result()
                except BrokenProcessPool:
                    raise UserError(
                        "a worker was killed (out of memory?); run again to go on"
                    ) from None
                finally:
                    pool.shutdown(cancel_futures=True)

    return Local


class Distributed:
    """Runs the steps of a preparation in datatrove's tasks.

    kind: local, slurm or ray. workers: tasks at a time. logs: folder for each task's log; tasks of
    other machines must see it. options: the executor's own, such as Slurm's time and partition.
    Slurm runs what it was handed after this process has ended; a step waits for the one before.
    """

    def __init__(self, kind: str, workers: int, logs: Path, options: Mapping[str, Any]) -> None:
        self.kind, self.workers, self.logs, self.options = kind, workers, logs, options
        self.waits = kind != "slurm"
        self._previous: Any = None
        try:
            self._executor = self._class()
        except ImportError as e:
            more = " ray" if kind == "ray" else ""
            raise UserError(
                f"--executor {kind} needs datatrove; pip install 'smollm3[data]'{more} ({e})"
            ) from None

    def _class(self) -> Any:
        match self.kind:
            case "local":
                return _local()
            case "slurm":
                from datatrove.executor.slurm import SlurmPipelineExecutor

                return SlurmPipelineExecutor
            case _:
                import ray  # type: ignore[import-not-found]  # noqa: F401
                from datatrove.executor.ray import RayPipelineExecutor

                return RayPipelineExecutor

    def __call__(self, name: str, step: Step, tasks: int) -> None:
        options = {
            "pipeline": [step],
            "tasks": tasks,
            "workers": min(self.workers, tasks),
            "logging_dir": str(self.logs / name),
            "skip_completed": False,  # a step knows what is done by what it has written
            **self.options,
        }
        if self.kind == "slurm":
            options |= {"job_name": f"smollm3-{name}", "depends": self._previous}
        try:
            self._previous = self._executor(**options)
        except TypeError as e:
            raise UserError(f"--executor {self.kind}: {e}; give it with --option") from None
        self._previous.run()


def _run_task(pickled: bytes, rank: int) -> None:
    import dill

    dill.loads(pickled)._run_for_rank(rank, local_rank=1)


def _begin() -> None:
    """What a worker does first: it will not outlive the process that hands it work, however that
    dies, and is quiet.

    A task's messages are in its log; on the terminal they would run into those of others."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
