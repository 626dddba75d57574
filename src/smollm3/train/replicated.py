"""Every rank holds the whole model and takes its rows of a batch; one sum over the ranks a step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from smollm3.data import Loader
from smollm3.data.batch import Batch
from smollm3.model import ModelConfig, Transformer
from smollm3.train import training_checkpoint
from smollm3.train.adapters import adapted, trained
from smollm3.train.forward import Forward, compile_parts, use_float8
from smollm3.train.mirror import Mirror
from smollm3.train.parts import Read, fill_model
from smollm3.train.process_group import ProcessGroup
from smollm3.train.recompute import apply_recompute
from smollm3.train.spec import TrainStage
from smollm3.train.training_checkpoint import Description


class Replicated:
    """The parallelism of a laptop, and of adapters."""

    layout: str | None = None

    def __init__(self, group: ProcessGroup, stage: TrainStage) -> None:
        self.group, self.stage = group, stage
        self.row_rank, self.row_ranks = group.rank, group.size

    def model(self, config: ModelConfig, read: Read | None) -> Transformer:
        """read: the weights; None, for a model without an adapter: they come later."""
        adapter, device = self.stage.adapter, self.group.device
        if adapter is not None:
            assert read is not None  # the base does not lie in a training checkpoint
            model = adapted(config, adapter, read, half=self.stage.is_half, device=device)
        else:
            model = Transformer(config).to(device)
            if read is not None:
                fill_model(model, read)
        if self.stage.precision == "float8":
            use_float8(model, device)
        apply_recompute(model, self.stage.recompute)
        if self.stage.compile:
            compile_parts(model)
        return model

    def forward(self, model: Transformer) -> Forward:
        return Forward(model, self.stage, self.group.device)

    def gradients(self, model: Transformer, others: int) -> FlatGradients:
        return FlatGradients(model, others, self.group)

    def losses(self) -> AbstractContextManager[object]:
        """Around a loss and its backward pass."""
        return nullcontext()

    def add_columns(self, sums_B: Tensor) -> Tensor:
        return sums_B

    def deal(self, loader: Loader, k: int) -> Batch | None:
        """What of batch k this rank computes alone: all of it, or nothing."""
        return loader.batch(k) if k % self.group.size == self.group.rank else None

    def add_dealt_(self, sums: Tensor) -> None:
        """Sum over the ranks what they computed of the dealt batches."""
        self.group.all_reduce_(sums)

    def release(self, model: Transformer) -> None:
        """After forward passes without a backward: let go of what was gathered for them."""

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of each tensor, on the main process; every rank calls this."""
        return tensors

    def checkpoints(
        self, folder: Path, keep_every: int | None, mirror: Mirror | None = None
    ) -> Checkpoints:
        return Checkpoints(folder, keep_every, self.group, mirror)

    def write(self, model: Transformer, moments: dict[str, Tensor], folder: Path) -> Path | None:
        """Nothing to write together."""
        return None


class FlatGradients:
    """Gradients as views of one buffer, with room for the step's other sums behind them.

    One sum over the ranks then moves everything, and norm and scale are one operation each.
    """

    def __init__(self, model: Transformer, others: int, group: ProcessGroup) -> None:
        self.group = group
        parameters = list(trained(model).values())
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes) + others, device=parameters[0].device)
        self.all, self.others = torch.split(self.flat, [sum(sizes), others])
        for parameter, part in zip(parameters, torch.split(self.all, sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def zero(self) -> None:
        self.flat.zero_()

    def sum(self) -> list[float]:
        """Add up the ranks: the norm of all gradients, and the others. One copy to the host."""
        self.group.all_reduce_(self.flat)
        norm = torch.linalg.vector_norm(self.all)[None]
        sums: list[float] = torch.cat([norm, self.others]).tolist()
        return sums

    def scale(self, factor: float) -> None:
        self.all.mul_(factor)


class Checkpoints:
    """The main process writes whole tensors while the others wait at the next sum; what goes to a
    mirror goes while training does."""

    def __init__(
        self, folder: Path, keep_every: int | None, group: ProcessGroup, mirror: Mirror | None
    ) -> None:
        self.folder, self.keep_every, self.group, self.mirror = folder, keep_every, group, mirror
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def save(self, description: Description, tensors: dict[str, Tensor]) -> None:
        if not self.group.is_main_process:
            return
        self.finish()  # what is being copied must not be deleted as old
        training_checkpoint.save(self.folder, description, tensors, self.keep_every)
        if self.mirror is not None:
            new = training_checkpoint.folder_of(self.folder, description.progress.step)
            self.pending = self.pool.submit(self.mirror.put, new, self.keep_every)

    def finish(self) -> None:
        """Every checkpoint is where it belongs when this returns."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
            if self.mirror is not None:
                self.mirror.tell()
