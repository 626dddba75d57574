"""The engine: prompts and conversations in, answers out, from any thread, many at once."""

from __future__ import annotations

import datetime
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smollm3.chat import Message
from smollm3.checkpoint import load_model, load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer import scheduler
from smollm3.infer.backends import Backend
from smollm3.infer.backends.torch import TorchBackend
from smollm3.infer.blocks import blocks_of
from smollm3.infer.generation import Channel, Completion, Generation
from smollm3.infer.hooks import Constraint, MakeDrafter
from smollm3.infer.jobs import Answer, Reading
from smollm3.infer.params import PUBLISHED, SamplingParams, model_params
from smollm3.infer.text import TextStream
from smollm3.infer.worker import Stats, Worker
from smollm3.model import ModelConfig
from smollm3.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any] | Message]

ROWS = 128  # sequences that run at once
STEP_TOKENS = 512  # more at once is no faster on a CPU, and running answers wait for them
STEP_DRAFTS = 32


class Engine:
    """A model with its tokenizer and its own sampling settings (`params`).

    One thread owns the model; every method may be called from any other. Answers do not depend on
    what else is asked at the same time: random numbers are keyed by each request's seed and the
    token's place.

    drafter: makes what guesses the next tokens of a request. rows: sequences that run at once.
    step_tokens: of one forward pass. step_drafts: guesses in one, shared by those that run.
    """

    def __init__(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        params: SamplingParams = PUBLISHED,
        *,
        drafter: MakeDrafter | None = None,
        rows: int = ROWS,
        step_tokens: int = STEP_TOKENS,
        step_drafts: int = STEP_DRAFTS,
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
        self._process = os.getpid()
        self._worker = Worker(backend, rows, step_tokens, step_drafts)
        # The thread does not know this object: when nobody else does either, it ends.
        self._finalizer = weakref.finalize(self, self._worker.close)

    @property
    def config(self) -> ModelConfig:
        return self.backend.config

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
        constraint: Constraint | None = None,
        salt: str = "",
    ) -> Generation:
        """Ask for one answer, and return at once.

        prompt: a text (control tokens in it are text) or ids. constraint: of this request alone.
        salt: prompts share computed prefixes with those of the same salt only.
        Raises UserError for an empty prompt, one that leaves no room in the context, ids outside
        the vocabulary, and what the cache can never hold.
        """
        ids = self._ids(prompt)
        settled = (params or SamplingParams()).over(self.params)
        self._check_params(settled)
        limit = min(len(ids) + settled.max_tokens, self.config.context)
        self._check_room(limit)
        channel = Channel(len(ids))
        job = Answer(
            scheduler.Sequence(ids, limit, salt),
            settled,
            {*settled.stop_ids, *(() if settled.ignore_eos else self.stop_ids)},
            TextStream(self.tokenizer),
            channel,
            constraint,
            self._drafter() if self._drafter else None,
        )
        self._check_process()
        self._worker.add(job)
        worker = self._worker
        return Generation(channel, self, lambda: worker.cancel(job))

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
        asked: list[Generation] = []
        try:
            for prompt, each in zip(prompts, params, strict=True):
                asked += [self.submit(prompt, choice) for choice in each.choices()]
            return [generation.result() for generation in asked]
        except BaseException:
            for generation in asked:
                generation.cancel()
            raise

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        constraint: Constraint | None = None,
    ) -> Iterator[str]:
        """The text of an answer as it comes, in pieces that are whole characters."""
        generation = self.submit(prompt, params, constraint=constraint)
        try:
            yield from (step.text for step in generation if step.text)
        finally:
            generation.cancel()

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        python_tools: Sequence[Any] | None = None,
        enable_thinking: bool = True,
        params: SamplingParams | None = None,
        date: datetime.date | None = None,
        constraint: Constraint | None = None,
    ) -> Message:
        """The model's next message. date: told to the model, today where it is None."""
        prompt = self._prompt(messages, tools, python_tools, enable_thinking, date)
        generation = self.submit(prompt, params, constraint=constraint)
        return self.tokenizer.parse(generation.result().ids, python_tools=bool(python_tools))

    def chat_stream(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        python_tools: Sequence[Any] | None = None,
        enable_thinking: bool = True,
        params: SamplingParams | None = None,
        date: datetime.date | None = None,
        constraint: Constraint | None = None,
    ) -> Iterator[str]:
        """The text of the next message as it comes, tags around reasoning and calls included."""
        prompt = self._prompt(messages, tools, python_tools, enable_thinking, date)
        return self.stream(prompt, params, constraint=constraint)

    # reading

    def score(self, ids: Sequence[int], first: int = 1) -> list[float]:
        """Log-probability of each token from place `first` on, given those before it."""
        return self.score_batch([ids], [first])[0]

    def score_batch(
        self, batch: Sequence[Sequence[int]], firsts: Sequence[int] | None = None
    ) -> list[list[float]]:
        """`score` of each. What comes before the first place is found again where it was read."""
        firsts = [1] * len(batch) if firsts is None else firsts
        for ids in batch:
            self._check(ids)
        asked: list[Future[list[Tensor]] | None] = []
        for ids, first in zip(batch, firsts, strict=True):
            if first < 1:
                raise UserError(f"first: the token at place {first} has none before it; from 1 on")
            asked.append(self._read_scored(ids, first) if first < len(ids) else None)
        return [torch.cat(f.result()).tolist() if f else [] for f in asked]

    def logprobs(self, ids: Sequence[int]) -> Tensor:
        """[T, V] log-probabilities of what follows each token, float32 on the CPU: much memory."""
        self._check(ids)
        self._check_room(len(ids))
        return torch.cat(
            self._read(list(ids), 0, lambda logits, place: logits.log_softmax(-1).cpu()).result()
        )

    def _read_scored(self, ids: Sequence[int], first: int) -> Future[list[Tensor]]:
        targets = torch.tensor(ids)

        def chosen(logits_RV: Tensor, place: int) -> Tensor:
            next_R = targets[place + 1 : place + 1 + len(logits_RV)].to(logits_RV.device)
            return logits_RV.gather(1, next_R[:, None])[:, 0] - logits_RV.logsumexp(-1)

        self._check_room(len(ids) - 1)
        return self._read(list(ids[:-1]), first - 1, chosen)

    def _read(self, ids: list[int], first: int, reduce: Any) -> Future[list[Tensor]]:
        self._check_process()
        future: Future[list[Tensor]] = Future()
        self._worker.add(Reading(ids, first, reduce, future.set_result, future.set_exception))
        return future

    # checks

    def _prompt(
        self,
        messages: Messages,
        tools: Sequence[Any] | None,
        python_tools: Sequence[Any] | None,
        enable_thinking: bool,
        date: datetime.date | None,
    ) -> list[int]:
        return self.tokenizer.render(
            messages,
            tools=tools,
            python_tools=python_tools,
            enable_thinking=enable_thinking,
            date=date or datetime.date.today(),
        ).ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
            ids = bos + self.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        self._check(ids)
        if len(ids) == self.config.context:
            raise UserError(
                f"the prompt fills the model's context of {len(ids)} tokens; shorten it"
            )
        return ids

    def _check(self, ids: Sequence[int]) -> None:
        context, entries = self.config.context, self.config.vocab_size
        if not ids:
            raise UserError("the prompt is empty; give it at least one token")
        if len(ids) > context:
            raise UserError(f"{len(ids)} tokens do not fit the model's context of {context}")
        if not 0 <= min(ids) <= max(ids) < entries:
            raise UserError(f"token ids must be from 0 to {entries - 1}")

    def _check_params(self, params: SamplingParams) -> None:
        entries = self.config.vocab_size
        if params.n != 1:
            raise UserError(f"n: this gives one answer, not {params.n}; ask once for each choice")
        for name, ids in (("logit_bias", params.logit_bias), ("stop_ids", params.stop_ids)):
            if any(index >= entries for index in ids):
                raise UserError(f"{name}: token ids must be from 0 to {entries - 1}")

    def _check_room(self, limit: int) -> None:
        needed, there = blocks_of(limit), self.backend.blocks
        if needed > there:
            raise UserError(
                f"{limit} tokens need {needed} blocks of the cache, which has {there}; "
                "lower max_tokens, shorten the prompt or give the cache more memory"
            )

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UserError("the engine belongs to the process that this one was forked from")


def load_engine(
    target: str | Path,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    context: int | None = None,
) -> Engine:
    """The engine of a model folder, run folder, Hub id or short name.

    context: tokens it must hold; more than config.json says turns on YaRN.
    """
    folder = locate(target)
    model = load_model(folder, dtype, device, context)
    return Engine(TorchBackend(model), load_tokenizer(folder), model_params(folder))
