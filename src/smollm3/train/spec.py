"""What a recipe says about one training stage."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from smollm3.spec import Spec

Weight = Annotated[float, Field(gt=0)]
PREFERENCE_LOSSES = ("apo_zero", "apo_down", "dpo")


class LearningRate(Spec):
    """One stage's own segment of the schedule: warm up, hold, decay.

    warmup: steps of linear rise; the first has peak/warmup, the last the peak. decay: shape of
    the fall; decay_steps: how many of the last steps it takes (absent: all after the warm-up).
    end: the last step's rate as a share of peak.
    WSD is three stages: warmup + none, none, linear. SFT's cosine_with_min_lr is cosine, end 0.1.
    """

    peak: float = Field(gt=0)
    warmup: int = Field(default=0, ge=0)
    decay: Literal["none", "linear", "cosine"] = "none"
    decay_steps: int | None = Field(default=None, gt=0)
    end: float = Field(default=0.0, ge=0, le=1)


class Optimizer(Spec):
    """AdamW as published: no weight decay on embeddings, decay on norms."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)


class Parallel(Spec):
    """How the ranks share the work; their product is the number of processes.

    shard: ranks that share weights, gradients and moments (FSDP), each with its own rows.
    replicate: such groups that hold the same (HSDP); absent: as many as there are processes for.
    tp: ranks that share each product (tensor parallel). cp: ranks that share each row's tokens
    (context parallel). All 1: every process holds the whole model.
    """

    replicate: int | None = Field(default=None, gt=0)
    shard: int = Field(default=1, gt=0)
    tp: int = Field(default=1, gt=0)
    cp: int = Field(default=1, gt=0)


class TrainStage(Spec):
    """Pretraining, long context, mid-training, SFT and preference are spellings of this.

    from: the stage, folder or Hub id to start from (absent: the model stage above).
    carry: what goes on from the parent: its optimizer state, its place in the data.
    mixture: source -> weight, in tokens (in pairs for preference losses); divided by their sum.
    batch: rows (or pairs) in one optimizer step, over all ranks. micro_batch: rows in one
    forward pass of one rank (absent: all at once). Exactly one of tokens, steps and epochs.
    recompute: what the backward pass computes again instead of keeping it. selective: all but
    matrix products and attention; full: all but each block's input.
    save_every: steps between states, of which the newest two stay, and for ever those of every
    keep_every-th step.
    parallel: instead of the recipe's, where a stage needs another split.
    """

    kind: Literal["train"]
    from_: str | None = Field(default=None, alias="from")
    carry: list[Literal["optimizer", "data"]] = Field(default_factory=list)
    mixture: dict[str, Weight] = Field(min_length=1)
    loss: Literal["all", "assistant", "apo_zero", "apo_down", "dpo"] = "all"
    mask: Literal["generated", "published"] = "generated"
    packing: Literal["wrapped", "bfd"] = "wrapped"
    beta: float = Field(default=0.05, gt=0)
    context: int = Field(ge=8)
    rope_theta: float | None = Field(default=None, gt=0)
    batch: int = Field(gt=0)
    micro_batch: int | None = Field(default=None, gt=0)
    tokens: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    epochs: float | None = Field(default=None, gt=0)
    lr: LearningRate
    optimizer: Optimizer = Optimizer()
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    parallel: Parallel | None = None
    save_every: int = Field(default=200, gt=0)
    keep_every: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> TrainStage:
        if sum(x is not None for x in (self.tokens, self.steps, self.epochs)) != 1:
            raise ValueError("give exactly one of tokens, steps and epochs")
        if "data" in self.carry and (self.packing != "wrapped" or self.is_preference):
            raise ValueError("carry: data needs packing: wrapped, where a place is a token offset")
        return self

    @property
    def is_preference(self) -> bool:
        return self.loss in PREFERENCE_LOSSES
