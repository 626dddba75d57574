"""Training checkpoints: all that a run needs to resume, in folders that are whole or absent.

`checkpoints/step-N/` holds the weights and the optimizer state in safetensors files and
trainer_state.json (progress, the job's digest, the environment, the files' checksums). A model that
every rank holds whole is one file, tensors.safetensors; of a sharded one each rank writes its parts
(`parallel.py`). Either is read by any number of ranks. The two newest are kept: one is good even
while the next is written, and if the newest is damaged later.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.errors import UserError
from smollm3.files import new_folder, read_json, sha256_file, write_json
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.looks import Looks
from smollm3.train.loss_spike import LossSpikeGuard
from smollm3.train.parts import fill

KEPT = 2
TENSORS, DESCRIPTION = "tensors.safetensors", "trainer_state.json"


@dataclass
class Progress:
    """step: steps done. loss: of the last one, None if it was no number. seconds: of all steps.

    looks: at the held-out loss. resumed_under: for each resume in another environment, key ->
    [before, after].
    """

    step: int = 0
    loss: float | None = None
    seconds: float = 0.0
    loss_spike_guard: LossSpikeGuard = field(default_factory=LossSpikeGuard)
    looks: Looks = field(default_factory=Looks)
    resumed_under: list[dict[str, list[Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Description:
    """What trainer_state.json says beside the checksums. job: its digest."""

    progress: Progress
    job: str
    environment: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Make the safetensors files of `folder` a checkpoint."""
        content = asdict(self) | {"files": checksums(sorted(folder.glob("*.safetensors")))}
        write_json(folder / DESCRIPTION, content)


def environment(
    threads: int, processes: int, precision: str, compiled: bool, layout: str | None = None
) -> dict[str, Any]:
    """What, beside the job, decides the bits of the result. layout: of a sharded model."""
    return {
        "torch": torch.__version__,
        "threads": threads,
        "processes": processes,
        "layout": layout,
        "precision": precision,
        "compile": compiled,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step}"


def save(
    checkpoints: Path, description: Description, tensors: dict[str, Tensor], keep_every: int | None
) -> None:
    """Add the checkpoint of the description's step; afterwards delete old ones."""
    with new_folder(folder_of(checkpoints, description.progress.step)) as folder:
        write_tensors(folder / TENSORS, tensors)
        description.write(folder)
    delete_old(checkpoints, keep_every)


def kept(steps: Iterable[int], keep_every: int | None) -> set[int]:
    """Of checkpoints at these steps the newest two, and those of every `keep_every`-th step."""
    newest = sorted(steps)[-KEPT:]
    return {step for step in steps if step in newest or (keep_every and step % keep_every == 0)}


def steps_in(checkpoints: Path) -> set[int]:
    """Steps of the finished checkpoints; a partial one, left by a kill, starts with a dot."""
    names = (f.name.removeprefix("step-") for f in checkpoints.glob("step-*"))
    return {int(name) for name in names if name.isdigit()}


def delete_old(checkpoints: Path, keep_every: int | None) -> None:
    """Leave those that are `kept`."""
    steps = steps_in(checkpoints)
    for step in steps - kept(steps, keep_every):
        shutil.rmtree(folder_of(checkpoints, step))


def find(
    checkpoints: Path, job: str, environment: dict[str, Any], warn: Callable[[str], None]
) -> Progress | None:
    """The progress of the newest good checkpoint, or None.

    Damaged checkpoints are named to `warn` and removed. One of another job is a UserError.
    What is different in today's `environment` is named to `warn` and noted in the progress.
    """
    for step in sorted(steps_in(checkpoints), reverse=True):
        folder = folder_of(checkpoints, step)
        try:
            content = read_json(folder / DESCRIPTION)
            progress, before = _progress(content["progress"]), dict(content["environment"])
            same_job = content["job"] == job
            damaged = content["files"] != checksums(folder / name for name in content["files"])
        except (UserError, KeyError, TypeError, AttributeError, OSError):
            damaged = True
        if damaged:
            warn(f"{folder}: damaged; resuming from the checkpoint before it")
            shutil.rmtree(folder)
            continue
        if not same_job:
            raise UserError(
                f"{folder}: the checkpoint of another job (other settings or inputs); "
                f"delete {checkpoints} to start anew"
            )
        _note_environment(progress, before, environment, folder, warn)
        return progress
    return None


def read(checkpoints: Path, step: int, tensors: dict[str, Tensor]) -> Progress:
    """A checkpoint that `find` has found good. Of `tensors`, those that it has are set, what of
    each lies on this rank; the others are taken out."""
    folder = folder_of(checkpoints, step)
    progress = _progress(read_json(folder / DESCRIPTION)["progress"])
    if (folder / TENSORS).exists():
        stored = read_tensors(folder / TENSORS)
        for name in tensors.keys() - stored.keys():
            del tensors[name]
        fill(tensors, lambda name, shape, part: stored[name][part])
        return progress
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    for name in tensors.keys() - reader.read_metadata().state_dict_metadata.keys():
        del tensors[name]
    with warnings.catch_warnings():  # that it runs in one process: it does, each rank reads its own
        warnings.simplefilter("ignore", UserWarning)
        load(dict(tensors), storage_reader=reader, no_dist=True)
    return progress


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """sha256 of each file by its name, several at a time: hashing runs without Python's lock."""
    files = list(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip((file.name for file in files), pool.map(sha256_file, files), strict=True))


def _progress(content: dict[str, Any]) -> Progress:
    parts = {
        "loss_spike_guard": LossSpikeGuard(**content["loss_spike_guard"]),
        "looks": Looks(**content["looks"]),
    }
    return Progress(**content | parts)


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
