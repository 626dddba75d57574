"""What is asked of the model, and how it is handed to the engine."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from smollm3.chat import Message, StreamParser
from smollm3.chat.tags import CALL, CODE, END_THINK
from smollm3.infer.constrain.grammars import ConstraintSpec, Tools
from smollm3.infer.constrain.thinking import reasoning_of
from smollm3.infer.errors import UnsupportedConstraint
from smollm3.infer.hooks import Constraint
from smollm3.infer.params import SamplingParams
from smollm3.tokenizer import Tokenizer
from smollm3.turn.reply import Reply

if TYPE_CHECKING:
    from smollm3.infer.engine import Engine
    from smollm3.infer.generation import Generation

FORBIDDEN = -1e9  # added to the logit of a token that must not come


@dataclass(frozen=True)
class Request:
    """A conversation that the model answers, or a `prompt` (a text or token ids) that it continues.

    tools, python_tools: what the template is told; called as JSON, or as Python code. may_call:
    False forbids calls of them. parallel: more than one call; without it the answer ends with the
    first. date: told to the model, today where it is None. instructions: where there is no system
    message. variables: others that the template reads.
    prefill: the beginning of the answer, which the model goes on from and the reply leaves out.
    params: their `stop` texts end the content of a conversation's answer, not its reasoning or its
    calls; of a prompt, they end the text. fit: `max_tokens` is lowered to what context and cache
    have room for.
    constraint: what follows the reasoning must satisfy it. optional: where it cannot be had
    (`UnsupportedConstraint`), the answer is made without it. thinking_budget: tokens of reasoning.
    prediction: a text that the content is expected to be; it changes nothing but the time.
    cache_salt: prefixes are shared only between requests with the same one. adapter: a loaded one,
    by name.
    """

    messages: Sequence[Mapping[str, Any] | Message] = ()
    prompt: str | Sequence[int] | None = None
    tools: Sequence[Any] | None = None
    python_tools: Sequence[Any] | None = None
    may_call: bool = True
    parallel: bool = True
    enable_thinking: bool = True
    instructions: str | None = None
    date: datetime.date | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prefill: str = ""
    params: SamplingParams | None = None
    fit: bool = False
    constraint: ConstraintSpec | Constraint | None = None
    optional: bool = False
    thinking_budget: int | None = None
    prediction: str = ""
    cache_salt: str = ""
    adapter: str | None = None

    @property
    def sampling(self) -> SamplingParams:
        return self.params or SamplingParams()

    @property
    def stops(self) -> Sequence[str]:
        """Texts that end the content of the answer; a continued prompt's are the engine's."""
        return self.sampling.stop if self.prompt is None else ()

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens that the model reads. UserError for what the template does not take."""
        if self.prompt is None:
            ids = tokenizer.render(
                self.messages,
                tools=list(self.tools or ()) or None,
                python_tools=list(self.python_tools or ()) or None,
                enable_thinking=self.enable_thinking,
                custom_instructions=self.instructions,
                date=self.date or datetime.date.today(),
                variables=self.variables,
            ).ids
            return ids + tokenizer.encode(self.prefill) if self.prefill else ids
        if isinstance(self.prompt, str):
            bos = [] if tokenizer.bos is None else [tokenizer.bos]
            return bos + tokenizer.encode(self.prompt)
        return list(self.prompt)

    def parser(self, opened: bool = False) -> StreamParser:
        """Reads the answer: only calls that were offered are calls. opened: the prompt has begun
        the block of reasoning."""
        asked = self.constraint if isinstance(self.constraint, Tools) else Tools(())
        return StreamParser(
            xml=self.may_call and bool(self.tools or asked.tools),
            python=self.may_call and bool(self.python_tools or asked.python),
            opened=opened,
        )

    def submit(self, engine: Engine) -> Reply:
        """Ask for the one answer, and return at once. Raises UserError as `Engine.submit`."""
        [reply] = submit(engine, [self])
        return reply

    def _params(self, engine: Engine, ids: Sequence[int]) -> SamplingParams:
        """As the engine needs them."""
        params = self.sampling
        if self.prompt is None and params.stop:
            params = replace(params, stop=())
        if self.fit:
            room = max(engine.room - len(ids), 1)
            params = replace(params, max_tokens=min(params.max_tokens, room))
        if not self.may_call:
            tags, called = engine.tokenizer.tags, [CALL, *([CODE] if self.python_tools else [])]
            banned = {tags[tag]: FORBIDDEN for tag in called if tag in tags}
            params = replace(params, logit_bias={**params.logit_bias, **banned})
        return params

    def _start(
        self, engine: Engine, ids: list[int], params: SamplingParams, predicted: Sequence[int]
    ) -> Generation:
        options: dict[str, Any] = {"thinking_budget": self.thinking_budget}
        if self.cache_salt:
            options["cache_salt"] = self.cache_salt
        if self.adapter:
            options["adapter"] = self.adapter
        if predicted:
            options["prediction"] = predicted
        try:
            return engine.submit(ids, params, constraint=self.constraint, **options)
        except UnsupportedConstraint:
            if not self.optional:
                raise
            return engine.submit(ids, params, **options)

    def _predicted(self, tokenizer: Tokenizer, ids: list[int]) -> list[int]:
        """What comes before the content, and the content; nothing where none is predicted."""
        if not self.prediction:
            return []
        opened = self.prompt is None and self.enable_thinking
        lead = tokenizer.encode_markup(f"{END_THINK}\n") if opened else []
        return [*(lead or ids)[-2:], *tokenizer.encode(self.prediction)]


def submit(engine: Engine, requests: Iterable[Request]) -> list[Reply]:
    """All answers of the first request (`params.n`), then of the second, ...; returns at once.

    Inside `engine.together()` they begin in the same step. Where one cannot be asked, none is.
    """
    replies: list[Reply] = []
    try:
        for request in requests:
            ids = request.ids(engine.tokenizer)
            conversation = request.prompt is None
            opened = conversation and reasoning_of(engine.tokenizer, ids) == "open"
            predicted = request._predicted(engine.tokenizer, ids)
            for params in request._params(engine, ids).choices():
                generation = request._start(engine, ids, params, predicted)
                replies.append(Reply(request, ids, generation, opened, len(replies)))
    except BaseException:
        for reply in replies:
            reply.cancel()
        raise
    return replies
