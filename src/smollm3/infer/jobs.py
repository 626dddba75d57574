"""What the engine's thread works on: answers and scores. One job is one sequence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from concurrent.futures import Executor, Future

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smollm3.infer.adapters import LoadedAdapter
from smollm3.infer.generation import Channel, FinishReason, Source, Step
from smollm3.infer.hooks import Constraint, Drafter
from smollm3.infer.params import SamplingParams
from smollm3.infer.sampler import Adjustments, Chosen, Sampler
from smollm3.infer.scheduler import Sequence, Slice
from smollm3.infer.text import StopTexts, TextStream


class Job(ABC):
    """Its methods are called by the engine's thread; an exception in one fails this job alone."""

    sequence: Sequence

    @abstractmethod
    def take(self, step: Slice, logits_RV: Tensor, sampler: Sampler) -> bool:
        """Use what a step has found; True when the job is done. logits_RV: of the `step.wanted`
        last tokens, on the backend's device; for a `whole` sequence the states of its tokens."""

    @abstractmethod
    def fail(self, error: BaseException) -> None: ...

    @abstractmethod
    def prepare(self, step: Slice, executor: Executor | None) -> None:
        """It runs in this step: begin what can be done beside the model, if that is worth it."""

    def drafts(self, limit: int) -> list[int]:
        """Tokens that may come next."""
        return []


class AnswerJob(Job):
    """One answer to one prompt.

    params: settled, none of them None. stop_ids: tokens that end it. prediction: drafts from what
    the request expects, tried before the drafter's.
    """

    def __init__(
        self,
        sequence: Sequence,
        params: SamplingParams,
        stop_ids: Collection[int],
        text: TextStream,
        channel: Channel,
        constraint: Constraint | None = None,
        drafter: Drafter | None = None,
        prediction: Drafter | None = None,
    ) -> None:
        self.sequence = sequence
        self.channel = channel
        self._params = params
        self._stop_ids = stop_ids
        self._adjustments = Adjustments(params, sequence.ids, stop_ids)
        self._text = text
        self._stops = StopTexts(params.stop)
        self._constraint = constraint
        self._drafter = drafter
        self._prediction = prediction
        self._forced = 0  # of the drafts of this step
        self._predicted = False  # whether these are the prediction's
        self._mask: Future[NDArray[np.int32] | None] | None = None

    def drafts(self, limit: int) -> list[int]:
        forced = self._constraint.forced()[:limit] if self._constraint else []
        self._forced, self._predicted = len(forced), False
        if forced:
            return forced
        for drafter in (self._prediction, self._drafter):
            found = drafter.propose(self.sequence.ids, limit) if drafter else []
            found = found[: self._constraint.fitting(found)] if self._constraint else found
            if found:
                self._predicted = drafter is self._prediction
                return found
        return []

    def prepare(self, step: Slice, executor: Executor | None) -> None:
        self.channel.cached_tokens = self.sequence.cached_tokens or 0
        if self._constraint is not None and executor is not None and step.wanted:
            self._mask = executor.submit(self._constraint.mask)

    def take(self, step: Slice, logits_RV: Tensor, sampler: Sampler) -> bool:
        """Sample place after place, as long as what is sampled is what was drafted: the logits
        behind another token are not those of this text."""
        for row, logits_V in enumerate(logits_RV.cpu().numpy()):
            place = len(self.sequence.ids)
            mask = self._next_mask()
            chosen = sampler.choose(logits_V, self._params, place, self._adjustments, mask)
            expected = step.drafts[row] if row < len(step.drafts) else None
            if self._predicted and expected is not None:  # told before the token may end it
                self.channel.accepted_prediction += chosen.id == expected
                self.channel.rejected_prediction += chosen.id != expected
            source: Source = "sampled"
            if chosen.id == expected:
                source = "forced" if row < self._forced else "draft"
            if self._append(chosen, source):
                return True
            if chosen.id != expected:
                break
        return False

    def fail(self, error: BaseException) -> None:
        self.channel.fail(error)

    def _next_mask(self) -> NDArray[np.int32] | None:
        if self._constraint is None:
            return None
        if self._mask is None:
            return self._constraint.mask()
        prepared, self._mask = self._mask, None
        return prepared.result()

    def _append(self, chosen: Chosen, source: Source) -> bool:
        """Take a token; True if it is the last."""
        self.sequence.ids.append(chosen.id)
        self._adjustments.push(chosen.id)
        reason: FinishReason | None = None
        piece = ""
        if chosen.id in self._stop_ids:
            reason = "stop"
        else:
            piece = self._stops.push(self._text.push(chosen.id))
            if self._constraint is not None:
                self._constraint.accept(chosen.id)
            if self._stops.found or (self._constraint is not None and self._constraint.finished):
                reason = "stop"
            elif len(self.sequence.ids) >= self.sequence.limit:
                reason = "length"
        if reason is not None and not self._stops.found:
            piece += self._stops.push(self._text.end()) + self._stops.end()
        step = Step(chosen.id, piece, chosen.logprob, chosen.top_logprobs, source)
        self.channel.push(step, reason)
        return reason is not None


class Reading(Job):
    """A text that is only read. `reduce` is given the logits of its tokens from `first` on, as
    they come, each time with the place of the first of them; `result` is all that it made, in one.
    """

    def __init__(
        self,
        ids: list[int],
        first: int,
        reduce: Callable[[Tensor, int], Tensor],
        result: Future[Tensor],
        cache_salt: str = "",
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self.sequence = Sequence(ids, len(ids), cache_salt, first, adapter=adapter)
        self.result = result
        self._reduce = reduce
        self._results: list[Tensor] = []

    def take(self, step: Slice, logits_RV: Tensor, sampler: Sampler) -> bool:
        end = step.start + step.count
        if step.wanted:
            self._results.append(self._reduce(logits_RV, end - step.wanted))
            self.sequence.logits_from = end  # not again after a preemption
        if end < len(self.sequence.ids):
            return False
        self.result.set_result(torch.cat(self._results))
        return True

    def prepare(self, step: Slice, executor: Executor | None) -> None:
        """Nothing to do."""

    def fail(self, error: BaseException) -> None:
        self.result.set_exception(error)


class Pooling(Job):
    """A text of which the mean over its tokens' final states is wanted. `result`: float32 [E]."""

    def __init__(
        self,
        ids: list[int],
        cache_salt: str,
        adapter: LoadedAdapter | None,
        result: Future[Tensor],
    ) -> None:
        self.sequence = Sequence(ids, len(ids), cache_salt, whole=True, adapter=adapter)
        self.result = result
        self._sum: Tensor | float = 0.0

    def prepare(self, step: Slice, executor: Executor | None) -> None:
        """Nothing to do."""

    def take(self, step: Slice, states_NE: Tensor, sampler: Sampler) -> bool:
        if step.start == 0:  # also after a preemption
            self._sum = 0.0
        self._sum = self._sum + states_NE.sum(0, dtype=torch.float64)
        if step.start + step.count < len(self.sequence.ids):
            return False
        self.result.set_result((self._sum / len(self.sequence.ids)).float())
        return True

    def fail(self, error: BaseException) -> None:
        self.result.set_exception(error)


class Prefill(Job):
    """Full blocks that are only computed. `result`: the blocks, with one user more to let go."""

    def __init__(
        self,
        ids: list[int],
        cache_salt: str,
        adapter: LoadedAdapter | None,
        share: Callable[[int], None],
    ) -> None:
        self.sequence = Sequence(ids, len(ids), cache_salt, len(ids), adapter=adapter)
        self.result: Future[list[int]] = Future()
        self._share = share

    def prepare(self, step: Slice, executor: Executor | None) -> None:
        """Nothing to do."""

    def take(self, step: Slice, logits_RV: Tensor, sampler: Sampler) -> bool:
        if step.start + step.count < len(self.sequence.ids):
            return False
        for block in self.sequence.blocks:
            self._share(block)
        self.result.set_result(list(self.sequence.blocks))
        return True

    def fail(self, error: BaseException) -> None:
        self.result.set_exception(error)
