"""Sharded training, applied to the model and not written into it.

Weights, gradients and moments are sharded by FSDP2 (`shard`), or that several times over
(`replicate`, HSDP). Tensor parallelism (`tp`) shares each product, with sequence-parallel norms
and a vocabulary-parallel cross-entropy. Context parallelism (`cp`) shares each row's columns: a
rank has its queries and gathers all keys and values. To FSDP a cp rank is one more shard. With
`offload` the shards are in the host's memory.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from smollm3 import checkpoint
from smollm3.checkpoint.weights import write_weights
from smollm3.data import Loader
from smollm3.data.batch import Batch
from smollm3.files import publish
from smollm3.model import ModelConfig, Transformer
from smollm3.train.forward import Forward, compile_parts, use_float8
from smollm3.train.layout import Layout
from smollm3.train.mirror import Mirror
from smollm3.train.parts import Read, fill_model, local
from smollm3.train.process_group import ProcessGroup
from smollm3.train.recompute import apply_recompute
from smollm3.train.spec import TrainStage
from smollm3.train.training_checkpoint import Description, delete_old, folder_of

# Its name up to PyTorch 2.12 was the second one.
_all_gather: Any = (
    getattr(collectives, "all_gather_single_autograd", None)
    or collectives.all_gather_tensor_autograd
)


class Sharded:
    """The ranks as a mesh, and what each does with its part of the model."""

    def __init__(self, group: ProcessGroup, stage: TrainStage, layout: Layout) -> None:
        self.group, self.stage = group, stage
        self.layout_, self.layout = layout, str(layout)
        self.row_rank, self.row_ranks = layout.row_rank(group.rank), layout.rows
        kind = group.device.type
        if not dist.is_initialized():  # one process alone
            backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
        self.mesh = init_device_mesh(
            kind,
            (layout.replicate, layout.shard * layout.cp, layout.tp),
            mesh_dim_names=("replicate", "shard", "tp"),
        )
        self.cp_group: dist.ProcessGroup | None = None
        if layout.cp > 1:
            by_columns = (layout.rows, layout.cp, layout.tp)
            names = ("rows", "cp", "tp")
            self.cp_group = init_device_mesh(kind, by_columns, mesh_dim_names=names)[
                "cp"
            ].get_group()

    def model(self, config: ModelConfig, read: Read | None) -> Transformer:
        """A model whose parameters are this rank's parts; none ever held more.

        read: the weights; None: they come later.
        """
        held = torch.device("cpu") if self.layout_.offload else self.group.device
        model = self.meta_model(config).to_empty(device=held)
        return fill_model(model, read) if read is not None else model

    def meta_model(self, config: ModelConfig) -> Transformer:
        """The model in parts, without memory."""
        with torch.device("meta"):
            model = Transformer(config)
        if self.layout_.tp > 1:
            parallelize_module(model, self.mesh["tp"], _tensor_parallel(config))
            if config.tied:
                model.unembed.weight = model.embed.weight
            model.norm.register_forward_hook(_all_columns)
        if self.stage.precision == "float8":
            use_float8(model, self.group.device)
        apply_recompute(model, self.stage.recompute)
        if self.stage.compile:
            compile_parts(model)
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self.stage.is_half else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        pinned = self.group.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=pinned) if self.layout_.offload else OffloadPolicy()
        mesh = (
            self.mesh["shard"] if self.layout_.replicate == 1 else self.mesh["replicate", "shard"]
        )
        for module in (*model.blocks, model):  # the model: embedding, last norm and head
            fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # The loss is a sum, divided last. Some ranks may have no weight at all.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        register_fsdp_forward_method(model, "hidden")
        return model

    def forward(self, model: Transformer) -> Forward:
        return Forward(
            model,
            self.stage,
            self.group.device,
            lambda width: self.layout_.columns(self.group.rank, width),
            self._gather if self.layout_.cp > 1 else None,
            autocast=False,
            multiple=self.layout_.cuts,
        )

    def gradients(self, model: Transformer, others: int) -> ShardGradients:
        # Ranks that computed the very same sums: of a preference loss also those of one row.
        copies = self.layout_.tp * (self.layout_.cp if self.stage.is_preference else 1)
        return ShardGradients(model, others, self.group, copies)

    def losses(self) -> AbstractContextManager[object]:
        """Around a loss and its backward pass: logits lie on the ranks by vocabulary."""
        return loss_parallel() if self.layout_.tp > 1 else nullcontext()

    def add_columns(self, sums_B: Tensor) -> Tensor:
        """The sum over the ranks that have the row's other columns, for each its own gradient."""
        if self.cp_group is None:
            return sums_B
        total_B: Tensor = _AddColumns.apply(sums_B, self.cp_group)  # type: ignore[no-untyped-call]
        return total_B

    def deal(self, loader: Loader, k: int) -> Batch | None:
        return loader.batch(k, self.row_rank, self.row_ranks)

    def add_dealt_(self, sums: Tensor) -> None:
        self.group.all_reduce_(sums)
        sums /= self.layout_.tp * self.layout_.cp

    def release(self, model: Transformer) -> None:
        """After forward passes without a backward: let go of the weights gathered for them, which
        would stand for the parameters until the next step."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """All of each tensor, in the main process's own memory; every rank calls this."""
        gathered = ((name, _whole(tensor)) for name, tensor in tensors.items())
        if self.group.is_main_process:
            return {name: tensor.cpu() for name, tensor in gathered}
        for _ in gathered:
            pass
        return {}

    def checkpoints(
        self, folder: Path, keep_every: int | None, mirror: Mirror | None = None
    ) -> AsyncCheckpoints:
        return AsyncCheckpoints(folder, keep_every, self.group, mirror)

    def write(self, model: Transformer, moments: dict[str, Tensor], folder: Path) -> Path | None:
        """All ranks together write `folder`: the weights by their published names, the moments."""
        if self.group.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
        dist.barrier()
        weights = {checkpoint.published_name(n): p for n, p in model.named_parameters()}
        for stem, tensors in (("model", weights), ("optimizer", moments)):
            write_weights(
                folder,
                {name: tensor.numel() * tensor.itemsize for name, tensor in tensors.items()},
                lambda name, tensors=tensors: _whole(tensors[name]),  # type: ignore[misc]
                stem=stem,
                writer=self.group.rank,
                writers=self.group.size,
            )
        dist.barrier()
        return folder

    def _gather(self, x_BT: Tensor) -> Tensor:
        """[B, own columns, ...] of every cp rank as [B, all columns, ...] in the row's order."""
        assert self.cp_group is not None
        by_rank = _all_gather(x_BT.contiguous(), 0, self.cp_group)
        by_rank = by_rank.unflatten(0, (self.layout_.cp, x_BT.shape[0]))
        # Rank c has chunks c and 2·cp-1-c: first all first halves, then the second ones backwards.
        early, late = by_rank.chunk(2, dim=2)
        return torch.cat([*early, *late.flip(0)], dim=1)


def _tensor_parallel(config: ModelConfig) -> dict[str, ParallelStyle]:
    """How each module takes and gives its tensors. Between the products the sequence is shared:
    Shard(1) of [B, T, E]."""
    rows, whole = Shard(1), Replicate()
    plan: dict[str, ParallelStyle] = {
        "embed": RowwiseParallel(input_layouts=whole, output_layouts=rows, use_local_output=False),
        "norm": SequenceParallel(),
        "unembed": ColwiseParallel(use_local_output=False),
    }
    for i in range(config.layers):
        block = f"blocks.{i}."
        plan |= {
            f"{block}attention_norm": SequenceParallel(),
            f"{block}attention": PrepareModuleInput(
                input_layouts=(rows, None, None), desired_input_layouts=(whole, None, None)
            ),
            f"{block}ffn_norm": SequenceParallel(),
            f"{block}ffn": PrepareModuleInput(input_layouts=rows, desired_input_layouts=whole),
        }
        plan |= {
            f"{block}{name}": ColwiseParallel()
            for name in ("attention.q", "attention.k", "attention.v", "ffn.gate", "ffn.up")
        }
        plan |= {
            f"{block}{name}": RowwiseParallel(output_layouts=rows, use_local_output=False)
            for name in ("attention.o", "ffn.down")
        }
    return plan


def _all_columns(norm: Any, inputs: Any, h_BTE: DTensor) -> Tensor:
    """The last states on every tp rank; each makes the logits of its part of the vocabulary."""
    return h_BTE.redistribute(placements=[Replicate()]).to_local().clone()  # FSDP wants no view


class _AddColumns(torch.autograd.Function):
    """Sum over a group whose ranks all go on with it; each then has the whole gradient already."""

    @staticmethod
    def forward(ctx: Any, sums_B: Tensor, group: dist.ProcessGroup) -> Tensor:
        total_B = sums_B.clone()
        dist.all_reduce(total_B, group=group)
        return total_B

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None]:
        return grad_B, None


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


class ShardGradients:
    """FSDP has added up the gradients as they were made; the sums here are the rest."""

    def __init__(self, model: Transformer, others: int, group: ProcessGroup, copies: int) -> None:
        self.parameters = list(model.parameters())
        self.group, self.copies = group, copies
        self.others = torch.zeros(others, device=group.device)

    def zero(self) -> None:
        self.others.zero_()
        for parameter in self.parameters:
            parameter.grad = None

    def sum(self) -> list[float]:
        """Add up the ranks: the norm of all gradients, and the others. One copy to the host."""
        norms = torch.stack(torch._foreach_norm(self._held()))
        held = torch.tensor([_holders(p) for p in self.parameters], device=norms.device)
        square = (norms.double().square() / held).sum()[None]
        sums = torch.cat([square.to(self.others.device), self.others.double() / self.copies])
        self.group.all_reduce_(sums)
        sums[0].sqrt_()
        values: list[float] = sums.tolist()
        return values

    def _held(self) -> list[Tensor]:
        return [local(p.grad) for p in self.parameters if p.grad is not None]

    def scale(self, factor: float) -> None:
        torch._foreach_mul_(self._held(), factor)


def _holders(parameter: Tensor) -> int:
    """How many ranks hold the very same part of a parameter."""
    assert isinstance(parameter, DTensor)
    holders = 1
    for placement, size in zip(parameter.placements, parameter.device_mesh.shape, strict=True):
        holders *= size if placement.is_replicate() else 1
    return holders


class AsyncCheckpoints:
    """Each rank copies its shards to the host and goes on training while a thread writes them."""

    def __init__(
        self, folder: Path, keep_every: int | None, group: ProcessGroup, mirror: Mirror | None
    ) -> None:
        self.folder, self.keep_every, self.group, self.mirror = folder, keep_every, group, mirror
        # A group of its own: the writing threads talk while training does.
        self.own_group = dist.new_group(backend="gloo")
        # From a GPU into pinned memory, kept for the next checkpoint, as getting it takes seconds.
        pinned = group.device.type == "cuda"
        self.stager = BlockingAsyncStager(cache_staged_state_dict=pinned)
        self.pool = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def save(self, description: Description, tensors: dict[str, Tensor]) -> None:
        """Begin to write a checkpoint, after the one before it."""
        self.finish()
        final = folder_of(self.folder, description.progress.step)
        partial = final.with_name(f".{final.name}.partial")
        if self.group.is_main_process:
            partial.mkdir(parents=True, exist_ok=True)
            for left in partial.iterdir():
                left.unlink()
        dist.barrier(self.own_group)
        written = async_save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            async_stager=self.stager,
            storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
            process_group=self.own_group,
        )
        self.pending = self.pool.submit(self._publish, written, description, partial, final)

    def _publish(self, written: Any, description: Description, partial: Path, final: Path) -> None:
        written.result()  # the main process's save ends when it has heard from every rank
        if self.group.is_main_process:
            description.write(partial)
            publish(partial, final)
            delete_old(self.folder, self.keep_every)
            if self.mirror is not None:
                self.mirror.put(final, self.keep_every)

    def finish(self) -> None:
        """Every checkpoint is on the disk when this returns, on all ranks."""
        if self.pending is not None:
            self.pending.result()
            self.pending = None
            if self.mirror is not None:
                self.mirror.tell()
            dist.barrier(self.own_group)
