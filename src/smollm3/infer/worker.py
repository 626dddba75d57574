"""The engine's thread: it alone touches the backend, the blocks and the sampler."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from smollm3.errors import UserError
from smollm3.infer.adapters import Additions, LoadedAdapter
from smollm3.infer.backends import Backend
from smollm3.infer.blocks import BlockPool
from smollm3.infer.errors import EngineClosed
from smollm3.infer.jobs import Job, Reading
from smollm3.infer.sampler import Sampler
from smollm3.infer.scheduler import Scheduler, Sequence, Slice, batch_of
from smollm3.infer.speculation import StepCosts

T = TypeVar("T")

STEP_LOGITS = 2**25  # of scored tokens, in one step: 128 MiB in float32
REMEMBERED = 1024  # steps


@dataclass(frozen=True)
class StepTime:
    """prefill_tokens: of prompts, computed; decode_tokens: sampled; draft_tokens: tried
    speculatively, accepted_tokens of them right. model_seconds: those of `seconds` in the backend.
    """

    prefill_tokens: int = 0
    decode_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Stats:
    """Counters since the start, and what is so now.

    blocks_free: without content; blocks_cached: prefixes that nobody uses now. cached_tokens: of
    prompts, found in the prefix cache. The rest as in `StepTime`, after a preemption counted again.
    recent: the newest steps, oldest first.
    """

    running: int
    waiting: int
    blocks: int
    blocks_free: int
    blocks_cached: int
    block_bytes: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    draft_tokens: int
    accepted_tokens: int
    cached_tokens: int
    preemptions: int
    finished: int
    cancelled: int
    failed: int
    model_seconds: float
    seconds: float
    recent: tuple[StepTime, ...] = field(repr=False)

    @property
    def blocks_used(self) -> int:
        return self.blocks - self.blocks_free - self.blocks_cached


@dataclass
class Counters:
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    cached_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    model_seconds: float = 0.0
    seconds: float = 0.0


class Worker:
    """Runs jobs in a daemon thread until it is closed. It knows no Engine, so that one that is
    dropped can be collected, which closes this."""

    def __init__(
        self,
        backend: Backend,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_draft_tokens: int,
        costs: StepCosts | None = None,
    ) -> None:
        self.backend = backend
        self._costs = costs
        logits = max(1, STEP_LOGITS // backend.config.vocab_size)
        self._limits = (
            max_num_seqs, max_num_batched_tokens, logits, max_num_draft_tokens,
            backend.copies_blocks,
        )  # fmt: skip
        self._scheduler = Scheduler(BlockPool(backend.blocks), *self._limits)
        self._sampler = Sampler(backend.config.vocab_size)
        self._jobs: dict[Sequence, Job] = {}
        self._counters = Counters()
        self._recent: deque[StepTime] = deque(maxlen=REMEMBERED)
        # Its `put` may be called in a destructor at any line, unlike a lock or a condition.
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # Nothing can run before somebody's message: a prefix on its way holds blocks.
        self._stuck = False
        # While the model runs elsewhere. Where it has all cores itself, a thread beside it takes
        # more than it saves: 0.6 ms of a step of 3.6, for a mask that takes 0.07 between steps.
        self._cpu_is_idle = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="smollm3-masks")
        self._thread = threading.Thread(target=self._run, name="smollm3-engine", daemon=True)
        self._thread.start()

    # from any thread

    def add(self, jobs: Iterable[Job]) -> None:
        """All at once, so that what is asked together always runs in the same steps."""
        self._post(lambda: self._add(jobs))

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """What `work` returns, done by the engine's thread between two steps."""
        future: Future[T] = Future()

        def answer() -> None:
            try:
                future.set_result(work())
            except Exception as e:
                future.set_exception(e)

        self._post(answer)
        return future

    def add_adapter(self, adapter: LoadedAdapter, additions: Additions) -> None:
        """Returns when requests may name it."""

        def add() -> None:
            adapter.number = self.backend.add_adapter(additions)

        self.ask(add).result()

    def remove_adapter(self, adapter: LoadedAdapter) -> None:
        """What runs with it goes on to its end, and then its memory is free."""

        def remove() -> None:
            adapter.gone = True
            self._free_unused(adapter)

        self.ask(remove).result()

    def _post(self, message: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise EngineClosed("the engine is closed")
            self._inbox.put(message)

    def cancel(self, job: Job) -> None:
        self._inbox.put(lambda: self._cancel(job))

    def close(self) -> None:
        """Fail what runs and waits, and end the thread."""
        with self._lock:
            self._closed = True
        self._inbox.put(lambda: None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def stats(self) -> Stats:
        scheduler, blocks = self._scheduler, self._scheduler.blocks
        cached = blocks.cached
        return Stats(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self._inbox.qsize(),
            blocks=blocks.count,
            blocks_free=blocks.available - cached,
            blocks_cached=cached,
            block_bytes=self.backend.block_bytes,
            preemptions=scheduler.preemptions,
            recent=tuple(self._recent),
            **vars(self._counters),
        )

    # in the engine's thread

    @property
    def blocks(self) -> BlockPool:
        return self._scheduler.blocks

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while not self._closed:
                self._receive()
                if self._jobs and not self._closed:
                    self._guarded_step()
        finally:
            while not self._inbox.empty():  # asked for before it was closed
                self._inbox.get()()
            self._fail_all(EngineClosed("the engine is closed"))
            self._executor.shutdown()
            self.backend.close()

    def _receive(self) -> None:
        """Do what others ask for; wait for that if there is nothing else to do."""
        try:
            while True:
                self._inbox.get(block=self._stuck or not self._jobs)()
                self._stuck = False
                if self._closed:
                    return
        except Empty:
            pass

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception as e:
            # A mistake of ours in planning: nothing it holds can be relied on.
            self._fail_all(e)
            self._scheduler = Scheduler(BlockPool(self.backend.blocks), *self._limits)

    def _step(self) -> None:
        started = time.perf_counter()
        plan = self._plan()
        if copied := self._scheduler.copied():
            self.backend.copy_blocks(*zip(*copied, strict=True))
        if not plan:
            return
        for s in plan:
            self._jobs[s.sequence].prepare(s, self._executor if self._cpu_is_idle else None)
        model_started = time.perf_counter()
        try:
            logits_RV = self.backend.step(batch_of(plan))
            self._cpu_is_idle = logits_RV.device.type != "cpu"
            if not any(isinstance(self._jobs[s.sequence], Reading) for s in plan):
                logits_RV = logits_RV.cpu()
            whole = any(s.sequence.whole for s in plan)
            states_NE = self.backend.states() if whole else logits_RV
        except Exception as e:
            for s in plan:
                self._fail(s.sequence, e)
            return
        model_seconds = time.perf_counter() - model_started
        if self._costs and all(s.count == 1 for s in plan):
            self._costs.record(len(plan), sum(s.size for s in plan), model_seconds)
        taken, row, token = [], 0, 0
        for s in plan:
            found = states_NE[token:] if s.sequence.whole else logits_RV[row:]
            taken.append(self._take(s, found[: s.size if s.sequence.whole else s.wanted]))
            row, token = row + s.wanted, token + s.size
        prefill_tokens, decode_tokens, draft_tokens, accepted_tokens = map(
            sum, zip(*taken, strict=True)
        )
        seconds = time.perf_counter() - started
        self._record(
            StepTime(
                prefill_tokens, decode_tokens, draft_tokens, accepted_tokens, model_seconds, seconds
            )
        )

    def _plan(self) -> list[Slice]:
        """The next step, without those whose drafter or constraint fails."""
        broken: dict[Sequence, BaseException] = {}

        def drafts(sequence: Sequence, limit: int) -> list[int]:
            try:
                found = self._jobs[sequence].drafts(limit)
            except Exception as e:
                broken[sequence] = e
                return []
            # A drafter's vocabulary may be larger than the model's.
            V = self.backend.config.vocab_size
            return found if all(0 <= token < V for token in found) else []

        plan = self._scheduler.plan(drafts)
        self._stuck = not plan
        for sequence, error in broken.items():
            self._fail(sequence, error)
        # Tokens of one adapter stand together: backends compute them together.
        return sorted((s for s in plan if s.sequence not in broken), key=lambda s: s.adapter)

    def _take(self, s: Slice, logits_RV: torch.Tensor) -> tuple[int, int, int, int]:
        """Hand a job what its slice has found: the first four figures of `StepTime`."""
        sequence, job = s.sequence, self._jobs[s.sequence]
        length = len(sequence.ids)
        try:
            done = job.take(s, logits_RV, self._sampler)
            # Of what was sampled all but the newest token has been computed too, as drafts.
            sampled = sequence.ids[length:]
            self._scheduler.advance(sequence, s.start + s.count + max(len(sampled) - 1, 0))
        except Exception as e:
            self._fail(sequence, e)
            return 0, 0, 0, 0
        if done:
            self._remove(sequence)
            self._counters.finished += 1
        prefill_tokens = 0 if s.count == 1 and s.start >= sequence.prompt else s.count
        accepted_tokens = sum(map(int.__eq__, s.drafts, sampled))
        return prefill_tokens, len(sampled), len(s.drafts), accepted_tokens

    def _record(self, step: StepTime) -> None:
        self._recent.append(step)
        self._counters.steps += 1
        for name, value in vars(step).items():
            setattr(self._counters, name, getattr(self._counters, name) + value)

    def _add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if adapter := job.sequence.adapter:
                if adapter.gone:
                    job.fail(UserError(f"adapter: {adapter.name!r:.100} was unloaded"))
                    continue
                adapter.users += 1
            self._jobs[job.sequence] = job
            self._scheduler.add(job.sequence)

    def _cancel(self, job: Job) -> None:
        if job.sequence in self._jobs:
            self._remove(job.sequence)
            self._counters.cancelled += 1

    def _fail(self, sequence: Sequence, error: BaseException) -> None:
        """Its blocks are free before its reader hears of it."""
        job = self._jobs[sequence]
        self._remove(sequence)
        self._counters.failed += 1
        job.fail(error)

    def _remove(self, sequence: Sequence) -> None:
        del self._jobs[sequence]
        self._scheduler.remove(sequence)
        self._counters.cached_tokens += sequence.cached_tokens or 0
        self._let_go(sequence)

    def _let_go(self, sequence: Sequence) -> None:
        if adapter := sequence.adapter:
            adapter.users -= 1
            self._free_unused(adapter)

    def _free_unused(self, adapter: LoadedAdapter) -> None:
        if adapter.gone and not adapter.users:
            self.backend.remove_adapter(adapter.number)

    def _fail_all(self, error: BaseException) -> None:
        for sequence in list(self._jobs):
            self._jobs.pop(sequence).fail(error)
            self._let_go(sequence)
            self._counters.failed += 1
