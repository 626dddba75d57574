"""alignment-handbook's configuration of one training with trl (SFT, APO, DPO)."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field

from smollm3.config import Document
from smollm3.errors import UserError
from smollm3.recipe.imported.part import ForeignModel, Part

ROWS = re.compile(r"^#.*\bGBS (\d+)", re.MULTILINE)


class _Set(ForeignModel):
    id: str
    config: str | None = None
    split: str
    weight: float = Field(default=1.0, gt=0, le=1)


class _Mixture(ForeignModel):
    datasets: list[_Set] = Field(min_length=1)
    seed: int | None = None


class _Minimum(ForeignModel):
    min_lr_rate: float = 0.0


class Handbook(ForeignModel):
    """The keys of an alignment-handbook configuration that decide what comes out; absent ones have
    the values of trl's and transformers' trainers."""

    model_name_or_path: str
    model_revision: str = "main"
    torch_dtype: Literal["bfloat16", "float32"] = "float32"
    dataset_mixture: _Mixture
    loss_type: Literal["apo_zero", "apo_down", "sigmoid"] | None = None
    beta: float = 0.1
    assistant_only_loss: bool = False
    packing: bool = False
    packing_strategy: Literal["bfd", "ffd", "wrapped"] = "bfd"
    max_length: int = 1024
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    learning_rate: float
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_min_lr", "constant", "constant_with_warmup"
    ] = "linear"
    lr_scheduler_kwargs: _Minimum = _Minimum()
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    warmup_steps: int = 0
    num_train_epochs: float = 3.0
    max_steps: int = -1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = 42


def part_of(document: Document, text: str, gpus: int | None) -> Part:
    """What an alignment-handbook file says. gpus: of the training, which stands in no key; without
    it a comment must give the rows of a batch, as `GBS 128`."""
    config = document.read(Handbook)
    pairs = config.loss_type is not None
    per_gpu = config.per_device_train_batch_size * config.gradient_accumulation_steps
    found = ROWS.search(text)
    if gpus is None and found is None:
        raise UserError(
            f"{document.name}: its batch is {per_gpu} rows on each GPU, and no comment says how "
            "many (GBS); give --gpus"
        )
    batch = per_gpu * gpus if gpus else int(found[1]) if found else per_gpu
    mixture, sources = _mixture(config.dataset_mixture, "preference" if pairs else "chat")
    length: dict[str, float] = {"steps": config.max_steps}
    if config.max_steps <= 0:
        length = {"epochs": config.num_train_epochs}
    stage: dict[str, Any] = {
        "kind": "train",
        "from": f"{config.model_name_or_path}@{config.model_revision}",
        **_loss(config, pairs),
        "context": config.max_length,
        "batch": batch,
        "micro_batch": config.per_device_train_batch_size,
        **length,
        "lr": _learning_rate(config),
        "optimizer": {
            "betas": [config.adam_beta1, config.adam_beta2],
            "eps": config.adam_epsilon,
            "weight_decay": config.weight_decay,
        },
        "clip": config.max_grad_norm,
        "precision": config.torch_dtype,
        **({"recompute": "full"} if config.gradient_checkpointing else {}),
        "mixture": mixture,
    }
    name = config.loss_type or ("sft" if config.assistant_only_loss else "mid")
    seed = config.dataset_mixture.seed
    return Part([(name, stage)], sources, config.seed if seed is None else seed, joined=True)


def _loss(config: Handbook, pairs: bool) -> dict[str, Any]:
    if pairs:
        loss = "dpo" if config.loss_type == "sigmoid" else config.loss_type
        return {"loss": loss, "beta": config.beta}
    packed = config.packing and config.packing_strategy != "wrapped"
    packing = {"packing": "bfd" if packed else "concat_and_chunk"}
    if config.assistant_only_loss:
        return {"loss": "assistant", "mask": "published", **packing}
    return packing


def _learning_rate(config: Handbook) -> dict[str, Any]:
    lr: dict[str, Any] = {"peak": config.learning_rate}
    kind = config.lr_scheduler_type
    if kind != "constant" and (warmup := config.warmup_steps or config.warmup_ratio):
        lr["warmup"] = warmup
    if not kind.startswith("constant"):
        lr["decay"] = "linear" if kind == "linear" else "cosine"
    if kind == "cosine_with_min_lr":
        lr["end"] = config.lr_scheduler_kwargs.min_lr_rate
    return lr


def _mixture(mixture: _Mixture, format_: str) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    sources: dict[str, dict[str, Any]] = {}
    for each in mixture.datasets:
        folder = f"{each.config}/" if each.config else "**/"
        source: dict[str, Any] = {
            "kind": "hub",
            "repo": each.id,
            "files": [f"{folder}{each.split}-*.parquet"],
            "format": format_,
        }
        if each.weight < 1:  # the first rows after a shuffle, as `rows` here
            source["rows"] = each.weight
        name = "-".join(filter(None, (each.config, each.split))).lower().replace("_", "-")
        sources[name] = source
    return dict.fromkeys(sources, 1.0), sources
