"""The loss on held-out documents while a stage trains, and the weights of its best look."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm3.data import Loader, Shard
from smollm3.data.batch import Batch
from smollm3.errors import UserError
from smollm3.files import new_folder
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.forward import slices
from smollm3.train.job import TrainJob
from smollm3.train.losses import LossSums
from smollm3.train.process_group import ProcessGroup
from smollm3.train.reference import References, references
from smollm3.train.replicated import Replicated
from smollm3.train.spec import Validation

if TYPE_CHECKING:
    from smollm3.train.parallel import Sharded

Loss = Callable[[Batch, References | None], LossSums]
FILE = "weights.safetensors"


class Validator:
    """Every held-out row (or pair) of the stage's sources once, at most `spec.rows` of them."""

    def __init__(
        self,
        spec: Validation,
        job: TrainJob,
        group: ProcessGroup,
        parallel: Replicated | Sharded,
        pad_id: int,
        warn: Callable[[str], None],
    ) -> None:
        self.spec, self.group, self.parallel = spec, group, parallel
        shards = {name: Shard.open(Path(f), "heldout") for name, f in job.shards.items()}
        for name, shard in shards.items():
            if not shard.documents:
                raise UserError(f"sources.{name}: nothing of it is held out; raise its holdout")
        # A row of each rank at a time and sources by their size, so that nothing is seen twice.
        stage = job.stage.model_copy(
            update={
                "mixture": {name: float(shard.n_tokens) for name, shard in shards.items()},
                "packing": "bfd",
                "batch": parallel.row_ranks,
                "epochs": 1.0,
                "steps": None,
                "tokens": None,
            }
        )
        self.micro_batch = job.stage.micro_batch
        loader = Loader(shards, stage, {}, job.seed, pad_id)
        steps = max(1, min(loader.steps, spec.rows // parallel.row_ranks))
        stage = stage.model_copy(update={"epochs": None, "steps": steps})
        self.loader = Loader(shards, stage, {}, job.seed, pad_id)
        self.references = None
        if stage.is_preference:
            held = replace(job, stage=stage)
            self.references = references(held, shards, self.loader, group, parallel, warn)

    @torch.no_grad()
    def loss(self, loss: Loss) -> float:
        """Mean over the trained-on tokens (or the pairs), the same on every rank."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for k in range(self.loader.steps):
            batch = self.loader.batch(k, self.parallel.row_rank, self.parallel.row_ranks)
            for part in slices(batch, self.micro_batch):
                found = loss(part, self.references)
                sums[0] += found.total
                sums[1] += found.weight
        self.parallel.add_dealt_(sums)
        total, weight = sums.tolist()
        if not weight:
            raise UserError("validation: no held-out row has a token to answer; raise holdout")
        return float(total / weight)


def keep(work: Path, step: int, tensors: dict[str, Tensor]) -> None:
    """Put the best weights beside the training checkpoints; those before them go when the next
    training checkpoint is there (`forget`)."""
    with new_folder(work / "best" / f"step-{step}") as folder:
        write_tensors(folder / FILE, tensors)


def kept(work: Path, step: int) -> dict[str, Tensor]:
    return read_tensors(work / "best" / f"step-{step}" / FILE)


def forget(work: Path, step: int) -> None:
    """Delete all that were kept but those of `step`."""
    for folder in (work / "best").glob("step-*"):
        if folder.name != f"step-{step}":
            shutil.rmtree(folder)
