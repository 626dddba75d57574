"""What a recipe will cost before it runs: tokens, steps, memory, FLOPs and time of every stage.

Everything follows from the recipe alone; what only the prepared data can tell (the size of an
epoch) is estimated and marked with ≈.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from smollm3 import checkpoint
from smollm3.data import places
from smollm3.data.spec import FileSource, ProceduralSource, Source
from smollm3.errors import UserError
from smollm3.eval.spec import BenchmarkStage, EvalStage
from smollm3.model import ModelConfig
from smollm3.plan import timing
from smollm3.plan.hardware import Hardware
from smollm3.recipe.graph import model_parents
from smollm3.recipe.load import load_recipe
from smollm3.recipe.schema import (
    ExportStage,
    MergeStage,
    Recipe,
    Stage,
    SynthSource,
    TokenizerStage,
)
from smollm3.synth.spec import SynthStage
from smollm3.tokenizer import Tokenizer
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS
from smollm3.train.memory import Memory, describe, fits, nearest, training_memory
from smollm3.train.spec import LearningRate, Parallel, TrainStage
from smollm3.units import size

# Llama 3's vocabulary, which SmolLM3 kept; for a tokenizer that is not on this machine.
PUBLISHED_VOCAB = 128_256
PUBLISHED = (
    "HuggingFaceTB/SmolLM3-3B",
    "HuggingFaceTB/SmolLM3-3B-Base",
    "HuggingFaceTB/SmolLM3-3B-checkpoints",
    "smollm3-3b",
)
# A procedural document of the nano recipe: about 100 tokens.
TOKENS_PER_DOCUMENT = 100
MEASURED = "measured on this machine's CPU"


@dataclass(frozen=True)
class StageCost:
    """One stage; the numbers of a stage that does not train are None.

    tokens and tokens_per_step count padded rows; `estimated` says that the amount of data is an
    estimate. memory is one process's, under `layout`; recompute: what its backward pass computes
    again. seconds: of training; preparation: of preparing the sources that no stage before
    reads, but for those in `untimed`. None is unknown, and `unknown` says why. `basis` says what
    the time follows from.
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
    preparation: float = 0.0
    basis: str = ""
    unknown: tuple[str, ...] = ()
    untimed: tuple[str, ...] = ()

    @property
    def tokens(self) -> int | None:
        if self.steps is None or self.tokens_per_step is None:
            return None
        return self.steps * self.tokens_per_step


def kv_bytes_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """Keys and values of all layers: 2·L·G·D elements; 73,728 bytes for SmolLM3-3B in bfloat16."""
    return 2 * config.layers * config.kv_heads * config.head_dim * element_bytes


def stage_costs(
    recipe: Recipe,
    *,
    hardware: Hardware | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
) -> list[StageCost]:
    """The cost of every stage, in order.

    hardware: in place of what the recipe names, or else of this machine's GPUs or CPU.
    sizes: (documents or pairs, tokens) of sources that are prepared; the others are estimated.
    """
    return _Planner(recipe, hardware, sizes or {}).costs()


class _Planner:
    def __init__(
        self, recipe: Recipe, hardware: Hardware | None, sizes: Mapping[str, tuple[int, int]]
    ) -> None:
        self.recipe = recipe
        named = recipe.hardware and Hardware.of(recipe.hardware.gpu, recipe.hardware.gpus)
        self.hardware = hardware or named or Hardware.here()
        self.sizes = sizes
        self.parents = model_parents(recipe)
        self.models: dict[str, ModelConfig | None] = {}
        self.unknown: dict[str, str] = {}  # stage -> why its model is not known
        self.prepared: set[str] = set()
        self.tokenizers: dict[str, Tokenizer] = {}
        self.timings: dict[tuple[ModelConfig, int, int, bool], float] = {}

    def costs(self) -> list[StageCost]:
        return [self._cost(name, stage) for name, stage in self.recipe.stages.items()]

    def _cost(self, name: str, stage: Stage) -> StageCost:
        parents = self.parents[name]
        match stage:
            case TrainStage():
                self.models[name] = self._model(name, parents)
                return self._train(name, stage)
            case MergeStage():
                self.models[name] = self._model(name, parents[:1])
                note = " + ".join(f"{weight:g} {parent}" for parent, weight in stage.from_.items())
            case TokenizerStage():
                vocab, assumed = self._vocab()
                made = f"from {stage.characters:,.0f} characters"
                note = f"{vocab:,} entries{assumed} {f'of {stage.from_}' if stage.from_ else made}"
            case SynthStage():
                note = _asking(stage)
            case ExportStage():
                note = f"{parents[0]} as {', '.join(stage.to)}"
            case EvalStage():
                claims = "1 claim" if len(stage.claims) == 1 else f"{len(stage.claims)} claims"
                note = f"{claims} on {len(parents)} models"
            case BenchmarkStage():
                of = f"first {stage.limit:,} items" if stage.limit else "all items"
                note = f"{' and '.join(parents)} on {stage.suite or ', '.join(stage.tasks)}, {of}"
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

    def _model(self, name: str, parents: list[str]) -> ModelConfig | None:
        """Shape of the first parent, or of a new model; None where it cannot be known."""
        if not parents:
            assert self.recipe.model is not None  # the recipe's check
            return self.recipe.model.config(self._vocab()[0], context=0)
        parent = parents[0]
        if parent in self.recipe.stages:
            self.unknown[name] = self.unknown.get(parent, "")
            return self.models[parent]
        try:
            return checkpoint.load_config(parent)
        except UserError as e:
            if parent.partition("@")[0] in PUBLISHED:  # without the Hub: as in the report
                shape = load_recipe("smollm3-3b").model
                assert shape is not None
                return shape.config(PUBLISHED_VOCAB, context=65_536)
            self.unknown[name] = str(e)
            return None

    def _train(self, name: str, stage: TrainStage) -> StageCost:
        rows = stage.batch * (2 if stage.is_preference else 1)
        tokens_per_step = rows * stage.context
        steps, estimated, no_size = self._steps(stage)
        preparation, untimed = self._preparation(name, stage)
        unknown = [no_size, self.unknown.get(name, "")]
        config = self.models[name]
        flops = memory = layout = seconds = None
        # Under an adapter the frozen weights have no gradient: 4 FLOPs a weight and token, not 6.
        work = 1.0 if stage.adapter is None else 2 / 3
        basis = ""
        if config is not None:
            layout, stage = self._split(name, stage, config)
            process_rows = math.ceil(rows / layout.rows)
            at_once = min(process_rows, (stage.micro_batch or rows) * rows // stage.batch)
            on_gpus = self.hardware is not None
            memory = training_memory(config, stage, layout, on_gpus=on_gpus, chunk=LOGITS)
        if config is not None and layout is not None and steps is not None:
            flops = work * config.flops_per_token(stage.context) * tokens_per_step * steps
            if self.hardware:
                used = replace(self.hardware, devices=layout.size)
                seconds, basis = used.seconds(flops), str(used)
            else:
                one = self._micro_step_seconds(config, at_once, stage)
                seconds = work * steps * math.ceil(process_rows / at_once) * one
                basis = MEASURED
        return StageCost(
            name,
            stage.kind,
            stage.loss,
            config,
            tokens_per_step,
            steps,
            estimated,
            stage.lr,
            memory,
            layout,
            stage.recompute,
            flops,
            seconds,
            preparation,
            basis,
            tuple(reason for reason in unknown if reason),
            tuple(untimed),
        )

    def _split(
        self, name: str, stage: TrainStage, config: ModelConfig
    ) -> tuple[Layout, TrainStage]:
        """How the stage's processes share it; a split that cannot work is a UserError that names
        the nearest one that can."""
        parallel, gpus = stage.parallel or self.recipe.parallel, self.hardware
        if gpus is None:
            return Layout.of(parallel, self.recipe.ranks(parallel)), stage
        best = nearest(config, stage, gpus.devices, gpus.memory, LOGITS)
        advice = "no split fits; use a larger card or a shorter context"
        if best is not None:
            advice = f"nearest plan that works: {describe(*best)} on {best[0].size} {gpus.name}"
        if parallel == Parallel():
            if best is None:
                raise UserError(f"stages.{name}: {advice}")
            return best
        layout = Layout.of(parallel, parallel.processes if parallel.replicate else gpus.devices)
        problem = layout.problem(config, stage)
        memory = training_memory(config, stage, layout, on_gpus=True, chunk=LOGITS)
        if problem is None and not fits(memory, gpus.memory):
            problem = f"{layout} needs {size(memory.total)} of the {size(gpus.memory)} of a card"
        if problem is not None:
            raise UserError(f"stages.{name}.parallel: {problem}; {advice}")
        return layout, stage

    def _micro_step_seconds(self, config: ModelConfig, rows: int, stage: TrainStage) -> float:
        bfloat16 = stage.precision == "bfloat16"
        width = self._width(stage)
        key = (config, rows, width, bfloat16)
        if key not in self.timings:
            self.timings[key] = timing.step_seconds(
                config,
                rows,
                width,
                bfloat16=bfloat16,
                threads=self.recipe.threads,
                document=width if stage.is_preference else TOKENS_PER_DOCUMENT,
            )
        return self.timings[key] * timing.slowdown(self.recipe.processes, self.recipe.threads)

    def _width(self, stage: TrainStage) -> int:
        """Columns of a row that are computed: of a pair's side, which no other one follows, as many
        as it has tokens in the mean, where that is known."""
        sizes = [self.sizes[name] for name in stage.mixture if name in self.sizes]
        pairs = sum(size[0] for size in sizes)
        if not stage.is_preference or not pairs:
            return stage.context
        return min(stage.context, math.ceil(sum(size[1] for size in sizes) / (2 * pairs)))

    def _preparation(self, stage: str, spec: TrainStage) -> tuple[float, list[str]]:
        """Seconds to prepare the sources that no stage before has read, and those not timed."""
        new = [name for name in spec.mixture if name not in self.prepared]
        self.prepared.update(new)
        total, untimed = 0.0, []
        for name in new:
            source = self.recipe.sources[name]
            seconds: float | None = None
            if _files(source) == []:
                seconds = 0.0
            elif not isinstance(source, SynthSource):
                tokenizer = self._tokenizer(stage)
                seconds = timing.preparation_seconds(name, source, self.recipe.seed, tokenizer)
            if seconds is None:
                untimed.append(name)
            total += seconds or 0.0
        return total, untimed

    def _tokenizer(self, stage: str) -> Tokenizer | None:
        """Of the model from outside that a stage descends from, if it is on this machine."""
        while stage in self.recipe.stages and self.parents[stage]:
            stage = self.parents[stage][0]
        if stage in self.recipe.stages or not Path(stage).exists():
            return None
        if stage not in self.tokenizers:
            self.tokenizers[stage] = checkpoint.load_tokenizer(stage)
        return self.tokenizers[stage]

    def _steps(self, stage: TrainStage) -> tuple[int | None, bool, str]:
        """Steps of a stage, whether they are an estimate, and why an epoch's size is unknown."""
        if stage.steps is not None:
            return stage.steps, False, ""
        if stage.tokens is not None:
            return math.ceil(stage.tokens / (stage.batch * stage.context)), False, ""
        assert stage.epochs is not None
        sizes = {source: self._size(source) for source in stage.mixture}
        missing = [source for source, size in sizes.items() if size is None]
        if missing:
            return None, True, f"size of {', '.join(missing)}: known when the data are prepared"
        most = max(stage.mixture.values())  # the source with this weight is read whole
        known_sizes = [(stage.mixture[s] / most, size) for s, size in sizes.items() if size]
        documents = sum(share * size[0] for share, size in known_sizes)
        tokens = sum(share * size[1] for share, size in known_sizes)
        if not tokens:
            return None, True, f"no file of {', '.join(stage.mixture)} is there yet"
        rows = documents if stage.is_preference else tokens / stage.context
        known = all(source in self.sizes for source in stage.mixture)
        return max(1, math.ceil(stage.epochs * rows / stage.batch)), not known, ""

    def _size(self, name: str) -> tuple[int, int] | None:
        """(documents or pairs, tokens) of a source: prepared, or estimated."""
        if name in self.sizes:
            return self.sizes[name]
        source = self.recipe.sources[name]
        if isinstance(source, ProceduralSource):
            return source.documents, source.documents * TOKENS_PER_DOCUMENT
        files = _files(source)
        if files is None:
            return None
        tokens = sum(file.stat().st_size for file in files) // timing.BYTES_PER_TOKEN
        return tokens // TOKENS_PER_DOCUMENT, tokens


def _files(source: Source | SynthSource) -> list[Path] | None:
    """The local files of a source that is made of such."""
    if not isinstance(source, FileSource):
        return None
    try:
        return [Path(file) for file, _ in places.find(source.files)]
    except UserError:
        return []  # they are named where they are read


def _asking(stage: SynthStage) -> str:
    """What a synth stage asks of whom."""
    answers = len(stage.modes) * stage.samples
    places = ((t.model, f"at {t.url}" if t.url else "here") for t in stage.teachers().values())
    whom = " and ".join(map(" ".join, places))
    return f"{answers} to each of {', '.join(stage.prompts)} by {whom}"
