"""The recipe: one file that names the stages of a model's life, in order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from smollm3.checkpoint.config import MAX_LAYERS
from smollm3.config import StrictModel
from smollm3.data.spec import FileSource, Source, SourceSpec, Weight
from smollm3.data.steps import across
from smollm3.errors import UserError
from smollm3.eval.spec import BenchmarkStage, EvalStage
from smollm3.model import ModelConfig, nope_pattern
from smollm3.recipe.notices import NoticeName
from smollm3.recipe.trackers import TrackerName
from smollm3.synth.spec import SynthStage
from smollm3.train.spec import Parallel, TrainStage

KEPT = "rows.jsonl"  # in the folder of a synth stage


class SynthSource(SourceSpec):
    """The conversations or pairs that a synth stage has kept."""

    kind: Literal["synth"]
    from_: str = Field(alias="from")
    format: Literal["chat", "preference"] = "chat"

    def located(self, run: Path) -> FileSource:
        """Where they lie in a run's folder."""
        settings = self.model_dump(exclude={"kind", "from_"})
        return FileSource(kind="jsonl", files=[str(run / self.from_ / KEPT)], **settings)


class ModelShape(StrictModel):
    """A network that is trained from nothing; with a parent, its config.json is the truth."""

    layers: int = Field(gt=0, le=MAX_LAYERS)
    hidden: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int | None = Field(default=None, gt=0)
    ffn: int = Field(gt=0)
    nope_every: int = Field(default=4, ge=0)
    rope_theta: float = Field(default=50_000, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    init_std: float = Field(default=0.02, gt=0)
    tied: bool = True

    def config(self, vocab_size: int, context: int) -> ModelConfig:
        return ModelConfig(
            vocab_size=vocab_size,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim or self.hidden // self.heads,
            ffn=self.ffn,
            uses_rope=nope_pattern(self.layers, self.nope_every),
            rope_theta=self.rope_theta,
            context=context,
            norm_eps=self.norm_eps,
            init_std=self.init_std,
            tied=self.tied,
        )


class ChatIdentity(StrictModel):
    """Who the model says it is; a user's model does not claim to be someone else's."""

    name: str = "an assistant"
    maker: str | None = None
    cutoff: str | None = None


class TokenizerStage(StrictModel):
    """Trains a byte-level BPE of `vocab` entries, control tokens included, on `characters` of
    the mixture; or takes the tokenizer `from` a folder or Hub id."""

    kind: Literal["tokenizer"]
    vocab: int | None = Field(default=None, ge=300)
    mixture: dict[str, Weight] = Field(default_factory=dict)
    characters: float = Field(default=4e6, gt=0)
    from_: str | None = Field(default=None, alias="from")

    @model_validator(mode="after")
    def _consistent(self) -> TokenizerStage:
        if (self.vocab is None) == (self.from_ is None):
            raise ValueError("give either vocab and mixture, or from")
        if self.vocab is not None and not self.mixture:
            raise ValueError("needs a mixture to learn from")
        return self


class MergeStage(StrictModel):
    """Linear merge: sum of weight x tensor over the parents, divided by the sum of weights."""

    kind: Literal["merge"]
    from_: dict[str, Weight] = Field(alias="from", min_length=1)


class ExportStage(StrictModel):
    """Writes a model in formats that other programs read: hf:bfloat16, gguf:q8_0, mlx:4bit ...

    license: that the model card states, as the Hub spells it (apache-2.0)."""

    kind: Literal["export"]
    from_: str | None = Field(default=None, alias="from")
    to: list[str] = Field(min_length=1)
    license: str | None = None


Stage = Annotated[
    TokenizerStage
    | SynthStage
    | TrainStage
    | MergeStage
    | EvalStage
    | BenchmarkStage
    | ExportStage,
    Field(discriminator="kind"),
]


class Cluster(StrictModel):
    """The GPUs that a recipe was made for. Only `--dry-run` reads it, for time."""

    gpus: int = Field(gt=0)
    gpu: Literal["t4", "l4", "a10", "l40s", "rtx-3090", "rtx-4090", "a100", "h100", "h200", "b200"]


class Recipe(StrictModel):
    """processes: data-parallel processes of a laptop run; threads: of each (torch ignores more
    than helps: two threads at 64 hidden are slower than one). parallel: how processes share the
    model; on GPUs, where nothing is said, the planner chooses. track: programs that are told the
    steps of training, beside the run's own files. notify: where word of the run's end goes: this
    desktop, or the web hook whose address SMOLLM3_WEBHOOK holds. states: a URL that
    fsspec knows, where copies of training checkpoints lie as long as their stage is not done."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0)
    processes: int = Field(default=1, gt=0)
    threads: int = Field(default=1, gt=0)
    parallel: Parallel = Parallel()
    hardware: Cluster | None = None
    track: list[TrackerName] = Field(default_factory=list)
    notify: list[NoticeName] = Field(default_factory=list)
    states: str | None = None
    model: ModelShape | None = None
    chat: ChatIdentity = ChatIdentity()
    sources: dict[str, Annotated[Source | SynthSource, Field(discriminator="kind")]] = Field(
        default_factory=dict
    )
    stages: dict[str, Stage] = Field(min_length=1)

    def states_of(self, stage: str) -> str | None:
        """The URL of a stage's training checkpoints."""
        return self.states and f"{self.states.rstrip('/')}/{self.name}/{stage}"

    def ranks(self, parallel: Parallel) -> int:
        """Processes of a run on this machine that train with `parallel`."""
        return max(self.processes, parallel.processes)

    def source(self, name: str, run: Path) -> Source:
        """A source as it can be read, in a run's folder. Rows that no stage has made yet are a
        UserError."""
        source = self.sources[name]
        if not isinstance(source, SynthSource):
            return source
        files = source.located(run)
        if not Path(files.files[0]).is_file():
            raise UserError(f"sources.{name}: stage '{source.from_}' is not done; run it first")
        return files

    def others(self, source: Source, run: Path) -> dict[str, Source]:
        """The sources that the steps of `source` compare it with."""
        return {name: self.source(name, run) for name in across(source)}
