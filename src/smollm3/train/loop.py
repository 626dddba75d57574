"""The training loop: one for pretraining, long context, mid-training, SFT and preference."""

from __future__ import annotations

import logging
import math
import signal
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smollm3.checkpoint import load_tokenizer
from smollm3.data import Loader, Shard
from smollm3.data.batch import Batch
from smollm3.errors import UserError
from smollm3.machine import has_bfloat16_units
from smollm3.model import Transformer
from smollm3.train import optimizer as optimizers
from smollm3.train import schedule, validation
from smollm3.train import training_checkpoint as checkpoints
from smollm3.train.adapters import interpolated, merge_, trained, weights_of
from smollm3.train.forward import slices
from smollm3.train.job import HELD_OUT, StepRecord, TrainJob, TrainResult
from smollm3.train.layout import Layout
from smollm3.train.loss_spike import PATIENCE
from smollm3.train.losses import (
    LOGITS,
    PREFERENCE_METRICS,
    LossSums,
    language_modelling,
    preference,
)
from smollm3.train.memory import chosen
from smollm3.train.metrics import MetricsLog
from smollm3.train.mirror import Mirror
from smollm3.train.parts import fill
from smollm3.train.process_group import ProcessGroup
from smollm3.train.reference import References, references
from smollm3.train.replicated import Replicated
from smollm3.train.scores import Score, Scorer
from smollm3.train.spec import Parallel
from smollm3.train.stop import Stopped, StopSignals
from smollm3.train.validation import Validator

if TYPE_CHECKING:
    from smollm3.train.parallel import Sharded

OnStep = Callable[[StepRecord, int], None]
Warn = Callable[[str], None]


def train(
    job: TrainJob,
    group: ProcessGroup,
    on_step: OnStep | None = None,
    warn: Warn | None = None,
    score: Score | None = None,
) -> TrainResult:
    """Run `job`, or what is left of it; every rank calls this.

    Rank 0 writes metrics.jsonl and checkpoints/ in job.work. on_step gets each step and how many
    there are in all; warn gets lines about what went differently than a user expects; score, of
    rank 0, is asked where the stage has `scores`.
    Raises Stopped after SIGINT or SIGTERM, with a training checkpoint saved; UserError for
    bad input, too many loss spikes in a row, or a rank that died.
    """
    torch.set_num_threads(job.threads)
    trainer = Trainer(job, group, warn or logging.getLogger(__name__).warning, score)
    trainer.run(on_step or (lambda record, steps: None))
    return trainer.result()


def parallelism(job: TrainJob, group: ProcessGroup) -> Replicated | Sharded:
    """How the ranks share a job: on CPUs whole models where the recipe asks for nothing else."""
    stage = job.stage
    if problem := stage.problem_of(job.parallel):
        raise UserError(problem)
    if group.device.type == "cuda" and job.parallel == Parallel():
        card = torch.cuda.get_device_properties(group.device).total_memory
        layout, stage = chosen(job.model, stage, group.size, card, LOGITS)
    else:
        layout = Layout.of(job.parallel, group.size)
    if layout.whole and (group.device.type == "cpu" or stage.is_whole):
        return Replicated(group, stage)
    from smollm3.train.parallel import Sharded  # its imports take seconds

    layout.check(job.model, stage)
    return Sharded(group, stage, layout)


class Trainer:
    """A job between its steps."""

    def __init__(
        self, job: TrainJob, group: ProcessGroup, warn: Warn, score: Score | None = None
    ) -> None:
        self.job, self.stage, self.group = job, job.stage, group
        self.folder = Path(job.work) / "checkpoints"
        shards = {name: Shard.open(Path(folder)) for name, folder in job.shards.items()}
        pad_id = load_tokenizer(job.tokenizer).pad_id
        self.loader = Loader(shards, job.stage, job.start, job.seed, pad_id, group.device)
        schedule.check(job.stage.lr, self.loader.steps)
        if group.is_main_process:
            self._warn_of_lengths(warn)
            if job.stage.precision == "bfloat16" and group.device.type == "cpu":
                self._warn_of_bfloat16(warn)

        self.parallel = parallelism(job, group)
        self.stage = self.parallel.stage
        self.environment = checkpoints.environment(
            job.threads, group.size, job.stage.precision, job.stage.compile, self.parallel.layout
        )
        self.progress = checkpoints.Progress()
        # The main process alone copies: the run's folder is one that all machines see.
        mirror = Mirror(job.states, warn) if job.states and group.is_main_process else None
        self.model, self.optimizer = self._begin(shards, mirror, warn)
        self.trained = trained(self.model)
        self.forward = self.parallel.forward(self.model)
        self.references = (
            references(job, shards, self.loader, group, self.parallel, warn)
            if job.stage.is_preference
            else None
        )
        self.validator = (
            Validator(job.stage.validation, job, group, self.parallel, pad_id, warn)
            if job.stage.validation is not None
            else None
        )
        if job.stage.scores and group.is_main_process and score is None:
            raise ValueError("the stage has scores: give the function that scores a model's folder")
        self.scorer = Scorer(score, job, group, self.parallel)
        # Beside the gradients: loss, weight, stop flag, and the loss's own metrics.
        self.metric_names = PREFERENCE_METRICS if job.stage.is_preference else ()
        self.gradients = self.parallel.gradients(self.model, 3 + len(self.metric_names))
        self.checkpoints = self.parallel.checkpoints(self.folder, job.stage.keep_every, mirror)

    def _warn_of_lengths(self, warn: Warn) -> None:
        context = self.stage.context
        for name, n in self.loader.truncated.items():
            warn(f"{name}: documents longer than a row of {context} tokens, which are cut: {n}")
        for name, n in self.loader.left_out.items():
            warn(f"{name}: pairs longer than a row of {context} tokens, which are left out: {n}")
        for name, n in self.loader.untrained.items():
            warn(
                f"{name}: conversations whose answers begin beyond a row of {context} tokens, "
                f"which are left out: {n}"
            )

    def _warn_of_bfloat16(self, warn: Warn) -> None:
        if not has_bfloat16_units():
            warn("this CPU has no units for bfloat16; precision: float32 is several times as fast")

    def _begin(
        self, shards: dict[str, Shard], mirror: Mirror | None, warn: Warn
    ) -> tuple[Transformer, torch.optim.Optimizer]:
        """Model and optimizer from the newest good checkpoint, or from where the job starts."""
        found, self.digest = None, ""
        if self.group.is_main_process:
            self.digest = self.job.digest(shards)
            if mirror is not None:
                mirror.get(self.folder, self.digest)
            found = checkpoints.find(self.folder, self.digest, self.environment, warn)
        step = self.group.broadcast_text(str(found.step) if found else "")
        new = not step or self.stage.adapter is not None  # whose base is in no checkpoint
        model = self.parallel.model(self.job.model, self.job.initial_weights() if new else None)
        optimizer = optimizers.adamw(model, self.stage.optimizer)
        if step:
            weights: dict[str, Tensor] = {f"model/{n}": p for n, p in trained(model).items()}
            tensors = weights | optimizers.empty_tensors(optimizer, model)
            progress = checkpoints.read(self.folder, int(step), tensors)
            self.progress = found or progress
            moments = {name: tensor for name, tensor in tensors.items() if name not in weights}
            folder = checkpoints.folder_of(self.folder, int(step))
            optimizers.set_tensors(optimizer, model, moments, folder)
        elif self.job.optimizer:
            optimizers.load(optimizer, model, Path(self.job.optimizer))
        return model, optimizer

    def run(self, on_step: OnStep) -> None:
        """All remaining steps, with their metrics rows and checkpoints."""
        steps, done = self.loader.steps, self.progress.step
        with StopSignals() as signals, self._log(signals) or nullcontext() as log:
            for k in range(done, steps):
                if self._enough:
                    break
                record, stopping = self.step(k, stop=signals.received is not None)
                record = self._look(record, steps)
                last = k + 1 == steps or self._enough
                scores = self._scores(record.step, last, signals)
                stopping = stopping or scores is None
                record = replace(record, metrics=record.metrics | (scores or {}))
                on_step(record, steps)
                if log is not None:
                    log.write(record.row(), keep=record.is_look)
                    if scores:
                        self.scorer.forget()
                if stopping or last or (k + 1) % self.stage.save_every == 0:
                    if log is not None:
                        log.sync()
                    self._save()
                if stopping:
                    self.checkpoints.finish()
                    raise Stopped(k + 1, signals.received or signal.SIGTERM)
            self.checkpoints.finish()
        if self.progress.loss_spike_guard.skipped >= self.progress.step:
            raise UserError(
                f"nothing was learnt: all {steps} updates were skipped, as no batch had a finite "
                "loss on tokens to train on; look at the sources with `smollm3 data look`"
            )

    def _log(self, signals: StopSignals) -> MetricsLog | None:
        """The main process's rows, the last of them with the scores that a stop left out."""
        done = self.progress.step
        late = self.scorer.of(done, lambda: signals.received is not None)
        if late is None:
            raise Stopped(done, signals.received or signal.SIGTERM)
        if not self.group.is_main_process:
            return None
        log = MetricsLog(Path(self.job.work) / "metrics.jsonl", done, self.loader.steps, late)
        self.scorer.forget()
        return log

    def _scores(self, step: int, last: bool, signals: StopSignals) -> dict[str, float] | None:
        """Of the tasks, where it is time; None: a signal came before they were known."""
        spec = self.stage.scores
        if spec is None or (step % spec.every and not last):
            return {}
        return self.scorer.at(step, self.model, lambda: signals.received is not None)

    @property
    def _enough(self) -> bool:
        """Whether the held-out loss has not fallen for as long as the stage waits."""
        patience = self.stage.validation and self.stage.validation.patience
        return bool(patience) and self.progress.looks.since >= (patience or 0)

    def _look(self, record: StepRecord, steps: int) -> StepRecord:
        """Where it is time, the held-out loss; its best weights are kept."""
        spec = self.stage.validation
        if (
            self.validator is None
            or spec is None
            or (record.step % spec.every and record.step < steps)
        ):
            return record
        losses = self._held_out()
        better = self.progress.looks.better(losses[HELD_OUT], record.step)
        if better and spec.keep == "best":
            whole = self.parallel.whole(dict(self.trained))
            if self.group.is_main_process:
                validation.keep(Path(self.job.work), record.step, whole)
        return replace(record, metrics=record.metrics | losses)

    def _held_out(self) -> dict[str, float]:
        assert self.validator is not None
        losses = self.validator.losses(self._held_out_loss)
        self.parallel.release(self.model)
        return losses

    def _held_out_loss(self, part: Batch, references: References | None) -> LossSums:
        with self.parallel.losses(), self.forward.precision():
            return self._loss(part, references)

    def step(self, k: int, stop: bool = False) -> tuple[StepRecord, bool]:
        """Batch k and its update; also whether any rank was asked to stop."""
        started = time.perf_counter()
        batch = self.loader.batch(k, self.parallel.row_rank, self.parallel.row_ranks)
        self.gradients.zero()
        others = self.gradients.others
        for part in slices(batch, self.stage.micro_batch):
            with self.parallel.losses():
                with self.forward.precision():
                    sums = self._loss(part, self.references)
                torch.autograd.backward(sums.total)
            others[0] += sums.total.detach()
            others[1] += sums.weight
            for i, metric in enumerate(sums.metrics, start=3):
                others[i] += metric
        others[2] = float(stop)
        norm, total, weight, stops, *sums_ = self.gradients.sum()
        # A batch without weight gives NaN, whose update is skipped.
        loss, grad_norm = (total / weight, norm / weight) if weight else (math.nan, math.nan)
        lr = schedule.learning_rate(self.stage.lr, k, self.loader.steps)
        guard = self.progress.loss_spike_guard
        skipped = not guard.accepts(loss, grad_norm, spikes=self.stage.loss_spikes == "keep")
        if not skipped:
            self._update(lr, weight, grad_norm)
        elif guard.gives_up:
            raise UserError(self._given_up(k, loss, grad_norm) if weight else _idle(k))

        seconds = time.perf_counter() - started
        self.progress.step = k + 1
        self.progress.loss = loss if math.isfinite(loss) else None
        self.progress.seconds += seconds
        means = {name: x / weight for name, x in zip(self.metric_names, sums_, strict=True)}
        tokens = sum(batch.used.values())
        record = StepRecord(k + 1, loss, lr, grad_norm, tokens, seconds, skipped, means)
        return record, stops > 0

    def result(self) -> TrainResult:
        """What the run leaves; the model is plain from here on, an adapter merged into it."""
        progress, used = self.progress, self.loader.used(self.progress.step)
        metrics: dict[str, Any] = {
            "steps": progress.step,
            "loss": progress.loss,
            "skipped": progress.loss_spike_guard.skipped,
            "seconds": progress.seconds,
            "tokens_per_second": sum(used.values()) / progress.seconds,
        }
        looks, spec = progress.looks, self.stage.validation
        if spec is not None and looks.best is not None:
            metrics |= {HELD_OUT: looks.best, "best_step": looks.step}
            if spec.retain is not None:
                metrics |= self._near_the_parent(looks.best, looks.step, spec.retain)
            elif spec.keep == "best" and looks.step < progress.step:
                self._take_best(looks.step)
        if progress.resumed_under:
            metrics["resumed_under"] = progress.resumed_under
        for parameter in self.model.parameters():
            parameter.grad = None
        moments = optimizers.tensors_of(self.optimizer, self.model)
        adapter = None
        if self.stage.adapter is not None:
            adapter = weights_of(self.model, self.stage.adapter)
            merge_(self.model)
        written = self.parallel.write(self.model, moments, Path(self.job.work) / "final")
        return TrainResult(self.model, moments, metrics, used, written, adapter)

    @torch.no_grad()
    def _take_best(self, step: int) -> None:
        best = validation.kept(Path(self.job.work), step)
        fill(dict(self.trained), lambda name, shape, part: best[name][part])

    @torch.no_grad()
    def _near_the_parent(self, best: float, step: int, retain: float) -> dict[str, float]:
        """Give back what the held-out loss can do without: of the way from the parent's weights to
        the best ones, the fewest tenths that keep this share of what the loss has gained.

        What is not trained for is forgotten less so (Wortsman et al. 2022, arXiv:2109.01903).
        """
        began, ended = self.job.initial_weights(), validation.kept(Path(self.job.work), step)

        def loss(tenths: int) -> float:
            fill(dict(self.trained), interpolated(self.model, began, ended, tenths / 10))
            return self._held_out()[HELD_OUT]

        tenths, enough = 10, best + (1 - retain) * (loss(0) - best)
        if enough > best:  # else nothing was gained
            tenths = bisect_left(range(10), True, 1, key=lambda tenths: loss(tenths) <= enough)
        return {HELD_OUT: loss(tenths), "share_of_best": tenths / 10}

    def _loss(self, batch: Batch, references: References | None) -> LossSums:
        batch = self.forward.mine(batch)
        h_BTE = self.forward(batch)
        if references is None:
            return language_modelling(self.model, h_BTE, batch)
        return preference(
            self.model,
            h_BTE,
            batch,
            references.rows(batch.pairs),
            loss=self.stage.loss,
            beta=self.stage.beta,
            add_columns=self.parallel.add_columns,
        )

    def _update(self, lr: float, weight: float, grad_norm: float) -> None:
        """AdamW on the gradient of the global mean, clipped to the stage's norm."""
        self.gradients.scale(min(1.0, self.stage.clip / (grad_norm + 1e-6)) / weight)
        optimizers.update(self.optimizer, lr)

    def _given_up(self, k: int, loss: float, grad_norm: float) -> str:
        since, now = self.loader.used(max(0, k + 1 - PATIENCE)), self.loader.used(k + 1)
        sources = ", ".join(name for name in now if now[name] > since.get(name, 0))
        return (
            f"step {k + 1}: {PATIENCE} updates in a row were skipped (loss {loss:.4g}, "
            f"gradient norm {grad_norm:.4g}) on batches from {sources}; "
            "lower lr.peak or look at these sources"
        )

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {f"model/{name}": p for name, p in self.trained.items()}
        tensors |= optimizers.tensors_of(self.optimizer, self.model)
        progress = deepcopy(self.progress)  # it changes while the checkpoint is being written
        description = checkpoints.Description(progress, self.digest, self.environment)
        self.checkpoints.save(description, tensors)
        if self.group.is_main_process:
            validation.forget(Path(self.job.work), self.progress.looks.step)


def _idle(k: int) -> str:
    return (
        f"step {k + 1}: in {PATIENCE} batches in a row no token is trained on, as their rows hold "
        "prompts alone; raise the context, or take packing: bfd"
    )
