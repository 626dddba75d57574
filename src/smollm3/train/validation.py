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
from smollm3.train.job import HELD_OUT, TrainJob
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
    """Held-out rows (or pairs) of the stage's sources, each once: about `spec.rows` of them, of
    each source as its share of the tokens."""

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
        self.micro_batch = job.stage.micro_batch
        self.parts: dict[str, tuple[Loader, References | None]] = {}
        tokens = sum(shard.n_tokens for shard in shards.values())
        for name, shard in shards.items():
            rows = max(1, spec.rows * shard.n_tokens // tokens)
            self.parts[name] = self._part(name, shard, rows, job, pad_id, warn)

    def _part(
        self,
        name: str,
        shard: Shard,
        rows: int,
        job: TrainJob,
        pad_id: int,
        warn: Callable[[str], None],
    ) -> tuple[Loader, References | None]:
        """A row of each rank at a time, each once, at most so many."""
        stage = job.stage.model_copy(
            update={
                "mixture": {name: 1.0},
                "packing": "bfd",
                "batch": self.parallel.row_ranks,
                "epochs": 1.0,
                "steps": None,
                "tokens": None,
            }
        )
        shards = {name: shard}
        loader = Loader(shards, stage, {}, job.seed, pad_id)
        steps = max(1, min(loader.steps, rows // self.parallel.row_ranks))
        stage = stage.model_copy(update={"epochs": None, "steps": steps})
        loader = Loader(shards, stage, {}, job.seed, pad_id)
        if not stage.is_preference:
            return loader, None
        held = replace(job, stage=stage)
        return loader, references(held, shards, loader, self.group, self.parallel, warn)

    @torch.no_grad()
    def losses(self, loss: Loss) -> dict[str, float]:
        """`held_out_loss`, the mean over the trained-on tokens (or the pairs) of all sources, and
        where there are several `held_out_loss/SOURCE`; the same on every rank."""
        sums = torch.zeros(len(self.parts), 2, dtype=torch.float64, device=self.group.device)
        for (loader, pairs), own in zip(self.parts.values(), sums, strict=True):
            for k in range(loader.steps):
                batch = loader.batch(k, self.parallel.row_rank, self.parallel.row_ranks)
                for part in slices(batch, self.micro_batch):
                    found = loss(part, pairs)
                    own[0] += found.total
                    own[1] += found.weight
        self.parallel.add_dealt_(sums)
        total, weight = sums.sum(0).tolist()
        if not weight:
            raise UserError("validation: no held-out row has a token to answer; raise holdout")
        losses = {HELD_OUT: total / weight}
        if len(self.parts) > 1:
            for name, (total, weight) in zip(self.parts, sums.tolist(), strict=True):
                if weight:
                    losses[f"{HELD_OUT}/{name}"] = total / weight
        return losses


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
