"""The engine: many sequences at once, one forward pass a step for all that are running."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from smollm3.chat import Message
from smollm3.checkpoint import load_model, load_tokenizer, locate
from smollm3.errors import UserError
from smollm3.infer.cache import DenseCache
from smollm3.infer.params import PUBLISHED, SamplingParams, model_params
from smollm3.infer.sampler import sample
from smollm3.infer.text import TextStream
from smollm3.model import Transformer, rope_tables
from smollm3.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any] | Message]

MAX_ROWS = 128  # sequences decoded together
CACHE_BYTES = 2**30  # of keys and values; one sequence may take more
PASS_TOKENS = 8192  # in one forward pass over prompts; one prompt may be longer
PASS_LOGITS = 2**25  # in one product with the vocabulary: 128 MiB in float32


@dataclass(frozen=True)
class Completion:
    """ids: the new tokens, the one that stopped it included. text: theirs without that one and
    other control tokens. logprobs: of each new token, natural logarithm, before temperature.
    """

    ids: list[int]
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: list[float]


@dataclass
class _Sequence:
    """A running request. ids: prompt and new tokens; limit: its greatest length."""

    ids: list[int]
    params: SamplingParams
    prompt: int
    limit: int
    logprobs: list[float] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] | None = None


class Engine:
    """A model with its tokenizer and its own sampling settings (`params`).

    Answers do not depend on what else is asked at the same time: random numbers are keyed by
    each request's seed and the token's place.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, params: SamplingParams = PUBLISHED
    ) -> None:
        if tokenizer.vocab_size > model.config.vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} entries, "
                f"the model only {model.config.vocab_size}"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.params = params
        self.stop_ids = frozenset(tokenizer.stop_ids)

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Continue each prompt: a text (control tokens in it are text) or ids.

        params: for all, or one for each. Raises UserError for an empty prompt, one that leaves
        no room in the context, or ids outside the vocabulary.
        """
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        pairs = zip(prompts, params, strict=True)
        sequences = [self._sequence(prompt, p) for prompt, p in pairs]
        order = sorted(sequences, key=lambda s: (s.limit, s.prompt))
        places = CACHE_BYTES // DenseCache.bytes_per_place(
            self.model.config, self.model.embed.weight.dtype
        )
        for group in _groups([s.limit for s in order], places, MAX_ROWS):
            for _ in self._run(order[group]):
                pass
        return [self._completion(s) for s in sequences]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """The text of `generate` as it comes, in pieces that are whole characters."""
        sequence = self._sequence(prompt, params or SamplingParams())
        text = TextStream(self.tokenizer)
        for _ in self._run([sequence]):
            if sequence.finish_reason != "stop":
                yield from text.push(sequence.ids[-1])
        yield from text.end()

    def chat(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        python_tools: Sequence[Any] | None = None,
        enable_thinking: bool = True,
        params: SamplingParams | None = None,
        date: datetime.date | None = None,
    ) -> Message:
        """The model's next message. date: told to the model, today where it is None."""
        prompt = self._prompt(messages, tools, python_tools, enable_thinking, date)
        [completion] = self.generate([prompt], params)
        return self.tokenizer.parse(completion.ids, python_tools=bool(python_tools))

    def chat_stream(
        self,
        messages: Messages,
        *,
        tools: Sequence[Any] | None = None,
        python_tools: Sequence[Any] | None = None,
        enable_thinking: bool = True,
        params: SamplingParams | None = None,
        date: datetime.date | None = None,
    ) -> Iterator[str]:
        """The text of the next message as it comes, tags around reasoning and calls included."""
        return self.stream(
            self._prompt(messages, tools, python_tools, enable_thinking, date), params
        )

    def score(self, ids: Sequence[int]) -> list[float]:
        """Log-probability of each token after the first given those before it: len(ids) - 1."""
        return self.score_batch([ids])[0]

    @torch.inference_mode()
    def score_batch(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """`score` of each, several in one forward pass."""
        for ids in batch:
            self._check(ids)
        scores: list[list[float]] = [[] for _ in batch]
        order = sorted(range(len(batch)), key=lambda i: len(batch[i]))
        for group in _groups([len(batch[i]) for i in order], PASS_TOKENS, MAX_ROWS):
            chosen = order[group]
            ids_BT = self._padded([batch[i] for i in chosen])
            h_BTE = self.model.hidden(ids_BT[:, :-1])
            logprobs = self._logprobs(h_BTE.flatten(0, 1), ids_BT[:, 1:].flatten())
            for i, row in zip(chosen, logprobs.view(len(chosen), -1).tolist(), strict=True):
                scores[i] = row[: len(batch[i]) - 1]
        return scores

    def _logprobs(self, h_NE: Tensor, targets_N: Tensor) -> Tensor:
        rows = max(1, PASS_LOGITS // self.model.config.vocab_size)
        pieces = []
        for h_nE, targets_n in zip(
            torch.split(h_NE, rows), torch.split(targets_N, rows), strict=True
        ):
            logits_nV = self.model.logits(h_nE).float()
            chosen_n = logits_nV.gather(1, targets_n[:, None])[:, 0]
            pieces.append(chosen_n - logits_nV.logsumexp(-1))
        return torch.cat(pieces)

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

    def _sequence(self, prompt: Prompt, params: SamplingParams) -> _Sequence:
        if isinstance(prompt, str):
            bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
            ids = bos + self.tokenizer.encode(prompt)
        else:
            ids = list(prompt)
        self._check(ids)
        context = self.model.config.context
        if len(ids) == context:
            raise UserError(f"the prompt fills the model's context of {context} tokens; shorten it")
        limit = min(len(ids) + params.max_tokens, context)
        return _Sequence(ids, params.over(self.params), len(ids), limit)

    def _check(self, ids: Sequence[int]) -> None:
        context, entries = self.model.config.context, self.model.config.vocab_size
        if not ids:
            raise UserError("the prompt is empty; give it at least one token")
        if len(ids) > context:
            raise UserError(f"{len(ids)} tokens do not fit the model's context of {context}")
        if not 0 <= min(ids) <= max(ids) < entries:
            raise UserError(f"token ids must be from 0 to {entries - 1}")

    def _completion(self, sequence: _Sequence) -> Completion:
        ids = sequence.ids[sequence.prompt :]
        reason = sequence.finish_reason or "length"
        shown = ids[:-1] if reason == "stop" else ids
        text = self.tokenizer.decode(shown, skip_special=True)
        return Completion(ids, text, reason, sequence.logprobs)

    def _run(self, running: Sequence[_Sequence]) -> Iterator[None]:
        """Give each sequence its tokens, one a step; yields after each step.

        The last row takes the place of one that ended, so a step costs what still runs.
        """
        running = list(running)
        places = max(s.limit for s in running)
        cache = DenseCache(self.model.config, len(running), places, self.model.embed.weight)
        logits_BV = self._prefill(cache, running)
        while True:
            places_B = [len(s.ids) for s in running]
            tokens, logprobs = sample(logits_BV, [s.params for s in running], places_B)
            for sequence, token, logprob in zip(running, tokens, logprobs, strict=True):
                self._append(sequence, token, logprob)
            yield
            for row in reversed(range(len(running))):
                if running[row].finish_reason:
                    last = running.pop()
                    if row < len(running):
                        running[row] = last
                        cache.move(len(running), row, len(last.ids) - 1)
            if not running:
                return
            logits_BV = self._decode(cache, running)

    def _append(self, sequence: _Sequence, token: int, logprob: float) -> None:
        sequence.ids.append(token)
        sequence.logprobs.append(logprob)
        if token in self.stop_ids:
            sequence.finish_reason = "stop"
        elif len(sequence.ids) >= sequence.limit:
            sequence.finish_reason = "length"

    @torch.inference_mode()
    def _prefill(self, cache: DenseCache, running: Sequence[_Sequence]) -> Tensor:
        """Logits [B, V] after each prompt, whose keys and values go into the cache."""
        logits = []
        for group in _groups([s.prompt for s in running], PASS_TOKENS, MAX_ROWS):
            ids_BT = self._padded([s.ids for s in running[group]])
            h_BTE = self.model.hidden(ids_BT, attend=cache.prefill(group.start, group.stop))
            last_B = torch.tensor([s.prompt - 1 for s in running[group]], device=ids_BT.device)
            rows_B = torch.arange(len(last_B), device=ids_BT.device)
            logits.append(self.model.logits(h_BTE[rows_B, last_B]))
        return torch.cat(logits)

    @torch.inference_mode()
    def _decode(self, cache: DenseCache, running: Sequence[_Sequence]) -> Tensor:
        """Logits [B, V] after each sequence's newest token, the only one not in the cache yet."""
        device = self.model.embed.weight.device
        positions = [len(s.ids) - 1 for s in running]
        ids_B1 = torch.tensor([s.ids[-1:] for s in running], device=device)
        rope = rope_tables(self.model.config, torch.tensor(positions, device=device)[:, None])
        h_B1E = self.model.hidden(ids_B1, rope, cache.decode(positions))
        return self.model.logits(h_B1E[:, 0])

    def _padded(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """ids_BT, padded on the right, where causal attention never looks."""
        longest = max(map(len, rows))
        padded = [[*ids, *[0] * (longest - len(ids))] for ids in rows]
        return torch.tensor(padded, device=self.model.embed.weight.device)


def _groups(lengths: Sequence[int], tokens: int, rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `rows` rows and, padded to their longest, `tokens` tokens;
    a single row may be longer than that."""
    start = 0
    longest = 0
    for end, length in enumerate(lengths):
        longest = max(longest, length)
        if end > start and ((end - start + 1) * longest > tokens or end - start == rows):
            yield slice(start, end)
            start, longest = end, length
    if lengths:
        yield slice(start, len(lengths))


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
    return Engine(model, load_tokenizer(folder), model_params(folder))
