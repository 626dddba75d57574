"""Which rank has which part of the model, which rows and which columns; plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from smollm3.errors import UserError
from smollm3.model import ModelConfig
from smollm3.train.spec import Parallel, TrainStage


@dataclass(frozen=True)
class Layout:
    """replicate x shard x cp x tp ranks, tp varying fastest: tensor parallelism talks most, and
    neighbours are on one machine. offload: the weights and states are in the host's memory."""

    replicate: int = 1
    shard: int = 1
    cp: int = 1
    tp: int = 1
    offload: bool = False

    @staticmethod
    def of(parallel: Parallel, processes: int) -> Layout:
        """`parallel` on so many processes, or a UserError."""
        shares = parallel.shard * parallel.cp * parallel.tp
        replicate = parallel.replicate or max(1, processes // shares)
        layout = Layout(replicate, parallel.shard, parallel.cp, parallel.tp, parallel.offload)
        if layout.size != processes:
            raise UserError(
                f"parallel: {layout} are {layout.size} processes, but there are {processes}; start "
                f"{layout.size} (torchrun --nproc-per-node) or change parallel"
            )
        return layout

    @property
    def size(self) -> int:
        return self.replicate * self.shard * self.cp * self.tp

    @property
    def cuts(self) -> int:
        """Equal parts that a row is cut into, see `columns`."""
        return (2 * self.cp if self.cp > 1 else 1) * self.tp

    @property
    def rows(self) -> int:
        """Ranks, or groups of them, that have rows of their own."""
        return self.replicate * self.shard

    @property
    def whole(self) -> bool:
        """Whether every rank holds the whole model."""
        return self.shard == self.cp == self.tp == 1 and not self.offload

    def row_rank(self, rank: int) -> int:
        return rank // (self.cp * self.tp)

    def __str__(self) -> str:
        parts = {"replicate": self.replicate, "shard": self.shard, "cp": self.cp, "tp": self.tp}
        split = " x ".join(f"{name} {n}" for name, n in parts.items() if n > 1) or "1 process"
        return f"{split}, offload" if self.offload else split

    def problem(self, config: ModelConfig, stage: TrainStage) -> str | None:
        """Why this split cannot train `stage`, in one line with the fix; None: it can."""
        if config.kv_heads % self.tp:
            return f"tp {self.tp} does not divide the model's {config.kv_heads} key/value heads"
        if stage.compile and self.tp > 1:
            # A result that is still on its way has another type than the one that was compiled for.
            return f"tp {self.tp} shares products, which compiled blocks cannot; drop compile or tp"
        if stage.precision == "float8" and self.tp > 1:
            return f"tp {self.tp} shares products that float8 has whole; take bfloat16, or no tp"
        if stage.context % self.cuts:
            return (
                f"cp {self.cp} x tp {self.tp} cut a row into {self.cuts} equal parts, which "
                f"context: {stage.context} does not divide into"
            )
        if stage.batch % self.rows:
            return (
                f"batch: {stage.batch} rows do not divide over {self.rows} groups of ranks "
                f"(replicate {self.replicate} x shard {self.shard}); a batch of "
                f"{-(-stage.batch // self.rows) * self.rows} would, or {self.fitting_rows(stage)} "
                "groups"
            )
        return None

    def fitting_rows(self, stage: TrainStage) -> int:
        """The most groups, up to this layout's, that a batch divides over."""
        return max(n for n in range(1, self.rows + 1) if stage.batch % n == 0)

    def check(self, config: ModelConfig, stage: TrainStage) -> None:
        if problem := self.problem(config, stage):
            raise UserError(f"parallel: {problem}")

    def columns(self, rank: int, width: int) -> list[tuple[int, int]] | None:
        """[start, end) of a rank's columns of a row; None: all of them.

        Of 2·cp equal chunks rank c has chunk c and chunk 2·cp-1-c: early queries see few keys
        and late ones many, so that every rank has the same work.
        """
        if self.cp == 1:
            return None
        c, size = rank // self.tp % self.cp, width // (2 * self.cp)
        return [(i * size, (i + 1) * size) for i in (c, 2 * self.cp - 1 - c)]
