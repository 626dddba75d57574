"""What a recipe will cost before it runs: tokens, steps, memory, FLOPs and time of every stage.

Everything follows from the recipe alone; what only the prepared data can tell (the size of an
epoch) is estimated and marked with ≈.
"""

from __future__ import annotations

import glob
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from smollm3 import checkpoint
from smollm3.data.spec import JsonlSource, ProceduralSource, Source, TextSource
from smollm3.errors import UserError
from smollm3.eval.spec import EvalStage
from smollm3.model import ModelConfig, Transformer
from smollm3.recipe.graph import model_parents
from smollm3.recipe.schema import ExportStage, MergeStage, Recipe, Stage, TokenizerStage
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS
from smollm3.train.memory import Memory, describe, fits, nearest, training_memory
from smollm3.train.spec import LearningRate, Parallel, TrainStage
from smollm3.units import count, duration, rate, size

if TYPE_CHECKING:
    from rich.table import Table

# Llama 3's vocabulary, which SmolLM3 kept; for a tokenizer that is not on this machine.
PUBLISHED_VOCAB = 128_256
# A rough text: 4 bytes a token; a procedural document of the nano recipe: about 100 tokens.
BYTES_PER_TOKEN = 4
TOKENS_PER_DOCUMENT = 100
# From so many parameters on, a stage is planned for GPUs.
ON_GPUS = 1_000_000_000
# A step below this is timed here (seconds on one core), one above is computed.
MEASURED_FLOPS = 2e11


@dataclass(frozen=True)
class Hardware:
    """`devices` accelerators of `peak` FLOP/s each, of which training uses the share `mfu`.

    The defaults are an H100 SXM (dense bfloat16) and what SmolLM3's 14,000 tokens/s a GPU come to:
    384 of them need 23.97 days for 11.136T tokens. memory: bytes of a card.
    """

    devices: int = 1
    name: str = "H100"
    peak: float = 989e12
    mfu: float = 0.287
    memory: int = 80 * 10**9

    @classmethod
    def default(cls, config: ModelConfig) -> Hardware:
        """What a model of this size is trained on: SmolLM3's cluster from 1B up, else one."""
        return cls(devices=384 if config.parameters >= 1e9 else 1)

    def __str__(self) -> str:
        return (
            f"{self.devices} x {self.name}, {self.peak / 1e12:.0f} TFLOPS each, {self.mfu:.0%} used"
        )

    def seconds(self, flops: float) -> float:
        return flops / (self.devices * self.peak * self.mfu)


@dataclass(frozen=True)
class StageCost:
    """One stage; the numbers of a stage that does not train are None.

    tokens and tokens_per_step count padded rows; `estimated` says that the amount of data is a
    guess. memory is one process's, of `layout`; recompute: what the backward pass makes again.
    seconds are of the whole stage; `basis` says what they follow from.
    """

    name: str
    kind: str
    note: str = ""
    model: ModelConfig | None = None
    tokens_per_step: int | None = None
    steps: int | None = None
    estimated: bool = False
    lr: LearningRate | None = None
    memory: Memory | None = None
    layout: Layout | None = None
    recompute: str = "none"
    flops: float | None = None
    seconds: float | None = None
    basis: str = ""

    @property
    def tokens(self) -> int | None:
        if self.steps is None or self.tokens_per_step is None:
            return None
        return self.steps * self.tokens_per_step


def kv_bytes_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """Keys and values of all layers: 2·L·G·D elements; 73,728 bytes for SmolLM3-3B in bfloat16."""
    return 2 * config.layers * config.kv_heads * config.head_dim * element_bytes


def step_seconds(config: ModelConfig, rows: int, context: int) -> float:
    """Seconds of one forward and backward pass here, on random ids; the better of two."""
    model = Transformer(config)
    model.init_weights(0)
    ids_BT = torch.randint(config.vocab_size, (rows, context + 1))
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        logits_BTV = model(ids_BT[:, :-1])
        loss = F.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
        torch.autograd.backward(loss)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def stage_costs(
    recipe: Recipe,
    *,
    hardware: Hardware | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> list[StageCost]:
    """The cost of every stage, in order.

    hardware: for models too large to time here (default: Hardware.default).
    sizes: (documents or pairs, tokens) of sources that are prepared; the others are estimated.
    """
    return _Planner(recipe, hardware, sizes or {}).costs()


class _Planner:
    def __init__(
        self, recipe: Recipe, hardware: Hardware | None, sizes: Mapping[str, tuple[int, int]]
    ) -> None:
        self.recipe = recipe
        self.hardware = hardware
        self.sizes = sizes
        self.parents = model_parents(recipe)
        self.models: dict[str, ModelConfig | None] = {}
        self.timings: dict[tuple[ModelConfig, int, int], float] = {}

    def costs(self) -> list[StageCost]:
        return [self._cost(name, stage) for name, stage in self.recipe.stages.items()]

    def _cost(self, name: str, stage: Stage) -> StageCost:
        parents = self.parents[name]
        match stage:
            case TrainStage():
                self.models[name] = self._model(parents)
                return self._train(name, stage)
            case MergeStage():
                self.models[name] = self._model(parents[:1])
                note = " + ".join(f"{weight:g} {parent}" for parent, weight in stage.from_.items())
            case TokenizerStage():
                vocab, assumed = self._vocab()
                made = f"from {stage.characters:,.0f} characters"
                note = f"{vocab:,} entries{assumed} {f'of {stage.from_}' if stage.from_ else made}"
            case ExportStage():
                note = f"{parents[0]} as {', '.join(stage.to)}"
            case EvalStage():
                note = f"{len(stage.claims)} claims on {len(parents)} models"
        return StageCost(name, stage.kind, note, self.models.get(name))

    def _vocab(self) -> tuple[int, str]:
        """Entries of the recipe's tokenizer, and a remark when they are assumed."""
        for stage in self.recipe.stages.values():
            if isinstance(stage, TokenizerStage):
                if stage.vocab is not None:
                    return stage.vocab, ""
                if stage.from_ is not None and Path(stage.from_).is_dir():
                    return checkpoint.load_tokenizer(stage.from_).vocab_size, ""
        return PUBLISHED_VOCAB, " (assumed)"

    def _model(self, parents: list[str]) -> ModelConfig | None:
        """Shape of the first parent, or of a new model; None for what is not on this machine."""
        if not parents:
            assert self.recipe.model is not None  # the recipe's check
            return self.recipe.model.config(self._vocab()[0], context=0)
        if parents[0] in self.recipe.stages:
            return self.models[parents[0]]
        return checkpoint.load_config(parents[0]) if Path(parents[0]).is_dir() else None

    def _train(self, name: str, stage: TrainStage) -> StageCost:
        rows = stage.batch * (2 if stage.is_preference else 1)
        tokens_per_step = rows * stage.context
        steps, estimated = self._steps(stage)
        config = self.models[name]
        if config is None:
            note = f"{stage.loss}; its parent is not on this machine"
            return StageCost(
                name, stage.kind, note, None, tokens_per_step, steps, estimated, stage.lr
            )
        hardware = self.hardware or Hardware.default(config)
        on_gpus = config.parameters >= ON_GPUS or self.hardware is not None
        layout, stage = self._split(name, stage, config, hardware if on_gpus else None)
        process_rows = math.ceil(rows / layout.rows)
        at_once = min(process_rows, (stage.micro_batch or rows) * rows // stage.batch)
        flops = config.flops_per_token(stage.context)
        seconds, timed = None, False
        if steps is not None and flops * tokens_per_step < MEASURED_FLOPS:
            key = (config, at_once, stage.context)
            if key not in self.timings:
                self.timings[key] = step_seconds(*key)
            seconds, timed = steps * self.timings[key] * math.ceil(process_rows / at_once), True
        elif steps is not None:
            hardware = replace(hardware, devices=layout.size) if on_gpus else hardware
            seconds = hardware.seconds(flops * tokens_per_step * steps)
        return StageCost(
            name,
            stage.kind,
            stage.loss,
            config,
            tokens_per_step,
            steps,
            estimated,
            stage.lr,
            training_memory(config, stage, layout, sharded=on_gpus, chunk=LOGITS),
            layout,
            stage.recompute,
            None if steps is None else flops * tokens_per_step * steps,
            seconds,
            "timed here" if timed else str(hardware),
        )

    def _split(
        self, name: str, stage: TrainStage, config: ModelConfig, gpus: Hardware | None
    ) -> tuple[Layout, TrainStage]:
        """How the stage's processes share it; a split that cannot work is a UserError that names
        the nearest one that can."""
        parallel = stage.parallel or self.recipe.parallel
        if gpus is None:
            return Layout.of(parallel, self.recipe.ranks(parallel)), stage
        config = replace(config, context=stage.context)
        best = nearest(config, stage, gpus.devices, gpus.memory, LOGITS)
        advice = "no split fits; use a larger card or a shorter context"
        if best is not None:
            advice = f"nearest plan that works: {describe(*best)} on {best[0].size} {gpus.name}"
        if parallel == Parallel():
            if best is None:
                raise UserError(f"stages.{name}: {advice}")
            return best
        layout = Layout.of(parallel, parallel.processes if parallel.replicate else gpus.devices)
        memory = training_memory(config, stage, layout, sharded=True, chunk=LOGITS)
        problem = layout.problem(config, stage)
        if problem is None and not fits(memory, gpus.memory):
            problem = f"{layout} needs {size(memory.total)} of the {size(gpus.memory)} of a card"
        if problem is not None:
            raise UserError(f"stages.{name}.parallel: {problem}; {advice}")
        return layout, stage

    def _steps(self, stage: TrainStage) -> tuple[int | None, bool]:
        """Steps of a stage and whether they are a guess; None when an epoch's size is unknown."""
        if stage.steps is not None:
            return stage.steps, False
        if stage.tokens is not None:
            return math.ceil(stage.tokens / (stage.batch * stage.context)), False
        assert stage.epochs is not None
        sizes = [self._size(source) for source in stage.mixture]
        if any(size is None for size in sizes):
            return None, True
        documents = sum(size[0] for size in sizes if size)
        tokens = sum(size[1] for size in sizes if size)
        rows = documents if stage.is_preference else tokens / stage.context
        known = all(source in self.sizes for source in stage.mixture)
        return max(1, math.ceil(stage.epochs * rows / stage.batch)), not known

    def _size(self, name: str) -> tuple[int, int] | None:
        """(documents or pairs, tokens) of a source: prepared, or guessed from recipe and files."""
        if name in self.sizes:
            return self.sizes[name]
        source = self.recipe.sources.get(name)
        return None if source is None else _guess(source)


def _guess(source: Source) -> tuple[int, int] | None:
    if isinstance(source, ProceduralSource):
        return source.documents, source.documents * TOKENS_PER_DOCUMENT
    if isinstance(source, TextSource | JsonlSource):
        files = [Path(f) for pattern in source.files for f in glob.glob(pattern, recursive=True)]
        tokens = sum(f.stat().st_size for f in files) // BYTES_PER_TOKEN
        return tokens // TOKENS_PER_DOCUMENT, tokens
    return None


def render(costs: list[StageCost]) -> Table:
    """The costs as a table for the terminal, with what they rest on below."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="what each stage asks for", title_justify="left")
    table.add_column("stage", style="bold", no_wrap=True)
    for column in ("tokens", "steps", "tokens/step"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("learning rate")
    for column in ("memory", "FLOPs", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for cost in costs:
        if cost.kind != "train":
            table.add_row(cost.name, *[""] * 3, f"[dim]{cost.kind}: {cost.note}[/]")
            continue
        about = "≈ " if cost.estimated else ""
        assert cost.lr is not None
        table.add_row(
            cost.name,
            about + count(cost.tokens),
            about + (f"{cost.steps:,}" if cost.steps is not None else "?"),
            f"{cost.tokens_per_step:,}",
            describe_rate(cost.lr),
            size(cost.memory.total) if cost.memory else "?",
            "?" if cost.flops is None else f"{cost.flops:.2e}",
            about + duration(cost.seconds),
        )
    seconds = [cost.seconds for cost in costs if cost.seconds is not None]
    table.add_section()
    table.add_row(
        "all",
        count(sum(cost.tokens or 0 for cost in costs)),
        *[""] * 4,
        f"{sum(cost.flops or 0 for cost in costs):.2e}",
        duration(sum(seconds)),
    )
    table.caption = "\n".join(_footnotes(costs))
    table.caption_justify = "left"
    return table


def _footnotes(costs: list[StageCost]) -> list[str]:
    models = list(dict.fromkeys(cost.model for cost in costs if cost.model))
    notes = [
        f"model: {model.parameters:,} parameters, {kv_bytes_per_token(model):,} bytes of keys and "
        "values a token (bfloat16)"
        for model in models
    ]
    bases = dict.fromkeys(cost.basis for cost in costs if cost.basis)
    notes.append(f"time: {'; '.join(bases) or 'unknown'}; without data, evaluation and saving")
    notes.append("memory: of one process; weights and AdamW in float32")
    for cost in costs:
        if cost.layout is not None and cost.layout.size > 1:
            notes.append(f"{cost.name}: {cost.layout}, recompute {cost.recompute}")
    if any(cost.estimated for cost in costs):
        notes.append("≈ and ?: an epoch's size is known when the data are prepared")
    return notes


def describe_rate(lr: LearningRate) -> str:
    """'4e-3, 100 warm-up, linear to 0 over the last 600' for a stage's schedule."""
    parts = [rate(lr.peak)]
    if lr.warmup:
        parts.append(f"{lr.warmup:,} warm-up")
    if lr.decay == "none":
        parts.append("constant")
    else:
        over = f" over the last {lr.decay_steps:,}" if lr.decay_steps else ""
        parts.append(f"{lr.decay} to {rate(lr.peak * lr.end)}{over}")
    return ", ".join(parts)
