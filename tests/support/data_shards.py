"""Shards and stages for tests, without a tokenizer."""

from contextlib import closing
from pathlib import Path
from typing import Any

from smollm3.data.shards import PartWriter, Shard, read_part, write_meta
from smollm3.train.spec import TrainStage


def make_shard(
    folder: Path,
    documents: list[list[int]],
    masks: list[list[int]] | None = None,
    *,
    form: str = "text",
    holdout: float = 0.0,
    parts: int = 1,
) -> Shard:
    """A shard named after its folder, its documents (for preference: sides of pairs) in order, cut
    into `parts` files."""
    group = 2 if form == "preference" else 1
    if masks is None and form != "text":
        masks = [[1] * len(document) for document in documents]
    names = [f"{i:05d}" for i in range(parts)]
    groups = len(documents) // group
    for n, name in enumerate(names):
        writer = PartWriter(
            folder, name, token_bytes=2, masks=masks is not None, group=group, holdout=holdout,
            alone=parts == 1, tokenizer="none",
        )  # fmt: skip
        with closing(writer):
            for i in range(n * groups // parts, (n + 1) * groups // parts):
                both = slice(i * group, (i + 1) * group)
                mask = masks[both] if masks is not None else None
                writer.add(documents[both], mask, key=i, content=i * 2**40)
            writer.finish({})
    made = [read_part(folder, name) for name in names]
    meta = {"name": folder.name, "format": form, "token_bytes": 2, "skipped": {}}
    write_meta(folder, meta, [part for part in made if part])
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
