"""What a recipe says about one training stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from smollm3.config import StrictModel
from smollm3.data.spec import BatchSpec


class LearningRate(StrictModel):
    """One stage's own segment of the schedule: warm up, hold, decay.

    warmup: steps of linear rise, or their share of the stage (below 1); the first has peak/warmup,
    the last the peak. decay: shape of the fall; decay_steps: how many of the last steps it takes
    (absent: all after the warm-up). end: the last step's rate as a share of peak.
    WSD is three stages: warmup + none, none, linear. SFT's cosine_with_min_lr is cosine, end 0.1.
    """

    peak: float = Field(gt=0)
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_steps: int | None = Field(default=None, gt=0)
    end: float = Field(default=0.0, ge=0, le=1)


class Optimizer(StrictModel):
    """AdamW as published: no weight decay on embeddings, decay on norms.

    moments: how both are held: float32, or 8bit with a scale for each 256 (Dettmers et al. 2022),
    2 bytes a weight instead of 8; every process then holds the whole model.
    """

    moments: Literal["float32", "8bit"] = "float32"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class Parallel(StrictModel):
    """How the processes share the work; their number is the product.

    shard: ranks that share weights, gradients and moments (FSDP), each with its own rows.
    replicate: such groups, each with the whole model (HSDP); absent: as many as there are
    processes for. tp: ranks that share each matrix product (tensor parallelism). cp: ranks that
    share each row's tokens (context parallelism). All 1: every process holds the whole model.
    offload: float32 weights, gradients and moments lie in the host's memory, where AdamW runs; a
    GPU has the layers at work.
    """

    replicate: int | None = Field(default=None, gt=0)
    shard: int = Field(default=1, gt=0)
    tp: int = Field(default=1, gt=0)
    cp: int = Field(default=1, gt=0)
    offload: bool = False

    @property
    def processes(self) -> int:
        return (self.replicate or 1) * self.shard * self.tp * self.cp


class Adapter(StrictModel):
    """What is trained beside a model that stays as it is.

    kind: lora; rslora scales by alpha/sqrt(rank) instead of alpha/rank, for high ranks; dora also
    learns the length of each row. layers: the linear layers of every block that get one.
    embeddings: train embedding and head as a whole, for new tokens. base: how the frozen matrices
    are held: own (as the stage's precision) or nf4 (4 bits, QLoRA).
    """

    kind: Literal["lora", "rslora", "dora"] = "lora"
    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32, gt=0)
    layers: list[Literal["q", "k", "v", "o", "gate", "up", "down"]] = Field(
        default=["q", "k", "v", "o", "gate", "up", "down"], min_length=1
    )
    embeddings: bool = False
    base: Literal["own", "nf4"] = "own"

    @model_validator(mode="after")
    def _names_each_layer_once(self) -> Adapter:
        if len(set(self.layers)) < len(self.layers):
            raise ValueError("layers: names one twice")
        return self


class Validation(StrictModel):
    """The loss on the held-out part of the stage's sources, of all and of each, while it trains.

    every: steps between two looks; the last step is always one. rows: at most so many rows (or
    pairs). keep: the weights that the stage leaves, of its best look or of its last step.
    patience: end after so many looks in a row without a better loss; absent: never. retain: at the
    end the best weights are interpolated with the parent's, as near to the parent's as this share
    of what the held-out loss has gained stays; absent: they stay as they are.
    """

    every: int = Field(gt=0)
    rows: int = Field(default=100, gt=0)
    keep: Literal["best", "last"] = "best"
    patience: int | None = Field(default=None, gt=0)
    retain: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _retains_the_best(self) -> Validation:
        if self.retain is not None and self.keep != "best":
            raise ValueError("retain needs keep: best")
        return self


class Scores(StrictModel):
    """Scores on benchmarks while it trains; they change nothing of what comes out.

    every: steps between two; the last step is always scored. tasks: as of `smollm3 eval`. limit:
    items of each. data: a folder of data sets; absent: the Hub.
    """

    every: int = Field(gt=0)
    tasks: list[str] = Field(min_length=1)
    limit: int = Field(default=200, gt=0)
    data: str | None = None


Recompute = Literal["none", "selective", "full", "offload"]

# What of a stage says how it is computed and kept, not what comes out but for the last bits.
MANNER = frozenset(
    {"compile", "parallel", "recompute", "micro_batch", "save_every", "keep_every", "scores"}
)


class TrainStage(BatchSpec):
    """Pretraining, long context, mid-training, SFT and preference are spellings of this.

    from: the stage, folder or Hub id to start from (absent: the model stage above).
    carry: what continues from the parent: its optimizer state, its place in the data.
    micro_batch: rows in one forward pass of one rank (absent: all at once).
    precision: of the products; weights and moments are float32. float8 is for the blocks' large
    ones, beside bfloat16 for the rest.
    recompute: activation checkpointing, what the backward pass computes again instead of keeping
    it. selective: all but matrix products and attention; full: all but each block's input;
    offload: as full, and those inputs wait in the host's memory.
    parallel: instead of the recipe's, where a stage needs another split.
    loss_spikes: skip leaves out the update of a step whose loss is far above the last ones', until
    such steps come again and again, which then are rare data; keep makes every update that
    is a number.
    adapter: train this beside the frozen model; absent: train the model itself.
    save_every: steps between training checkpoints, of which the newest two are kept, and for ever
    those of every keep_every-th step.
    """

    kind: Literal["train"]
    from_: str | None = Field(default=None, alias="from")
    carry: list[Literal["optimizer", "data"]] = Field(default_factory=list)
    beta: float = Field(default=0.05, gt=0)
    rope_theta: float | None = Field(default=None, gt=0)
    micro_batch: int | None = Field(default=None, gt=0)
    lr: LearningRate
    optimizer: Optimizer = Optimizer()
    clip: float = Field(default=1.0, gt=0)
    loss_spikes: Literal["skip", "keep"] = "skip"
    adapter: Adapter | None = None
    validation: Validation | None = None
    scores: Scores | None = None
    precision: Literal["float32", "bfloat16", "float8"] = "float32"
    compile: bool = False
    recompute: Recompute = "none"
    parallel: Parallel | None = None
    save_every: int = Field(default=200, gt=0)
    keep_every: int | None = Field(default=None, gt=0)

    @property
    def is_whole(self) -> bool:
        """Whether every process holds the whole model, which `parallel` then can only replicate."""
        return self.adapter is not None or self.optimizer.moments == "8bit"

    def problem_of(self, parallel: Parallel) -> str | None:
        """Why this stage cannot be shared so, in one line with the fix; None: it can."""
        split = parallel.shard > 1 or parallel.tp > 1 or parallel.cp > 1 or parallel.offload
        if not (self.is_whole and split):
            return None
        what = "optimizer: moments: 8bit" if self.adapter is None else "adapter"
        return f"{what}: every process holds the whole model; leave parallel out but for replicate"

    @property
    def is_half(self) -> bool:
        """Whether what is kept and sent has 16 bits a number."""
        return self.precision != "float32"

    @model_validator(mode="after")
    def _can_compute_in_float8(self) -> TrainStage:
        if self.precision == "float8" and self.adapter is not None:
            raise ValueError("precision: float8 trains whole models; an adapter takes bfloat16")
        return self

    @model_validator(mode="after")
    def _can_compile(self) -> TrainStage:
        if self.compile and self.recompute == "offload":
            raise ValueError("recompute: offload moves tensors, which no graph can; drop compile")
        return self

    @model_validator(mode="after")
    def _can_carry_the_optimizer(self) -> TrainStage:
        if self.adapter is not None and "optimizer" in self.carry:
            raise ValueError("carry: optimizer: an adapter begins anew; leave it out")
        return self

    @model_validator(mode="after")
    def _can_carry_data(self) -> TrainStage:
        if "data" in self.carry and (self.packing != "concat_and_chunk" or self.is_preference):
            raise ValueError(
                "carry: data needs packing: concat_and_chunk, where a place is a token offset"
            )
        return self
