"""`smollm3 run RECIPE --slurm nodes=48,gpus=8,time=24h`: jobs of Slurm, one after another.

Each is a batch file that a person can read and send again. Training has all nodes; what comes
before and after it has one, so that no GPU waits for data or an evaluation. Slurm's own tools do
the rest: srun starts a task for each GPU (`train/launch.py`), a job whose time ends or that fails
is queued again, and a run that begins again resumes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated

from pydantic import Field

from smollm3.config import StrictModel
from smollm3.config.document import check
from smollm3.errors import UserError
from smollm3.files import write_atomic
from smollm3.recipe.schema import Recipe, Stage
from smollm3.train.spec import TrainStage

WARNING_SECONDS = 300  # from the signal to the end of a job's time: a step, and a checkpoint
LINGER_SECONDS = 120  # for ranks that others have left; a hanging one is then killed
RETRIES = 3  # of a job that fails, in a row

# 138 is SIGUSR1, before the time is over: go on in another job. 2 is a mistake of the user's, which
# another try does not fix; 0, 130 and 143 are meant. Slurm waits before it starts a job again.
TEMPLATE = """\
#!/bin/bash
{header}
cd {folder}
{commands}
code=$?
failures={failures}
case $code in
    138) rm -f $failures; exec scontrol requeue "$SLURM_JOB_ID" ;;
    0|2|130|143) rm -f $failures; exit $code ;;
esac
echo "code $code" >> $failures
[ "$(wc -l < $failures)" -gt {retries} ] && exit $code
exec scontrol requeue "$SLURM_JOB_ID"
"""

Word = Annotated[str, Field(pattern=r"^[\w.@:+/-]+$")]


class SlurmOptions(StrictModel):
    """nodes: of a training job. gpus: on each node, with a task for each; without, `tasks` on
    CPUs. time: of one job, which goes on in another. The others are sbatch's."""

    nodes: int = Field(default=1, gt=0)
    gpus: int = Field(default=0, ge=0)
    tasks: int = Field(default=1, gt=0)
    cpus: int | None = Field(default=None, gt=0)
    time: Word = "24h"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    reservation: Word | None = None
    constraint: Word | None = None

    @property
    def minutes(self) -> int:
        """`time` in Slurm's unit."""
        found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?", self.time)
        if not found or not any(found.groups()):
            raise UserError(f"--slurm time: {self.time!r} is no time such as 24h, 1d12h or 90m")
        days, hours, minutes = (int(group or 0) for group in found.groups())
        return (24 * days + hours) * 60 + minutes


def parse_options(text: str) -> SlurmOptions:
    """nodes=48,gpus=8,time=24h"""
    pairs = [part.partition("=") for part in text.split(",")]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"--slurm {wrong[0]}: write it as key=value, such as nodes=4,gpus=8")
    values = {key: int(value) if value.isdecimal() else value for key, _, value in pairs}
    options = check(SlurmOptions, values, lambda path: f"--slurm {'.'.join(map(str, path))}")
    _ = options.minutes
    return options


@dataclass(frozen=True)
class SlurmJob:
    """name: also of its file. trains: whether it has all nodes. commands: one after another."""

    name: str
    trains: bool
    commands: list[list[str]]


def jobs_of(recipe: Recipe, target: str, out: Path, overrides: Sequence[str]) -> list[SlurmJob]:
    """Stages that follow each other and need the same nodes are one job; before the first that
    trains comes one that prepares the data."""
    words = [target, "--out", str(out)]
    words += [word for override in overrides for word in ("--set", override)]
    jobs: list[SlurmJob] = []

    def add(trains: bool, names: list[str], commands: list[list[str]]) -> None:
        jobs.append(SlurmJob(f"{len(jobs) + 1}-{names[0]}", trains, commands))

    for trains, group in groupby(recipe.stages.items(), key=lambda item: _trains(item[1])):
        names = [name for name, _ in group]
        if trains and not any(job.trains for job in jobs):
            add(False, ["data"], [["data", "prepare", *words]])
        add(trains, names, [["run", *words, "--only", name] for name in names])
    return jobs


def _trains(stage: Stage) -> bool:
    return isinstance(stage, TrainStage)


def script(job: SlurmJob, recipe: Recipe, options: SlurmOptions, out: Path) -> str:
    """The batch file of a job."""
    tasks = options.gpus or options.tasks
    header = {
        "job-name": f"{recipe.name}-{job.name}",
        "nodes": options.nodes if job.trains else 1,
        "ntasks-per-node": tasks if job.trains else 1,
        "gpus-per-node": (options.gpus if job.trains else min(options.gpus, 1)) or None,
        "cpus-per-task": options.cpus,
        "time": options.minutes,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "reservation": options.reservation,
        "constraint": options.constraint,
        "output": out.resolve() / "slurm" / f"{job.name}.log",
        "open-mode": "append",
        "requeue": "",
        "signal": f"USR1@{WARNING_SECONDS}",
    }
    lines = [
        f"#SBATCH --{key}" + (f"={value}" if value != "" else "")
        for key, value in header.items()
        if value is not None
    ]
    # The ranks tell each other of deaths; srun would kill the one that writes the checkpoint.
    start = ["srun", "--kill-on-bad-exit=0", f"--wait={LINGER_SECONDS}"]
    start += [sys.executable, "-m", "smollm3"]
    commands = [shlex.join([*start, *command]) for command in job.commands]
    return TEMPLATE.format(
        header="\n".join(lines),
        folder=shlex.quote(str(Path.cwd())),
        commands=" &&\n".join(commands),
        failures=shlex.quote(str(out.resolve() / "slurm" / f"{job.name}.failures")),
        retries=RETRIES,
    )


def submit(
    recipe: Recipe, target: str, out: Path, overrides: Sequence[str], options: SlurmOptions
) -> list[tuple[SlurmJob, str]]:
    """Write the batch files to OUT/slurm and give them to sbatch, each to start when the one before
    has ended well; jobs with their numbers."""
    target = str(Path(target).resolve()) if Path(target).is_file() else target
    sent: list[tuple[SlurmJob, str]] = []
    for job in jobs_of(recipe, target, out, overrides):
        path = out / "slurm" / f"{job.name}.sbatch"
        write_atomic(path, script(job, recipe, options, out))
        words = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes"]
        words += [f"--dependency=afterok:{sent[-1][1]}"] if sent else []
        try:
            done = subprocess.run([*words, str(path)], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise UserError(
                f"--slurm: there is no sbatch on this machine; the jobs are in {path.parent}"
            ) from None
        if done.returncode:
            begun = f"; cancel {', '.join(n for _, n in sent)}" if sent else ""
            raise UserError(f"--slurm: sbatch {path}: {done.stderr.strip()}{begun}")
        sent.append((job, done.stdout.strip().split(";")[0]))
    return sent
