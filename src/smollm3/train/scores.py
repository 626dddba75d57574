"""Scores on benchmarks while a stage trains: the weights of a step as a model's folder, for whoever
can score one. Training itself knows no benchmark."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from smollm3.checkpoint import load_tokenizer, save_model
from smollm3.files import new_folder
from smollm3.model import Transformer
from smollm3.train.adapters import merge_
from smollm3.train.job import SCORE, TrainJob
from smollm3.train.process_group import ProcessGroup
from smollm3.train.replicated import Replicated

if TYPE_CHECKING:
    from smollm3.train.parallel import Sharded

Stopping = Callable[[], bool]
# (folder of a model, whether to leave off) -> task: score from 0 to 1; None: it was left off. What
# it keeps beside the folder lets a second call go on.
Score = Callable[[Path, Stopping], dict[str, float] | None]


class Scorer:
    """Writes the model of a step into `job.work`/scored/step-N and has it scored there; the folder
    goes when its scores are known, so one that is there is still to be scored."""

    def __init__(
        self,
        score: Score | None,
        job: TrainJob,
        group: ProcessGroup,
        parallel: Replicated | Sharded,
    ) -> None:
        """score: on the main process; the others only give their part of the weights."""
        self.score, self.job, self.group, self.parallel = score, job, group, parallel
        self.folder = Path(job.work) / "scored"

    def at(self, step: int, model: Transformer, stopping: Stopping) -> dict[str, float] | None:
        """Write the model after `step` and score it, as `of`; every rank calls this."""
        plain = self._plain(model)
        if plain is not None:
            self.forget()  # what is there is of steps that were lost
            with new_folder(self._folder_of(step)) as folder:
                save_model(plain, load_tokenizer(self.job.tokenizer), folder)
        del plain
        return self.of(step, stopping)

    def of(self, step: int, stopping: Stopping) -> dict[str, float] | None:
        """`score/TASK`, on the main process, of a step whose model is there; none of another. None,
        on every rank: it was stopped. Every rank calls this."""
        scores: dict[str, float] | None = {}
        if self.score is not None and self._folder_of(step).exists():
            scores = None if stopping() else self.score(self._folder_of(step), stopping)
        # On the group that waits longer than a step's sums do.
        if self.group.broadcast_text("stopped" if scores is None else "scored") == "stopped":
            return None
        return {f"{SCORE}{task}": score for task, score in (scores or {}).items()}

    def forget(self) -> None:
        """Delete what is scored, once its scores are kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step}"

    @torch.no_grad()
    def _plain(self, model: Transformer) -> Transformer | None:
        """The model without an adapter, whole, on the main process. The one that is trained stays
        as it is."""
        if self.job.stage.adapter is not None:
            if not self.group.is_main_process:
                return None
            model = deepcopy(model)
            merge_(model)
            return model
        weights = self.parallel.whole(dict(model.named_parameters()))
        if not self.group.is_main_process:
            return None
        with torch.device("meta"):
            plain = Transformer(self.job.model)
        plain.load_state_dict(weights, strict=False, assign=True)
        if self.job.model.tied:
            plain.unembed.weight = plain.embed.weight
        return plain
