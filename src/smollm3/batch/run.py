"""Many requests from a file, their answers into another: resumable, in order, in bounded memory."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, BinaryIO, Protocol

from smollm3.batch.answers import Answers
from smollm3.errors import UserError
from smollm3.files import MAX_JSON_BYTES, sha256_json
from smollm3.infer.constrain.grammars import Choice, ConstraintSpec, Grammar, Json, Regex
from smollm3.infer.engine import Engine
from smollm3.infer.errors import RequestFailed
from smollm3.infer.params import SamplingParams
from smollm3.turn import Reply, Request, submit

# Requests behind the oldest unanswered one that may be started: how far a long answer can be
# overtaken. Of an answer that waits, memory holds only where it lies in the journal.
WINDOW = 16_384
SYNC_SECONDS = 0.2  # between two waits for the disk
POLL_SECONDS = 0.005
PARAMS = frozenset(f.name for f in fields(SamplingParams))
CHAT = frozenset(("tools", "enable_thinking"))
CONSTRAINTS = {"json_schema": Json, "regex": Regex, "grammar": Grammar, "choice": Choice}
KEYS = PARAMS | CHAT | CONSTRAINTS.keys() | {"id", "prompt", "messages", "thinking_budget"}


@dataclass(frozen=True)
class BatchSettings:
    """What holds for every request that does not say otherwise.

    as_chat: a prompt is a user's message. model: says what answers, for the answers' keys.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    constraint: ConstraintSpec | None = None
    thinking_budget: int | None = None
    as_chat: bool = False
    enable_thinking: bool = True
    system: str | None = None
    model: str = ""

    def of(self, engine: Engine) -> BatchSettings:
        """The same, answered by this engine."""
        return replace(self, model=f"{engine.origin()} {engine.params}")


@dataclass(frozen=True)
class Line:
    """One line of the input.

    key: a checksum of all that decides its answer, kept with the answer. error: what is wrong with
    the line, if so.
    """

    id: str | int
    place: str
    key: str
    request: Request = field(default_factory=Request)
    error: str | None = None

    def start(self, engine: Engine, date: datetime.date) -> list[Reply]:
        """Hand it to the engine; a reply for each of its n answers."""
        if self.error:
            raise UserError(self.error)
        return submit(engine, [replace(self.request, date=date)])

    def answer(self, replies: Sequence[Reply], date: datetime.date) -> dict[str, Any]:
        """What to keep of the finished replies; nothing that depends on the moment."""
        chosen = zip(self.request.sampling.choices(), replies, strict=True)
        choices = [self._choice(params, reply) for params, reply in chosen]
        body = choices[0] if len(choices) == 1 else {"choices": choices}
        return body if self.request.prompt is not None else {**body, "date": date.isoformat()}

    def _choice(self, params: SamplingParams, reply: Reply) -> dict[str, Any]:
        message, usage = reply.result(), reply.usage
        raw = self.request.prompt is not None
        choice: dict[str, Any] = {
            "text" if raw else "message": reply.text if raw else message.to_dict(),
            "finish_reason": reply.reason,
            "seed": params.seed,
            "prompt_tokens": usage.prompt,
            "completion_tokens": usage.completion,
        }
        if params.logprobs:
            choice |= {
                "ids": [step.id for step in reply.steps],
                "logprobs": [step.logprob for step in reply.steps],
                "top_logprobs": [step.top_logprobs for step in reply.steps],
            }
        return choice


def read_requests(file: BinaryIO, name: str, settings: BatchSettings) -> Iterator[Line]:
    """The requests of a JSON-lines file; a bad line becomes one that holds its error."""
    index = 0
    number = 0
    while line := file.readline(MAX_JSON_BYTES):
        number += 1
        too_long = len(line) == MAX_JSON_BYTES and not line.endswith(b"\n")
        while too_long and (rest := file.readline(MAX_JSON_BYTES)):
            if rest.endswith(b"\n"):
                break
        if not line.strip():
            continue
        place = f"{name}:{number}"
        seed = settings.params.seed + index
        values: Any = None
        try:
            if too_long:
                raise UserError(f"longer than {MAX_JSON_BYTES >> 20} MiB")
            values = _object(line)
            yield _request(values, number, place, settings, seed)
        except UserError as e:
            given = values.get("id") if isinstance(values, dict) else None
            identity = given if isinstance(given, str | int) else number
            key = hashlib.sha256(line).hexdigest()[:16]
            yield Line(identity, place, key, error=str(e))
        index += 1


def _object(line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode())
    except (ValueError, RecursionError) as e:
        raise UserError(f"not valid JSON ({e})") from None
    if not isinstance(values, dict):
        raise UserError(f"must be a JSON object, not {line.strip().decode():.40}")
    return values


def _request(
    values: dict[str, Any], number: int, place: str, settings: BatchSettings, seed: int
) -> Line:
    for key in values.keys() - KEYS:
        near = get_close_matches(key, KEYS, 1)
        raise UserError(f"{key}: unknown key" + (f"; did you mean {near[0]!r}?" if near else ""))
    if ("prompt" in values) == ("messages" in values):
        raise UserError("needs either prompt or messages")
    identity = values.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise UserError(f"id: must be a text or a whole number, not {identity!r}")
    params = replace(settings.params, **_params({"seed": seed} | values))
    constraint = _constraint(values) or settings.constraint
    budget = values.get("thinking_budget", settings.thinking_budget)
    chat = "messages" in values or settings.as_chat
    decides = {
        "id": identity,
        "line": {k: v for k, v in values.items() if k in CHAT | {"prompt", "messages"}},
        "params": [repr(params), repr(constraint), budget],
        "chat": [settings.enable_thinking, settings.system] if chat else None,
        "model": settings.model,
    }
    try:
        checksum = sha256_json(decides)[:16]
    except ValueError:
        raise UserError("holds a lone surrogate, which is no character") from None
    request = Request(params=params, constraint=constraint, thinking_budget=budget)
    if chat:
        options = {k: values[k] for k in CHAT & values.keys()}
        options.setdefault("enable_thinking", settings.enable_thinking)
        if not isinstance(options["enable_thinking"], bool):
            raise UserError("enable_thinking: must be true or false")
        messages = conversation(values, settings.system)
        return Line(identity, place, checksum, replace(request, messages=messages, **options))
    if given := CHAT & values.keys():
        raise UserError(f"{min(given)}: only for messages (or --chat)")
    request = replace(request, prompt=_prompt(values["prompt"]))
    return Line(identity, place, checksum, request)


def conversation(values: Mapping[str, Any], system: str | None) -> list[Any]:
    """The messages, or the prompt as a user's, behind the system prompt unless they have one."""
    messages = values.get("messages")
    if "prompt" in values:
        if not isinstance(values["prompt"], str):
            raise UserError("prompt: must be a text to become a message")
        messages = [{"role": "user", "content": values["prompt"]}]
    if not isinstance(messages, list):
        raise UserError(f"messages: must be a list, not {messages!r:.40}")
    first = messages[0] if messages else None
    if system is None or (isinstance(first, dict) and first.get("role") == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _prompt(prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    raise UserError("prompt: must be a text or a list of token ids")


def _params(values: dict[str, Any]) -> dict[str, Any]:
    chosen = {key: value for key, value in values.items() if key in PARAMS}
    bias = chosen.get("logit_bias")
    if isinstance(bias, dict):  # JSON has only texts as keys
        try:
            chosen["logit_bias"] = {int(token): value for token, value in bias.items()}
        except ValueError:
            raise UserError(f"logit_bias: keys must be token ids, not {list(bias)!r:.40}") from None
    return chosen


def _constraint(values: Mapping[str, Any]) -> ConstraintSpec | None:
    given = sorted(CONSTRAINTS.keys() & values.keys())
    if len(given) > 1:
        raise UserError(f"{given[0]}: not together with {given[1]}")
    return CONSTRAINTS[given[0]](values[given[0]]) if given else None


class BatchLine(Protocol):
    """A request of a batch.

    id: as the answers tell it. place: for people. key: a checksum of all that decides its answer,
    kept with the answer.
    """

    @property
    def id(self) -> str | int: ...
    @property
    def place(self) -> str: ...
    @property
    def key(self) -> str: ...

    def start(self, engine: Engine, date: datetime.date) -> list[Reply]:
        """Hand it to the engine. Raises UserError for what is wrong with it."""

    def answer(self, replies: Sequence[Reply], date: datetime.date) -> dict[str, Any]:
        """What to keep of the finished replies. Raises UserError and RequestFailed."""


@dataclass
class Tally:
    """done: answers in the file, errors among them and those of earlier runs included; tokens:
    made in this run; place: of the input's line read last."""

    done: int = 0
    errors: int = 0
    tokens: int = 0


class View(Protocol):
    """Who watches a batch."""

    def error(self, message: str) -> None: ...

    def progress(self, tally: Tally) -> None: ...


class BatchRun:
    """Answers the requests that `answers` has none for, at most `concurrency` at a time, and new
    ones only while `welcome`."""

    def __init__(
        self,
        engine: Engine,
        answers: Answers,
        view: View,
        concurrency: int,
        welcome: Callable[[], bool] = lambda: True,
    ) -> None:
        self.welcome = welcome
        self.engine = engine
        self.answers = answers
        self.view = view
        self.concurrency = concurrency
        self.tally = Tally()
        self.date = _date(answers)
        self._running: dict[int, tuple[BatchLine, list[Reply]]] = {}
        self._newest = -1
        self._synced = time.monotonic()

    def run(self, lines: Iterator[BatchLine]) -> Tally:
        """Raises UserError where the file holds an answer to another request."""
        try:
            more = True
            while more or self._running:
                more = more and self._start(lines)
                if not self._collect():
                    time.sleep(POLL_SECONDS)
                if time.monotonic() - self._synced > SYNC_SECONDS:
                    self.answers.sync()
                    self.view.progress(self.tally)
                    self._synced = time.monotonic()
            self.answers.finish()
            self.view.progress(self.tally)
        finally:
            for _, replies in self._running.values():
                for reply in replies:
                    reply.cancel()
        return self.tally

    def _start(self, lines: Iterator[BatchLine]) -> bool:
        """Start what there is room for; whether there may be more requests."""
        while self._room():
            line = next(lines, None)
            if line is None:
                return False
            self._newest += 1
            if self._answered(line):
                continue
            try:
                self._running[self._newest] = (line, line.start(self.engine, self.date))
            except UserError as e:
                self._failed(self._newest, line, str(e), line.key)
        return True

    def _room(self) -> bool:
        running = sum(len(replies) for _, replies in self._running.values())
        near = self._newest - self.answers.next < WINDOW
        return running < self.concurrency and near and self.welcome()

    def _answered(self, line: BatchLine) -> bool:
        old = self.answers.old(self._newest)
        if old is None:
            return False
        if old["key"] != line.key:
            if "error" not in old:
                raise UserError(
                    f"{self.answers.path}:{self._newest + 1}: answers another request, model or "
                    f"settings than {line.place} now; choose another --output"
                )
            self.answers.redo()
            return False
        self.tally.done += 1
        if "error" in old:
            self.tally.errors += 1
            self.view.error(f"{line.place}: {old['error']}")
        return True

    def _collect(self) -> bool:
        """Write down what is finished; whether anything was."""
        finished = [
            index
            for index, (_, replies) in self._running.items()
            if not [reply for reply in replies if not reply.advance()]
        ]
        for index in finished:
            line, replies = self._running.pop(index)
            try:
                body = line.answer(replies, self.date)
            except UserError as e:
                self._failed(index, line, str(e), line.key)
            except RequestFailed as e:  # the engine's fault: a later run tries again
                self._failed(index, line, str(e), key="")
            else:
                self.answers.add(index, {"id": line.id, **body, "key": line.key})
                self.tally.done += 1
                self.tally.tokens += sum(len(reply.steps) for reply in replies)
        return bool(finished)

    def _failed(self, index: int, line: BatchLine, error: str, key: str) -> None:
        self.view.error(f"{line.place}: {error}")
        self.answers.add(index, {"id": line.id, "error": error, "key": key})
        self.tally.done += 1
        self.tally.errors += 1


def _date(answers: Answers) -> datetime.date:
    """What the model is told is today: the day on which the batch was begun."""
    for answer in answers.begun():
        if "date" in answer:
            return datetime.date.fromisoformat(answer["date"])
    return datetime.date.today()
