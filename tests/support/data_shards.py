"""Shards and stages for tests, without a tokenizer."""

from contextlib import closing
from pathlib import Path
from typing import Any

from smollm3.data.shards import Shard, ShardWriter
from smollm3.train.spec import TrainStage


def make_shard(
    folder: Path,
    documents: list[list[int]],
    masks: list[list[int]] | None = None,
    *,
    form: str = "text",
    holdout: float = 0.0,
) -> Shard:
    """A shard named after its folder, its documents (for preference: sides of pairs) in order."""
    folder.mkdir(parents=True)
    group = 2 if form == "preference" else 1
    writer = ShardWriter(folder, 2, with_masks=masks is not None, group=group)
    with closing(writer):
        for i in range(0, len(documents), group):
            both = masks[i : i + group] if masks is not None else None
            writer.add(documents[i : i + group], both, key=i, content=i * 2**40)
        writer.finish(
            holdout, {"name": folder.name, "format": form, "tokenizer": "none", "skipped": {}}
        )
    return Shard.open(folder)


def make_stage(**changes: Any) -> TrainStage:
    values = {
        "kind": "train",
        "mixture": {"a": 1},
        "context": 8,
        "batch": 4,
        "lr": {"peak": 1e-3},
        "steps": None if {"tokens", "epochs"} & set(changes) else 10,
    }
    return TrainStage.model_validate(values | changes)
