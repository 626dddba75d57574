"""What a training stage is given, and what it hands back."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor

from smollm3 import checkpoint
from smollm3.checkpoint.adapter import AdapterWeights, read_adapter, write_adapter
from smollm3.checkpoint.locate import ADAPTER
from smollm3.data import Shard
from smollm3.files import sha256_file, sha256_json
from smollm3.model import ModelConfig, Transformer, initial_weight
from smollm3.tensors import write_tensors
from smollm3.tokenizer import Tokenizer
from smollm3.train.adapters import initial
from smollm3.train.parts import Read
from smollm3.train.spec import MANNER, Parallel, TrainStage

HELD_OUT, SCORE = "held_out_loss", "score/"  # what a step's metrics of a look begin with


@dataclass(frozen=True)
class TrainJob:
    """One stage with its inputs; JSON-able, so that it can be handed to other processes.

    parent: model to start from; None: fresh weights from (`seed`, `model`).
    model: the configuration in force; it may differ from the parent's in theta and context.
    tokenizer: folder. shards: source -> prepared folder. start: source -> token offset.
    optimizer: file of the optimizer state to continue with. work: folder for training checkpoints
    and metrics.jsonl.
    threads: of each process. parallel: how the processes share the work. states: URL of copies of
    the training checkpoints.
    """

    stage: TrainStage
    parent: str | None
    model: ModelConfig
    tokenizer: str
    shards: dict[str, str]
    start: dict[str, int]
    optimizer: str | None
    work: str
    seed: int
    threads: int = 1
    parallel: Parallel = field(default_factory=Parallel)
    states: str | None = None

    def to_json(self) -> str:
        return json.dumps(_adapter().dump_python(self, mode="json", by_alias=True))

    @staticmethod
    def from_json(text: str) -> TrainJob:
        return _adapter().validate_python(json.loads(text))

    def digest(self, shards: dict[str, Shard]) -> str:
        """Checksum of everything that decides the result, by content and not by place.

        What only moves the last bits (threads, compile, precision, parallel) is not in it: a
        training checkpoint records it apart, see `training_checkpoint.environment`.
        """
        stage = self.stage.model_dump(mode="json", by_alias=True, exclude={*MANNER, "precision"})
        return sha256_json(
            {
                "stage": stage,
                "parent": self.parent_digest,
                "model": asdict(self.model),
                "sources": {name: shard.digest for name, shard in shards.items()},
                "start": self.start,
                "optimizer": self.optimizer and _checksum(Path(self.optimizer)),
                "seed": self.seed,
            }
        )

    @property
    def parent_digest(self) -> str | None:
        return self.parent and checkpoint.digest(checkpoint.locate(self.parent))

    def initial_weights(self) -> Read:
        """Reads any part of the weights before the first step."""
        if self.stage.adapter is not None:
            return initial(self._own_weights(), self.seed)
        return self._own_weights()

    def _own_weights(self) -> Read:
        if self.parent is None:

            def drawn(name: str, shape: tuple[int, ...], part: tuple[slice, ...]) -> Tensor:
                return initial_weight(self.model, self.seed, name, shape, part)

            return drawn
        weights = checkpoint.open_weights(self.parent)
        return lambda name, shape, part: weights(name)[part]


def _checksum(path: Path) -> str:
    """Of a file, or of the shards that are there in its place."""
    if path.exists():
        return sha256_file(path)
    shards = sorted(path.parent.glob(f"{path.stem}-*.safetensors"))
    return sha256_json({shard.name: sha256_file(shard) for shard in shards})


@cache
def _adapter() -> TypeAdapter[TrainJob]:
    return TypeAdapter(TrainJob)


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step. step counts from 1; loss in nats per trained token (or per pair).

    grad_norm: before clipping. tokens: taken by this step, all ranks together (pairs for
    preference losses). skipped: the loss-spike guard left the weights as they
    were. metrics: means over the step that the loss adds (margin, accuracy), and what was looked at
    after it.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    seconds: float
    skipped: bool
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def is_look(self) -> bool:
        """Whether it has more than its own batch shows: a held-out loss, or scores."""
        return any(name.startswith((HELD_OUT, SCORE)) for name in self.metrics)

    def row(self) -> dict[str, Any]:
        """For metrics.jsonl; JSON has no NaN or infinity, they become null."""
        row = asdict(self)
        row |= row.pop("metrics")
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in row.items()
        }


@dataclass(frozen=True)
class TrainResult:
    """optimizer: named tensors, see `optimizer.tensors_of`. used: tokens (or pairs) by source.

    metrics: steps, loss (of the last step), skipped, seconds (of all steps, also before a
    resume), tokens_per_second, and resumed_under where a resume found another environment.
    written: folder where the ranks of a sharded model have put its weights and moments in
    safetensors files; None: they are all here. adapter: what was trained, if that was not the
    model itself, which here has it merged.
    """

    model: Transformer
    optimizer: dict[str, Tensor]
    metrics: dict[str, Any]
    used: dict[str, int]
    written: Path | None = None
    adapter: AdapterWeights | None = None

    def save(
        self,
        tokenizer: Tokenizer,
        folder: Path,
        *,
        parent: Path | None = None,
        base: str | None = None,
    ) -> None:
        """Write a Hugging Face folder, and the moments that `carry: [optimizer]` goes on with; of
        an adapter instead a folder `adapter` in PEFT's format, for the model `base`; where the
        parent is what an adapter made, both in one for that one's base, if one can say it."""
        if self.adapter is not None:
            adapter = replace(self.adapter, base=base)
            if parent is not None and (parent / "adapter" / ADAPTER).is_file():
                adapter = adapter.after(read_adapter(parent / "adapter")) or adapter
            (folder / "adapter").mkdir(parents=True, exist_ok=True)
            write_adapter(folder / "adapter", adapter)
            checkpoint.save_model(self.model, tokenizer, folder, parent=parent)
            return
        if self.written is None:
            checkpoint.save_model(self.model, tokenizer, folder, parent=parent)
            write_tensors(folder / "optimizer.safetensors", self.optimizer)
            return
        checkpoint.save_settings(self.model.config, tokenizer, folder, torch.float32, parent)
        for file in sorted(self.written.iterdir()):
            shutil.move(file, folder / file.name)
