"""What is evaluated: an engine of ours, asked through its scheduler. See `remote` for a URL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from smollm3.errors import UserError
from smollm3.eval.nano import DATE
from smollm3.infer import Engine, SamplingParams
from smollm3.turn import Reply, Request


@dataclass(frozen=True)
class Settings:
    """How a model is asked, where a task does not say.

    chat: prompts are conversations, in the model's own template. think, system, thinking_budget:
    of these. max_tokens: instead of the task's own limit. sample: by the model's own sampling
    settings instead of the task's (which are greedy, mostly). seed: of the first repeat.
    option_prefix: what stands before an option in a chat, where the harness puts nothing.
    """

    chat: bool = False
    think: bool = False
    system: str | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    sample: bool = False
    seed: int = 0
    option_prefix: str = ""

    def __post_init__(self) -> None:
        if not self.chat and (self.think or self.system or self.thinking_budget):
            raise UserError("--think, --system and --thinking-budget are of a chat; add --chat")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Prompt:
    """A text, or a conversation with tools and with the beginning of its answer."""

    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    prefill: str = ""
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def is_chat(self) -> bool:
        return bool(self.messages)


@dataclass(frozen=True)
class Written:
    """An answer. text: without its reasoning; finish: "stop" or "length"; tokens: made, reasoning
    included. calls: of tools, each {"name": ..., "arguments": {...}}."""

    text: str
    finish: str
    tokens: int
    calls: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Ask:
    """A request for an answer. stop: texts that end it. temperature and the rest are the task's,
    None where it leaves them open."""

    prompt: Prompt
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0


def ask_by(settings: Settings, prompt: Prompt, max_tokens: int, temperature: float = 0.0) -> Ask:
    """At the task's temperature, greedy mostly, unless the model's own sampling is wanted."""
    own = None if settings.sample else temperature
    return Ask(prompt, max_tokens=max_tokens, temperature=own, seed=settings.seed)


Answered = Callable[[Sequence[Ask]], list[dict[str, Any]]]  # `Written`, as a dict, of each


class Work(Protocol):
    """Something on its way; the result is plain JSON."""

    def done(self) -> bool: ...
    def result(self) -> Any: ...


class Target(Protocol):
    """What can be evaluated. origin: all that its answers depend on beside the request.
    at_once: requests worth keeping on their way."""

    name: str
    at_once: int

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def count(self, text: str) -> int:
        """Tokens of a prompt, with all that the chat template adds in a chat."""
        ...

    def origin(self) -> str: ...
    def score(self, prompt: Prompt, continuation: str) -> Work:
        """[log-probability of the continuation, whether it is what greedy sampling gives]."""
        ...

    def score_all(self, text: str) -> Work:
        """Log-probability of a whole text, read in windows where it is longer than the context."""
        ...

    def answer(self, ask: Ask) -> Work:
        """`Written` as a dict."""
        ...


class EngineTarget:
    """An engine of ours."""

    at_once = 256  # more than run at once, so that the scheduler always has prompts to fill a step

    def __init__(self, engine: Engine, name: str, settings: Settings) -> None:
        self.engine = engine
        self.name = name
        self.settings = settings
        self.tokenizer = engine.tokenizer
        self.cut = 0  # prompts of which the beginning did not fit
        self._context_ids = lru_cache(64)(self._ids)

    @property
    def context(self) -> int:
        return self.engine.config.context

    @property
    def threads(self) -> int:
        return getattr(self.engine.backend, "threads", torch.get_num_threads())

    def count(self, text: str) -> int:
        if self.settings.chat:
            return len(self._read(Prompt(messages=({"role": "user", "content": text},))))
        return len(self._ids(text))

    def origin(self) -> str:
        return self.engine.origin()

    def score(self, prompt: Prompt, continuation: str) -> Work:
        context, rest = self.pair(prompt, continuation)
        return _Score(self._submit(context, rest))

    def score_all(self, text: str) -> Work:
        """The harness's windows: each token once, each window as full as possible."""
        ids = self._ids(text)
        size = self.engine.config.context
        parts = []
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            before = [self._first, *ids[:start]][-(size + 1 - len(part)) :]
            parts.append(_Score(self._submit(before, part)))
        return _Sum(parts)

    def answer(self, ask: Ask) -> Work:
        request = self.request(ask)
        full = len(request.ids(self.tokenizer)) >= self.engine.config.context
        return _Answer(None if full else request.submit(self.engine))

    def pair(self, prompt: Prompt, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, as the harness cuts them: blanks at the end of the context belong to the
        continuation, and its ids are what the context's leave of the whole."""
        if prompt.is_chat:
            context = self._read(prompt)
            while (blank := self.tokenizer.decode(context[-1:])).isspace():
                context, continuation = context[:-1], blank + continuation
            return context, self.tokenizer.encode(continuation)
        if not prompt.text:
            return [self._first], self.tokenizer.encode(continuation)
        text = prompt.text.rstrip()
        continuation = prompt.text[len(text) :] + continuation
        context = self._context_ids(text)
        return context, self._ids(text + continuation)[len(context) :]

    def conversation(self, prompt: Prompt) -> Request:
        """As it is asked: the one place where an evaluation makes a request of a conversation."""
        system, messages = self.settings.system, list(prompt.messages)
        if system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        return Request(
            messages=messages,
            tools=list(prompt.tools) or None,
            enable_thinking=self.settings.think,
            date=DATE,
            prefill=prompt.prefill,
            thinking_budget=self.settings.thinking_budget if self.settings.think else None,
        )

    def request(self, ask: Ask) -> Request:
        """A text loses its beginning where that leaves no room for an answer."""
        params = SamplingParams(
            temperature=ask.temperature,
            top_p=ask.top_p,
            top_k=ask.top_k,
            max_tokens=ask.max_tokens,
            seed=ask.seed,
            stop=ask.stop,
        )
        if ask.prompt.is_chat:
            return replace(self.conversation(ask.prompt), params=params)
        ids = self._ids(ask.prompt.text)
        room = self.engine.config.context - ask.max_tokens
        if len(ids) > room > 0:
            self.cut += 1
            ids = ids[-room:]
        return Request(prompt=ids, params=params)

    @cached_property
    def _first(self) -> int:
        """What a text is read behind that nothing stands before: the harness takes the token that
        the tokenizer's files name as a beginning, or else as an end."""
        named = self.tokenizer.named
        name = named.get("bos_token") or named.get("eos_token")
        return self.tokenizer.encode_markup(name)[0] if name else self.tokenizer.end_of_text_id

    def _read(self, prompt: Prompt) -> list[int]:
        return self.conversation(prompt).ids(self.tokenizer)

    def _ids(self, text: str) -> list[int]:
        bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
        return bos + self.tokenizer.encode(text)

    def _submit(self, context: list[int], rest: list[int]) -> Future[Tensor]:
        ids = [*context, *rest]
        most = self.engine.config.context + 1  # the last is not read
        if len(ids) > most:
            self.cut += 1
            ids = ids[-most:]
        return self.engine.submit_scores([ids], [max(len(ids) - len(rest), 1)])[0]


@dataclass(frozen=True)
class _Score:
    future: Future[Tensor]

    def done(self) -> bool:
        return self.future.done()

    def result(self) -> list[Any]:
        pair_R2 = self.future.result().double()
        return [float(pair_R2[:, 0].sum()), bool((pair_R2[:, 0] == pair_R2[:, 1]).all())]


@dataclass(frozen=True)
class _Sum:
    parts: Sequence[_Score]

    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def result(self) -> float:
        return float(sum(part.result()[0] for part in self.parts))


@dataclass(frozen=True)
class _Answer:
    """reply: None where the prompt alone fills the context."""

    reply: Reply | None

    def done(self) -> bool:
        return self.reply is None or self.reply.advance()

    def result(self) -> dict[str, Any]:
        if self.reply is None:
            return asdict(Written("", "length", 0))
        message = self.reply.result()
        is_chat = self.reply.request.prompt is None
        calls = [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls]
        finish = "length" if self.reply.reason == "length" else "stop"
        text = message.content if is_chat else self.reply.text
        return asdict(Written(text, finish, self.reply.usage.completion, calls))
