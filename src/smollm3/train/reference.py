"""Log-probs of preference pairs under the reference model (the parent), computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smollm3.data import Loader, Shard
from smollm3.errors import UserError
from smollm3.files import fsync_file, sha256_json
from smollm3.tensors import read_tensors, write_tensors
from smollm3.train.forward import slices
from smollm3.train.job import TrainJob
from smollm3.train.losses import log_probs
from smollm3.train.process_group import ProcessGroup
from smollm3.train.replicated import Replicated

if TYPE_CHECKING:
    from smollm3.train.parallel import Sharded

Pair = tuple[str, int]


class References:
    """Summed log-probs of both answers of every pair that a job will meet."""

    def __init__(self, pairs: Sequence[Pair], sums_P2: Tensor) -> None:
        self.sums_P2 = sums_P2
        self.index = {pair: i for i, pair in enumerate(pairs)}

    def rows(self, pairs: Sequence[Pair]) -> Tensor:
        """[2P], ordered like a batch's rows: all chosen, then all rejected."""
        return self.sums_P2[[self.index[pair] for pair in pairs]].T.flatten()


def references(
    job: TrainJob,
    shards: dict[str, Shard],
    loader: Loader,
    group: ProcessGroup,
    parallel: Replicated | Sharded,
    warn: Callable[[str], None],
) -> References:
    """Read them from beside the prepared data, or compute and store them there.

    The file is named by what decides its content: model, data, mask, row length and pairs. So
    it serves resumes, and other runs that change only the loss or the learning rate.
    """
    pairs = list(dict.fromkeys(pair for k in range(loader.steps) for pair in loader.batch(k).pairs))
    key = sha256_json(
        {
            "parent": job.parent_digest or job.seed,
            "model": asdict(job.model),
            "sources": {name: [shard.digest, shard.split] for name, shard in shards.items()},
            "base": job.stage.adapter and job.stage.adapter.base,
            "mask": job.stage.mask,
            "context": job.stage.context,
            "precision": job.stage.precision,
            "pairs": pairs,
        }
    )
    data = Path(next(iter(job.shards.values()))).parent
    path = data / f"reference-{key[:16]}.safetensors"
    sums_P2 = _stored(path, len(pairs), warn) if group.is_main_process else None
    if not group.broadcast_text("stored" if sums_P2 is not None else ""):
        sums_P2 = _compute(job, loader, group, parallel, pairs)
        if group.is_main_process:
            _store(path, sums_P2)
    elif sums_P2 is None:
        sums_P2 = read_tensors(path)["sums"]
    return References(pairs, sums_P2.to(group.device))


def _compute(
    job: TrainJob,
    loader: Loader,
    group: ProcessGroup,
    parallel: Replicated | Sharded,
    pairs: Sequence[Pair],
) -> Tensor:
    """[pairs, 2] on every rank. A pair is computed in the first batch that has it. Where each rank
    has the whole model, batches are dealt out whole, so the number of ranks changes no bit."""
    forward = parallel.forward(model := parallel.model(job.model, job.initial_weights()))
    row = {pair: i for i, pair in enumerate(pairs)}
    sums_P2 = torch.zeros(len(pairs), 2, device=group.device)
    seen: set[Pair] = set()
    for k in range(loader.steps):
        new = set(loader.batch(k).pairs) - seen
        seen |= new
        batch = parallel.deal(loader, k) if new else None
        if batch is None:
            continue
        for whole in slices(batch, job.stage.micro_batch):
            part = forward.mine(whole)
            with torch.no_grad(), parallel.losses(), forward.precision():
                sums_B = parallel.add_columns(log_probs(model, forward(part), part).sum(-1))
            for pair, both in zip(part.pairs, torch.stack(sums_B.chunk(2), 1), strict=True):
                if pair in new:
                    sums_P2[row[pair]] = both
    parallel.add_dealt_(sums_P2)  # every other rank has zeros there
    return sums_P2.cpu()


def _stored(path: Path, pairs: int, warn: Callable[[str], None]) -> Tensor | None:
    if not path.exists():
        return None
    try:
        sums_P2 = read_tensors(path).get("sums")
    except UserError as e:
        warn(f"{e}; computing it again")
        return None
    return sums_P2 if sums_P2 is not None and sums_P2.shape == (pairs, 2) else None


def _store(path: Path, sums_P2: Tensor) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    write_tensors(temporary, {"sums": sums_P2})
    fsync_file(temporary)
    temporary.replace(path)
