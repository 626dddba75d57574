"""The memory of one rank of any number of ranks, from the real sharded step: on one CPU, under fake
tensors and a fake process group, so that nothing is computed, sent or allocated.

    python -m smollm3.train.simulate smollm3-3b stage1 384
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smollm3.data.batch import Batch
from smollm3.model import ModelConfig, Rope, causal
from smollm3.train import optimizer as optimizers
from smollm3.train.layout import Layout
from smollm3.train.losses import negative_log_likelihood
from smollm3.train.parallel import Sharded
from smollm3.train.parts import local
from smollm3.train.process_group import ProcessGroup
from smollm3.train.spec import TrainStage


def peak_bytes(config: ModelConfig, stage: TrainStage, layout: Layout) -> int:
    """Most bytes that rank 0 holds in a step of one micro-batch: weights, gradients, moments,
    gathered layers, activations, logits. Needs a process without a process group of its own."""
    from torch.distributed._tools.mem_tracker import MemTracker
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.size)
    try:
        sharded = Sharded(ProcessGroup(0, layout.size, torch.device("cpu")), stage, layout)
        model = sharded.meta_model(config)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model.to_empty(device="cpu")
            forward = sharded.forward(model)
            optimizer = optimizers.adamw(model, stage.optimizer)
            held = optimizers.empty_tensors(optimizer, model)
            moments = {name: local(t) for name, t in held.items()}
            tracker: Any = MemTracker()
            tracker.track_external(model)
            with tracker, sharded.losses():
                batch = forward.mine(_batch(stage, layout))
                T = batch.ids_BT.shape[1]
                rope = Rope(forward.rope.cos[:T], forward.rope.sin[:T])
                h_BTE = model.hidden(batch.ids_BT, rope, causal)
                # As `losses`, but that every position counts: fake weights have no values.
                targets_N = batch.targets_BT.flatten()
                loss_N = negative_log_likelihood(model, h_BTE.flatten(0, 1), targets_N)
                torch.autograd.backward(loss_N.sum())
            peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
        taken = sum(moment.numel() * moment.itemsize for moment in moments.values())
        return int(max(peak.values())) + taken
    finally:
        dist.destroy_process_group()


def _batch(stage: TrainStage, layout: Layout) -> Batch:
    """A micro-batch of rows that are one document each."""
    rows = -(-stage.batch // layout.rows)
    rows = min(rows, stage.micro_batch or rows) * (2 if stage.is_preference else 1)
    ids_BT = torch.zeros(rows, stage.context, dtype=torch.int64)
    weights_BT: Tensor = torch.ones(rows, stage.context)
    return Batch(ids_BT, ids_BT, weights_BT, ids_BT, {})
