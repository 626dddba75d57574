"""The engine: prompts and conversations in, answers out, from any thread, many at once."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smollm3.chat import Message
from smollm3.errors import UserError
from smollm3.infer import prefix, scheduler
from smollm3.infer.adapters import Adapters
from smollm3.infer.backends import BLOCK, Backend
from smollm3.infer.blocks import blocks_of
from smollm3.infer.constrain.masks import Constraints, ConstraintSpec
from smollm3.infer.errors import ContextOverflow
from smollm3.infer.generation import Channel, Completion, Generation, Step
from smollm3.infer.hooks import Constraint, MakeDrafter
from smollm3.infer.jobs import AnswerJob, Job, Pooling, Reading
from smollm3.infer.params import PUBLISHED, SamplingParams
from smollm3.infer.readings import chosen, ranked, tell_steps
from smollm3.infer.speculation import Prediction, StepCosts
from smollm3.infer.text import TextStream
from smollm3.infer.worker import Stats, Worker
from smollm3.model import ModelConfig
from smollm3.tokenizer import Tokenizer

if TYPE_CHECKING:
    from smollm3.turn import Reply

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any] | Message]

MAX_NUM_SEQS = 128  # sequences that run at once
MAX_NUM_BATCHED_TOKENS = (
    512  # more at once is no faster on a CPU, and running answers wait for them
)
MAX_NUM_DRAFT_TOKENS = 32


class Engine:
    """A model with its tokenizer and its own sampling settings (`params`).

    One thread owns the model; every method may be called from any other. Answers do not depend on
    what else is asked at the same time: random numbers are keyed by each request's seed and the
    token's place.

    drafter: makes what proposes draft tokens of a request. costs: is told what steps take.
    identity: a name of the weights, for saved prefixes. weights: opens them by our names, for DoRA
    adapters. max_num_seqs: sequences that run at once.
    max_num_batched_tokens, max_num_draft_tokens: of one forward pass.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        params: SamplingParams = PUBLISHED,
        *,
        drafter: MakeDrafter | None = None,
        costs: StepCosts | None = None,
        identity: Callable[[], str] | None = None,
        weights: Callable[[], Callable[[str], Tensor]] | None = None,
        max_num_seqs: int = MAX_NUM_SEQS,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
        max_num_draft_tokens: int = MAX_NUM_DRAFT_TOKENS,
    ) -> None:
        if tokenizer.vocab_size > backend.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} entries, "
                f"the model only {backend.config.vocab_size}"
            )
        self.backend = backend
        self.tokenizer = tokenizer
        self.params = params
        self.stop_ids = frozenset(tokenizer.stop_ids)
        self._drafter = drafter
        self._costs = costs
        self._identity = identity
        self._process = os.getpid()
        self._held = threading.local()  # jobs of a `together` of this thread
        limits = max_num_seqs, max_num_batched_tokens, max_num_draft_tokens
        self._worker = Worker(backend, *limits, costs)
        self.adapters = Adapters(self._worker, backend.config, weights)
        # The thread does not know this object: when nobody else does either, it ends.
        self._finalizer = weakref.finalize(self, self._worker.close)

    @property
    def config(self) -> ModelConfig:
        return self.backend.config

    @property
    def room(self) -> int:
        """Tokens of a prompt and its answer that context and cache can hold."""
        return min(self.config.context, self.backend.blocks * BLOCK)

    def close(self) -> None:
        """End the thread; requests that still run fail."""
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stats(self) -> Stats:
        return self._worker.stats()

    # answers

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        constraint: ConstraintSpec | Constraint | None = None,
        thinking_budget: int | None = None,
        cache_salt: str = "",
        adapter: str | None = None,
        prediction: Sequence[int] = (),
    ) -> Generation:
        """Ask for one answer, and return at once.

        prompt: a text (control tokens in it are text) or ids. constraint: what the answer must be,
        after its reasoning (see `constraints`), or an object of one's own for this request alone.
        thinking_budget: tokens of reasoning, after which its block is closed. cache_salt: prompts
        share cached prefixes, and grammars, with those of the same salt only. adapter: a loaded
        one, by name. prediction: what the answer is expected to be, behind the two tokens that
        come before it; drafts, where there are any.
        Raises UserError for an empty prompt, ids outside the vocabulary and constraints that
        nothing satisfies; ContextOverflow for a prompt that leaves no room in the context, and for
        what the cache can never hold.
        """
        job = self._answer(
            prompt, params, constraint, thinking_budget, cache_salt, adapter, prediction
        )
        self._add([job])
        return Generation(job.channel, self, partial(self._worker.cancel, job))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread submits inside begins in the same step, when the block is left."""
        if getattr(self._held, "jobs", None) is not None:  # inside another
            yield
            return
        jobs: list[Job] = []
        self._held.jobs = jobs
        try:
            yield
        finally:
            self._held.jobs = None
        self._add(jobs)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue each prompt, as in `submit`; all answers of the first, then of the second, ...

        params: for all, or one for each.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        pairs = zip(prompts, params, strict=True)
        with self.together():
            generations = [self.submit(prompt, p) for prompt, each in pairs for p in each.choices()]
        try:
            return [generation.result() for generation in generations]
        finally:
            for generation in generations:
                generation.cancel()  # where the wait for another ended in an error

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        constraint: ConstraintSpec | Constraint | None = None,
        thinking_budget: int | None = None,
    ) -> Iterator[str]:
        """The text of an answer as it comes, in pieces that are whole characters."""
        generation = self.submit(
            prompt, params, constraint=constraint, thinking_budget=thinking_budget
        )
        try:
            yield from (step.text for step in generation if step.text)
        finally:
            generation.cancel()

    def chat(self, messages: Messages, **options: Any) -> Message:
        """The model's next message. options: the other fields of `turn.Request`, such as tools,
        enable_thinking, params, constraint, thinking_budget."""
        return self._reply(messages, options).result()

    def chat_stream(self, messages: Messages, **options: Any) -> Iterator[str]:
        """The text of the next message as it comes, tags around reasoning and calls included."""
        yield from self._reply(messages, options).texts()

    def _reply(self, messages: Messages, options: dict[str, Any]) -> Reply:
        from smollm3.turn import Request

        return Request(messages, **options).submit(self)

    # reading

    def score(self, ids: Sequence[int], first: int = 1) -> list[float]:
        """Log-probability of each token from place `first` on, given those before it."""
        return self.score_batch([ids], [first])[0]

    def score_batch(
        self, batch: Sequence[Sequence[int]], firsts: Sequence[int] | None = None
    ) -> list[list[float]]:
        """`score` of each. What comes before the first place is found again where it was read."""
        return [future.result()[:, 0].tolist() for future in self.submit_scores(batch, firsts)]

    def submit_scores(
        self,
        batch: Sequence[Sequence[int]],
        firsts: Sequence[int] | None = None,
        cache_salt: str = "",
        adapter: str | None = None,
    ) -> list[Future[Tensor]]:
        """[R, 2] of each text, without waiting: log-probabilities of each token from place `first`
        on, and of the likeliest token there; the two are equal where greedy sampling takes it.
        cache_salt, adapter: as in `submit`, here and below."""
        applied = self.adapters.named(adapter)
        firsts = [1] * len(batch) if firsts is None else firsts
        jobs: list[Reading] = []
        futures: list[Future[Tensor]] = []
        for ids, first in zip(batch, firsts, strict=True):
            self._check(ids, unread=1)
            if first < 1:
                raise UserError(f"first: no token stands before place {first}; from 1 on")
            futures.append(Future())
            if first < len(ids):
                self._check_room(len(ids) - 1)
                reduce = partial(chosen, torch.tensor(ids))
                text = list(ids[:-1])
                jobs.append(Reading(text, first - 1, reduce, futures[-1], cache_salt, applied))
            else:
                futures[-1].set_result(torch.empty(0, 2))
        self._add(jobs)
        return futures

    def submit_steps(
        self, ids: Sequence[int], top: int, cache_salt: str = "", adapter: str | None = None
    ) -> Future[list[Step]]:
        """A text's tokens as an answer's are told, with the `top` likeliest of each place, without
        waiting. Nothing stands before the first: its figure is not a number."""
        self._check(ids)
        self._check_room(len(ids))
        found: Future[Tensor] = Future()
        if len(ids) > 1:
            reduce = partial(ranked, torch.tensor(ids), top)
            applied = self.adapters.named(adapter)
            self._add([Reading(list(ids[:-1]), 0, reduce, found, cache_salt, applied)])
        else:
            found.set_result(torch.empty(0, 1 + 2 * top, dtype=torch.float64))
        told: Future[list[Step]] = Future()
        found.add_done_callback(partial(tell_steps, self.tokenizer, ids, top, told))
        return told

    def submit_embeddings(
        self, batch: Sequence[Sequence[int]], cache_salt: str = "", adapter: str | None = None
    ) -> list[Future[Tensor]]:
        """[E] float32 of each text: the mean over its tokens of what the last layer says of them,
        without waiting. A decoder's token knows only what stands before it."""
        futures: list[Future[Tensor]] = [Future() for _ in batch]
        for ids in batch:
            self._check(ids)
            self._check_room(len(ids))
        pairs = zip(batch, futures, strict=True)
        applied = self.adapters.named(adapter)
        self._add([Pooling(list(ids), cache_salt, applied, future) for ids, future in pairs])
        return futures

    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """[T, V] log-probabilities of what follows each token, float32 on the CPU: much memory."""
        self._check(ids)
        self._check_room(len(ids))
        future: Future[Tensor] = Future()
        job = Reading(
            list(ids), 0, lambda logits, _: logits.log_softmax(-1).cpu(), future,
            adapter=self.adapters.named(None),
        )  # fmt: skip
        self._add([job])
        return future.result()

    # prefixes

    def save_prefix(self, prompt: Prompt, path: str | Path, cache_salt: str = "") -> int:
        """Compute a prompt's keys and values and write them to `path`, for `load_prefix`. Returns
        the tokens in it: those of full blocks; the few behind them are computed when it is used.
        """
        ids = self._ids(prompt)
        self._check_room(len(ids))
        self._check_process()
        adapter = self.adapters.named(None)
        return prefix.save(self._worker, ids, cache_salt, adapter, Path(path), self.origin())

    def load_prefix(self, path: str | Path) -> list[int]:
        """Put a saved prefix among the computed ones, so that prompts which begin with it (and
        have its salt) start at once. Returns its ids. It is forgotten like others, the least
        recently used first. UserError if it is damaged or not of this model and type of cache."""
        self._check_process()
        adapter, entries = self.adapters.named(None), self.config.vocab_size
        return prefix.load(self._worker, adapter, Path(path), self.origin(), entries)

    def origin(self) -> str:
        """What keys and values depend on beside the ids, and answers beside the request."""
        if self._identity is None:
            raise UserError("what was computed can be kept only for a model that is on disk")
        adapter = self.adapters.named(None)
        parts = self._identity(), self.config, self.backend.name, self.backend.kv_cache_dtype
        return " ".join(map(str, (*parts, *([adapter.key] if adapter else ()))))

    # checks

    def _answer(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        constraint: ConstraintSpec | Constraint | None,
        thinking_budget: int | None,
        cache_salt: str,
        adapter: str | None,
        prediction: Sequence[int],
    ) -> AnswerJob:
        ids = self._ids(prompt)
        settled = (params or SamplingParams()).over(self.params)
        self._check_params(settled)
        limit = min(len(ids) + settled.max_tokens, self.config.context)
        self._check_room(limit, len(ids))
        kept = self._constraint(constraint, ids, thinking_budget, cache_salt)
        return AnswerJob(
            scheduler.Sequence(ids, limit, cache_salt, adapter=self.adapters.named(adapter)),
            settled,
            {*settled.stop_token_ids, *(() if settled.ignore_eos else self.stop_ids)},
            TextStream(self.tokenizer),
            Channel(len(ids), kept),
            kept,
            self._drafter() if self._drafter else None,
            Prediction(prediction, self._costs) if self._drafter and prediction else None,
        )

    def _constraint(
        self,
        constraint: ConstraintSpec | Constraint | None,
        ids: list[int],
        thinking_budget: int | None,
        salt: str,
    ) -> Constraint | None:
        if constraint is None and thinking_budget is None:
            return None  # and the grammars' tokenizer, over a second for 128,256, is not made
        if constraint is None or isinstance(constraint, ConstraintSpec):
            return self._constraints.start(constraint, ids, thinking_budget, salt)
        if thinking_budget is not None:
            raise UserError("thinking_budget: goes with a constraint of ours, or with none")
        return constraint

    @cached_property
    def _constraints(self) -> Constraints:
        return Constraints(self.tokenizer, self.config.vocab_size)

    def _add(self, jobs: Sequence[Job]) -> None:
        self._check_process()
        held: list[Job] | None = getattr(self._held, "jobs", None)
        if held is None:
            self._worker.add(jobs)
        else:
            held += jobs

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
            ids = bos + self.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        self._check(ids)
        if len(ids) == self.config.context:
            message = f"the prompt fills the model's context of {len(ids)} tokens; shorten it"
            raise ContextOverflow(message, len(ids), 0, self.room)
        return ids

    def _check(self, ids: Sequence[int], unread: int = 0) -> None:
        """unread: tokens at the end that nothing follows, which take no place in the context."""
        context, entries = self.config.context, self.config.vocab_size
        if not ids:
            raise UserError("the prompt is empty; give it at least one token")
        if len(ids) - unread > context:
            message = f"{len(ids)} tokens do not fit the model's context of {context}"
            raise ContextOverflow(message, len(ids), 0, self.room)
        if not 0 <= min(ids) <= max(ids) < entries:
            raise UserError(f"token ids must be from 0 to {entries - 1}")

    def _check_params(self, params: SamplingParams) -> None:
        entries = self.config.vocab_size
        if params.n != 1:
            raise UserError(f"n: this gives one answer, not {params.n}; ask once for each choice")
        for name, ids in (
            ("logit_bias", params.logit_bias),
            ("stop_token_ids", params.stop_token_ids),
        ):
            if any(index >= entries for index in ids):
                raise UserError(f"{name}: token ids must be from 0 to {entries - 1}")

    def _check_room(self, limit: int, prompt: int = 0) -> None:
        needed, there = blocks_of(limit), self.backend.blocks
        if needed > there:
            message = (
                f"{limit} tokens need {needed} blocks of the cache, which has {there}; "
                "lower max_tokens, shorten the prompt or give the cache more memory"
            )
            asked = 0 if prompt >= self.room else limit - prompt
            raise ContextOverflow(message, prompt or limit, asked, self.room)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UserError("the engine belongs to the process that this one was forked from")
