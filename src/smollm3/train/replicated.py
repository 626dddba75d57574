"""Every rank holds the whole model and takes its rows of a batch; one sum over the ranks a step."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from smollm3.data import Loader
from smollm3.data.batch import Batch
from smollm3.model import ModelConfig, Transformer
from smollm3.train import state
from smollm3.train.forward import Forward, compile_blocks
from smollm3.train.parts import Read, fill_model
from smollm3.train.recompute import apply_recompute
from smollm3.train.spec import TrainStage
from smollm3.train.world import World


class Replicated:
    """The parallelism of a laptop."""

    layout: str | None = None

    def __init__(self, world: World, stage: TrainStage) -> None:
        self.world, self.stage = world, stage
        self.row_rank, self.row_ranks = world.rank, world.size

    def model(self, config: ModelConfig, read: Read | None) -> Transformer:
        """read: the weights; None: they come later."""
        model = Transformer(config).to(self.world.device)
        if read is not None:
            fill_model(model, read)
        apply_recompute(model, self.stage.recompute)
        if self.stage.compile:
            compile_blocks(model)
        return model

    def forward(self, model: Transformer) -> Forward:
        return Forward(model, self.stage, self.world.device)

    def gradients(self, model: Transformer, others: int) -> FlatGradients:
        return FlatGradients(model, others, self.world)

    def losses(self) -> AbstractContextManager[object]:
        """Around a loss and its backward pass."""
        return nullcontext()

    def add_columns(self, sums_B: Tensor) -> Tensor:
        return sums_B

    def deal(self, loader: Loader, k: int) -> Batch | None:
        """What of batch k this rank computes alone: all of it, or nothing."""
        return loader.batch(k) if k % self.world.size == self.world.rank else None

    def add_dealt_(self, sums: Tensor) -> None:
        """Sum over the ranks what they computed of the dealt batches."""
        self.world.all_reduce_(sums)

    def states(self, folder: Path, keep_every: int | None) -> States:
        return States(folder, keep_every, self.world)

    def write(self, model: Transformer, moments: dict[str, Tensor], folder: Path) -> Path | None:
        """Nothing to write together."""
        return None


class FlatGradients:
    """Gradients as views of one buffer, with room for the step's other sums behind them.

    One sum over the ranks then moves everything, and norm and scale are one operation each.
    """

    def __init__(self, model: Transformer, others: int, world: World) -> None:
        self.world = world
        parameters = list(model.parameters())
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes) + others, device=parameters[0].device)
        self.all, self.others = torch.split(self.flat, [sum(sizes), others])
        for parameter, part in zip(parameters, torch.split(self.all, sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    def zero(self) -> None:
        self.flat.zero_()

    def sum(self) -> list[float]:
        """Add up the ranks: the norm of all gradients, and the others. One copy to the host."""
        self.world.all_reduce_(self.flat)
        norm = torch.linalg.vector_norm(self.all)[None]
        sums: list[float] = torch.cat([norm, self.others]).tolist()
        return sums

    def scale(self, factor: float) -> None:
        self.all.mul_(factor)


class States:
    """The leader writes whole tensors while the others wait at the next sum."""

    def __init__(self, folder: Path, keep_every: int | None, world: World) -> None:
        self.folder, self.keep_every, self.world = folder, keep_every, world

    def save(self, description: state.Description, tensors: dict[str, Tensor]) -> None:
        if self.world.leads:
            state.save(self.folder, description, tensors, self.keep_every)

    def finish(self) -> None:
        """Every state is on the disk when this returns."""
