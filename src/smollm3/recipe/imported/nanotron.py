"""nanotron's configuration of a pretraining run.

One file describes one run with its whole schedule; `data_stages` says from which step on which data
are used. A recipe's stages each have their own segment of the schedule instead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import Field

from smollm3.config import Document
from smollm3.errors import UserError
from smollm3.recipe.imported.part import ForeignModel, Part

# How one set is called in different files of one run.
ALIASES = (
    (r"^(infiwebmath|finemath)$", r"\1-3plus"),
    (r"^fw2-hq-", "fw2-"),
    (r"^(fw2-[a-z]{3})-[a-z]{4}$", r"\1"),
    (r"^stack-edu-real(-shuffled)?-", "stack-edu-"),
    (r"-(4k|8k)$", ""),
    (r"-all-lengths", ""),
    (r"-4k-to-32k.*$", ""),
    (r"-correct.*$|-cpu-tok.*$", ""),
    (r"^open-codereasoning$", "opencodereasoning"),
    (r"^(tiny-gsm-mind-)?(problem-solving|2students)$", r"tinygsm-mind-\2"),
    (r"^multilingual-wiki$", "mwiki"),
    (r"^dolmino-math-synth-", "dolmino-math-"),
)
NOT_A_NAME = {"tokenized", "standard"}  # folders below the one that has the name


class _Scheduler(ForeignModel):
    learning_rate: float = Field(gt=0)
    lr_warmup_steps: int = 0
    lr_warmup_style: Literal["linear", "constant"] = "linear"
    lr_decay_starting_step: int | None = None
    lr_decay_steps: int | None = None
    lr_decay_style: Literal["linear", "cosine"] | None = None
    min_decay_lr: float = 0.0


class _Adam(ForeignModel):
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    name: Literal["adamW"]


class _Optimizer(ForeignModel):
    clip_grad: float | None
    weight_decay: float
    learning_rate_scheduler: _Scheduler
    optimizer_factory: _Adam
    weight_decay_exclude_named_params: list[str] = Field(default_factory=list)


class _Network(ForeignModel):
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None = None
    intermediate_size: int
    no_rope_layer: int | None = None
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    # What another value of would make another network, which there is no word for here.
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    rope_interleaved: Literal[False] = False
    rope_scaling: None = None
    sliding_window_size: None = None
    moe_config: None = None
    z_loss_enabled: Literal[False] = False
    use_doc_masking: Literal[True] = Field(alias="_use_doc_masking")


class _Init(ForeignModel):
    std: float


class _Model(ForeignModel):
    dtype: Literal["bfloat16", "float32"]
    init_method: _Init
    network: _Network = Field(alias="model_config")


class _Dataset(ForeignModel):
    dataset_folder: list[str]
    dataset_read_path: list[str] | None = None
    dataset_weights: list[float]


class _Data(ForeignModel):
    dataset: _Dataset
    seed: int


class _DataStage(ForeignModel):
    name: str
    start_training_step: int = Field(ge=1)
    data: _Data


class _Tokens(ForeignModel):
    sequence_length: int
    train_steps: int
    micro_batch_size: int
    batch_accumulation_per_replica: int


class _Parallelism(ForeignModel):
    dp: int
    tp: int = 1
    pp: Literal[1] = 1
    context_parallel_size: int = 1
    recompute_layer: bool = False


class _Checkpoints(ForeignModel):
    checkpoint_interval: int


class Nanotron(ForeignModel):
    """The keys of a nanotron configuration that decide what comes out."""

    checkpoints: _Checkpoints
    data_stages: list[_DataStage] = Field(min_length=1)
    model: _Model
    optimizer: _Optimizer
    parallelism: _Parallelism
    tokens: _Tokens

    def is_run_of(self, other: Nanotron) -> bool:
        """Whether both are one run, of which one file has more stages than the other."""
        ours = self.tokens, self.optimizer, self.model
        return ours == (other.tokens, other.optimizer, other.model)


def part_of(document: Document) -> tuple[Nanotron, Part]:
    """What a nanotron file says."""
    config = document.read(Nanotron)
    tokens, parallel = config.tokens, config.parallelism
    starts = [stage.start_training_step for stage in config.data_stages]
    ends = [*(start - 1 for start in starts[1:]), tokens.train_steps]
    if starts[0] != 1 or any(b < a for a, b in zip(starts, ends, strict=True)):
        raise UserError(f"{document.place(('data_stages',))}: their steps must rise from 1")
    rows = tokens.micro_batch_size * tokens.batch_accumulation_per_replica * parallel.dp
    network = config.model.network
    stages: list[tuple[str, dict[str, Any]]] = []
    sources: dict[str, dict[str, Any]] = {}
    for index, stage in enumerate(config.data_stages):
        at = document.place(("data_stages", index))
        mixture, more = _mixture(stage.data.dataset, at)
        sources |= more
        first, last = starts[index], ends[index]
        stages.append(
            (
                re.sub(r"[^a-z0-9]+", "_", stage.name.lower()).strip("_"),
                {
                    "kind": "train",
                    **({"carry": ["optimizer", "data"]} if index else {}),
                    "rope_theta": network.rope_theta,
                    "context": tokens.sequence_length,
                    "batch": rows,
                    "micro_batch": tokens.micro_batch_size,
                    "steps": last - first + 1,
                    "lr": _segment(config.optimizer.learning_rate_scheduler, first, last, at),
                    "optimizer": _optimizer(config.optimizer, document),
                    "clip": config.optimizer.clip_grad,
                    "precision": config.model.dtype,
                    **({"recompute": "full"} if parallel.recompute_layer else {}),
                    "save_every": config.checkpoints.checkpoint_interval,
                    "mixture": mixture,
                },
            )
        )
    gpus = parallel.dp * parallel.tp * parallel.context_parallel_size
    name = FilePath(document.name).name
    split = f"dp {parallel.dp}, tp {parallel.tp}, cp {parallel.context_parallel_size}"
    return config, Part(
        stages,
        sources,
        config.data_stages[0].data.seed,
        model={
            "layers": network.num_hidden_layers,
            "hidden": network.hidden_size,
            "heads": network.num_attention_heads,
            "kv_heads": network.num_key_value_heads,
            "head_dim": network.head_dim,
            "ffn": network.intermediate_size,
            "nope_every": network.no_rope_layer or 0,
            "rope_theta": network.rope_theta,
            "norm_eps": network.rms_norm_eps,
            "init_std": config.model.init_method.std,
            "tied": network.tie_word_embeddings,
        },
        notes=[f"{name}: {gpus} GPUs ({split}); `parallel` is left to the planner"],
    )


def _optimizer(optimizer: _Optimizer, document: Document) -> dict[str, Any]:
    if optimizer.weight_decay_exclude_named_params != [".*token_embedding.*"]:
        key = ("optimizer", "weight_decay_exclude_named_params")
        raise UserError(
            f"{document.place(key)}: here weight decay leaves out the embedding, and nothing else"
        )
    factory = optimizer.optimizer_factory
    return {
        "betas": [factory.adam_beta1, factory.adam_beta2],
        "eps": factory.adam_eps,
        "weight_decay": optimizer.weight_decay,
    }


def _segment(schedule: _Scheduler, first: int, last: int, at: str) -> dict[str, Any]:
    """The part of the run's schedule from step `first` to `last`, both counted from 1."""
    steps = last - first + 1
    lr: dict[str, Any] = {"peak": schedule.learning_rate}
    warmup = schedule.lr_warmup_steps if schedule.lr_warmup_style == "linear" else 0
    if first == 1 and warmup:
        lr["warmup"] = warmup
    elif warmup >= first:
        raise UserError(f"{at}: begins within the warm-up, which is one stage's here")
    start = schedule.lr_decay_starting_step
    if schedule.lr_decay_style is None or schedule.lr_decay_steps is None or start is None:
        return lr
    falls = schedule.lr_decay_steps
    if start > last:
        return lr
    # `start` is the last step at the peak in some files, the first below it in others.
    if start < first - (first > 1) or last not in (start + falls, start + falls - 1):
        raise UserError(f"{at}: the decay is not this stage's alone, which it must be here")
    lr |= {"decay": schedule.lr_decay_style, "end": schedule.min_decay_lr / lr["peak"]}
    if falls != steps - lr.get("warmup", 0):
        lr["decay_steps"] = falls
    return lr


def _mixture(data: _Dataset, at: str) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    paths = data.dataset_read_path or data.dataset_folder
    if len(paths) != len(data.dataset_weights):
        raise UserError(f"{at}: {len(paths)} paths and {len(data.dataset_weights)} weights")
    names = [source_name(path) for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{at}: two of its paths are '{sorted(twice)[0]}'")
    mixture = dict(zip(names, data.dataset_weights, strict=True))
    # What lies there are tokens of another trainer; a person has to say where the texts are.
    files = {n: {"kind": "jsonl", "files": [p]} for n, p in zip(names, paths, strict=True)}
    return mixture, files


def source_name(path: str) -> str:
    """The name of the data set whose tokens lie under `path`."""
    *_, name = (part for part in path.split("/") if part and part not in NOT_A_NAME)
    name = name.lower().replace("_", "-")
    for pattern, replacement in ALIASES:
        name = re.sub(pattern, replacement, name)
    return name


def together(parts: Sequence[tuple[Nanotron, Part]]) -> list[Part]:
    """One part for each run: of the files of one run the one with most stages."""
    runs: list[tuple[Nanotron, Part]] = []
    for each in parts:
        if runs and each[0].is_run_of(runs[-1][0]):
            each = max(runs.pop(), each, key=lambda both: len(both[1].stages))  # noqa: PLW2901
        runs.append(each)
    return [part for _, part in runs]
