"""The training loop: one for pretraining, long context, mid-training, SFT and preference."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.checkpoint import load_tokenizer
from smollm3.data import Loader, Shard
from smollm3.data.batch import Batch
from smollm3.errors import UserError
from smollm3.model import Transformer
from smollm3.train import optimizer as optimizers
from smollm3.train import schedule
from smollm3.train import training_checkpoint as checkpoints
from smollm3.train.forward import Forward, slices
from smollm3.train.job import StepRecord, TrainJob, TrainResult
from smollm3.train.loss_spike import PATIENCE
from smollm3.train.losses import PREFERENCE_METRICS, LossSums, language_modelling, preference
from smollm3.train.metrics import MetricsLog
from smollm3.train.process_group import ProcessGroup
from smollm3.train.reference import references
from smollm3.train.stop import Stopped, StopSignals

OnStep = Callable[[StepRecord, int], None]
Warn = Callable[[str], None]


def train(
    job: TrainJob, group: ProcessGroup, on_step: OnStep | None = None, warn: Warn | None = None
) -> TrainResult:
    """Run `job`, or what is left of it; every rank calls this.

    Rank 0 writes metrics.jsonl and checkpoints/ in job.work. on_step gets each step and how many
    there are in all; warn gets lines about what went differently than a user expects.
    Raises Stopped after SIGINT or SIGTERM, with a training checkpoint saved; UserError for
    bad input, too many loss spikes in a row, or a rank that died.
    """
    torch.set_num_threads(job.threads)
    trainer = Trainer(job, group, warn or logging.getLogger(__name__).warning)
    trainer.run(on_step or (lambda record, steps: None))
    return trainer.result()


class Gradients:
    """All gradients as views of one buffer, with room for the step's other sums behind them.

    One sum over the ranks then moves everything, and norm and scale are one operation each.
    """

    def __init__(self, model: Transformer, others: int) -> None:
        parameters = list(model.parameters())
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes) + others, device=parameters[0].device)
        self.all, self.others = torch.split(self.flat, [sum(sizes), others])
        for parameter, part in zip(parameters, torch.split(self.all, sizes), strict=True):
            parameter.grad = part.view_as(parameter)


class Trainer:
    """A job between its steps."""

    def __init__(self, job: TrainJob, group: ProcessGroup, warn: Warn) -> None:
        self.job, self.stage, self.group = job, job.stage, group
        self.checkpoints = Path(job.work) / "checkpoints"
        shards = {name: Shard.open(Path(folder)) for name, folder in job.shards.items()}
        pad_id = load_tokenizer(job.tokenizer).pad_id
        self.loader = Loader(shards, job.stage, job.start, job.seed, pad_id)
        schedule.check(job.stage.lr, self.loader.steps)
        if group.is_main_process:
            self._warn_of_lengths(warn)

        self.environment = checkpoints.environment(
            job.threads, group.size, job.stage.precision, job.stage.compile
        )
        self.progress = checkpoints.Progress()
        self.model, self.optimizer = self._begin(shards, warn)
        self.forward = Forward(self.model, job.stage, group.device)
        self.references = (
            references(job, shards, self.loader, group, warn) if job.stage.is_preference else None
        )
        # Behind the gradients: loss, weight, stop flag, and the loss's own metrics.
        self.metric_names = PREFERENCE_METRICS if job.stage.is_preference else ()
        self.gradients = Gradients(self.model, 3 + len(self.metric_names))

    def _warn_of_lengths(self, warn: Warn) -> None:
        context = self.stage.context
        for name, n in self.loader.truncated.items():
            warn(f"{name}: {n} documents are longer than a row of {context} tokens and are cut")
        for name, n in self.loader.left_out.items():
            warn(f"{name}: {n} pairs are longer than a row of {context} tokens and are left out")

    def _begin(self, shards: dict[str, Shard], warn: Warn) -> tuple[Transformer, torch.optim.AdamW]:
        """Model and optimizer from the newest good checkpoint, or from where the job starts."""
        found = None
        if self.group.is_main_process:
            self.digest = self.job.digest(shards)
            found = checkpoints.find(self.checkpoints, self.digest, self.environment, warn)
        step = self.group.broadcast_text(str(found.step) if found else "")
        if not step:
            model = self.job.start_model().to(self.group.device)
            optimizer = optimizers.adamw(model, self.stage.optimizer)
            if self.job.optimizer:
                optimizers.load(optimizer, model, Path(self.job.optimizer))
            return model, optimizer

        progress, tensors = checkpoints.read(self.checkpoints, int(step))
        self.progress = found or progress
        model = Transformer(self.job.model).to(self.group.device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors.pop(f"model/{name}"))
        optimizer = optimizers.adamw(model, self.stage.optimizer)
        optimizers.set_tensors(
            optimizer, model, tensors, checkpoints.folder_of(self.checkpoints, int(step))
        )
        return model, optimizer

    def run(self, on_step: OnStep) -> None:
        """All remaining steps, with their metrics rows and checkpoints."""
        steps, done = self.loader.steps, self.progress.step
        log = None
        if self.group.is_main_process:
            log = MetricsLog(Path(self.job.work) / "metrics.jsonl", done)
        with StopSignals() as signals, log or nullcontext():
            for k in range(done, steps):
                record, stopping = self.step(k, stop=signals.received is not None)
                on_step(record, steps)
                if log is not None:
                    log.write(record.row())
                    if stopping or k + 1 == steps or (k + 1) % self.stage.save_every == 0:
                        log.sync()
                        self._save()
                if stopping:
                    raise Stopped(k + 1, signals.received or signal.SIGTERM)

    def step(self, k: int, stop: bool = False) -> tuple[StepRecord, bool]:
        """Batch k and its update; also whether any rank was asked to stop."""
        started = time.perf_counter()
        batch = self.loader.batch(k, self.group.rank, self.group.size)
        self.gradients.flat.zero_()
        others = self.gradients.others
        for part in slices(batch, self.stage.micro_batch):
            with self.forward.precision():
                sums = self._loss(part)
            torch.autograd.backward(sums.total)
            others[0] += sums.total.detach()
            others[1] += sums.weight
            for i, metric in enumerate(sums.metrics, start=3):
                others[i] += metric
        others[2] = float(stop)
        self.group.all_reduce_(self.gradients.flat)

        # One copy to the host a step. A batch without weight gives NaN, whose update is skipped.
        norm = torch.linalg.vector_norm(self.gradients.all)[None]
        norm_, total, weight, stops, *sums_ = torch.cat([norm, others]).tolist()
        loss, grad_norm = (total / weight, norm_ / weight) if weight else (math.nan, math.nan)
        lr = schedule.learning_rate(self.stage.lr, k, self.loader.steps)
        skipped = not self.progress.loss_spike_guard.accepts(loss, grad_norm)
        if not skipped:
            self._update(lr, weight, grad_norm)
        elif self.progress.loss_spike_guard.gives_up:
            raise UserError(self._given_up(k, loss, grad_norm))

        seconds = time.perf_counter() - started
        self.progress.step = k + 1
        self.progress.loss = loss if math.isfinite(loss) else None
        self.progress.seconds += seconds
        means = {name: x / weight for name, x in zip(self.metric_names, sums_, strict=True)}
        tokens = sum(batch.used.values())
        record = StepRecord(k + 1, loss, lr, grad_norm, tokens, seconds, skipped, means)
        return record, stops > 0

    def result(self) -> TrainResult:
        progress, used = self.progress, self.loader.used(self.loader.steps)
        metrics: dict[str, Any] = {
            "steps": progress.step,
            "loss": progress.loss,
            "skipped": progress.loss_spike_guard.skipped,
            "seconds": progress.seconds,
            "tokens_per_second": sum(used.values()) / progress.seconds,
        }
        if progress.resumed_under:
            metrics["resumed_under"] = progress.resumed_under
        for parameter in self.model.parameters():
            parameter.grad = None
        moments = optimizers.tensors_of(self.optimizer, self.model)
        return TrainResult(self.model, moments, metrics, used)

    def _loss(self, batch: Batch) -> LossSums:
        h_BTE = self.forward(batch)
        if self.references is None:
            return language_modelling(self.model, h_BTE, batch)
        reference_B = self.references.rows(batch.pairs)
        return preference(
            self.model, h_BTE, batch, reference_B, loss=self.stage.loss, beta=self.stage.beta
        )

    def _update(self, lr: float, weight: float, grad_norm: float) -> None:
        """AdamW on the gradient of the global mean, clipped to the stage's norm."""
        self.gradients.all.mul_(min(1.0, self.stage.clip / (grad_norm + 1e-6)) / weight)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def _given_up(self, k: int, loss: float, grad_norm: float) -> str:
        since, now = self.loader.used(max(0, k + 1 - PATIENCE)), self.loader.used(k + 1)
        sources = ", ".join(name for name in now if now[name] > since.get(name, 0))
        return (
            f"step {k + 1}: {PATIENCE} updates in a row were skipped (loss {loss:.4g}, "
            f"gradient norm {grad_norm:.4g}) on batches from {sources}; "
            "lower lr.peak or look at these sources"
        )

    def _save(self) -> None:
        tensors: dict[str, Tensor] = {
            f"model/{name}": p for name, p in self.model.named_parameters()
        }
        tensors |= optimizers.tensors_of(self.optimizer, self.model)
        checkpoints.save(self.checkpoints, self.progress, tensors, self.digest, self.environment)
