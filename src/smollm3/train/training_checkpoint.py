"""Training checkpoints: all that a run needs to resume, in folders that are whole or absent.

`checkpoints/step-N/` holds tensors.safetensors (weights, optimizer state) and trainer_state.json
(progress, the job's digest, the environment, the tensors' checksum). The two newest are kept: one
is good even while the next is written, and if the newest is damaged later.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import UserError
from smollm3.files import new_folder, read_json, sha256_file, write_json
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.loss_spike import LossSpikeGuard

KEPT = 2
TENSORS, DESCRIPTION = "tensors.safetensors", "trainer_state.json"


@dataclass
class Progress:
    """step: steps done. loss: of the last one, None if it was no number. seconds: of all steps.

    resumed_under: for each resume in another environment, key -> [before, after].
    """

    step: int = 0
    loss: float | None = None
    seconds: float = 0.0
    loss_spike_guard: LossSpikeGuard = field(default_factory=LossSpikeGuard)
    resumed_under: list[dict[str, list[Any]]] = field(default_factory=list)


def environment(threads: int, processes: int, precision: str, compiled: bool) -> dict[str, Any]:
    """What, beside the job, decides the bits of the result."""
    return {
        "torch": torch.__version__,
        "threads": threads,
        "processes": processes,
        "precision": precision,
        "compile": compiled,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step}"


def save(
    checkpoints: Path,
    progress: Progress,
    tensors: dict[str, Tensor],
    job: str,
    environment: dict[str, Any],
) -> None:
    """Add the checkpoint of `progress.step`; afterwards delete all but the newest two."""
    with new_folder(folder_of(checkpoints, progress.step)) as folder:
        write_tensors(folder / TENSORS, tensors)
        write_json(
            folder / DESCRIPTION,
            {
                "progress": asdict(progress),
                "job": job,
                "environment": environment,
                "sha256": sha256_file(folder / TENSORS),
            },
        )
    for old in _newest_first(checkpoints)[KEPT:]:
        shutil.rmtree(old)


def find(
    checkpoints: Path, job: str, environment: dict[str, Any], warn: Callable[[str], None]
) -> Progress | None:
    """The progress of the newest good checkpoint, or None.

    Damaged checkpoints are named to `warn` and removed. One of another job is a UserError.
    What is different in today's `environment` is named to `warn` and noted in the progress.
    """
    for folder in _newest_first(checkpoints):
        try:
            content = read_json(folder / DESCRIPTION)
            progress, before = _progress(content["progress"]), dict(content["environment"])
            same_job = content["job"] == job
            damaged = content["sha256"] != sha256_file(folder / TENSORS)
        except (UserError, KeyError, TypeError, OSError):
            damaged = True
        if damaged:
            warn(f"{folder}: damaged; resuming from the checkpoint before it")
            shutil.rmtree(folder)
            continue
        if not same_job:
            raise UserError(
                f"{folder}: the checkpoint of another job (other settings or inputs); "
                f"delete {checkpoints} to start again"
            )
        _note_environment(progress, before, environment, folder, warn)
        return progress
    return None


def read(checkpoints: Path, step: int) -> tuple[Progress, dict[str, Tensor]]:
    """A checkpoint that `find` has found good."""
    folder = folder_of(checkpoints, step)
    return _progress(read_json(folder / DESCRIPTION)["progress"]), read_tensors(folder / TENSORS)


def _progress(content: dict[str, Any]) -> Progress:
    return Progress(**content | {"loss_spike_guard": LossSpikeGuard(**content["loss_spike_guard"])})


def _note_environment(
    progress: Progress,
    before: dict[str, Any],
    now: dict[str, Any],
    folder: Path,
    warn: Callable[[str], None],
) -> None:
    changed = {
        key: [before.get(key), now.get(key)]
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    if changed:
        what = ", ".join(f"{key} {new} (was {old})" for key, (old, new) in changed.items())
        warn(f"{folder}: resumed under {what}; the last bits of the weights may come out different")
        progress.resumed_under.append(changed)


def _newest_first(checkpoints: Path) -> list[Path]:
    """Finished checkpoints; a partial one that a killed process left starts with a dot."""
    folders = [f for f in checkpoints.glob("step-*") if f.name.removeprefix("step-").isdigit()]
    return sorted(folders, key=lambda f: int(f.name.removeprefix("step-")), reverse=True)
