"""What all dialects share: the engine with its queue, its limits and what runs just now."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from smollm3.agent import Agent
from smollm3.errors import UserError
from smollm3.infer import Engine
from smollm3.infer.errors import ContextOverflow, EngineClosed, RequestFailed
from smollm3.serve.admission import AdmissionQueue, Place
from smollm3.serve.answering import Answering, StreamEvent
from smollm3.serve.ask import Ask
from smollm3.serve.conversation_store import ConversationStore
from smollm3.serve.errors import ApiError, refused, shutting_down, too_late, wrong
from smollm3.serve.metrics import Metrics, Watch
from smollm3.serve.response_store import ResponseStore
from smollm3.serve.settings import Keys, Settings
from smollm3.serve.steps import RunsPython, Steps
from smollm3.serve.tool_executor import ToolExecutor
from smollm3.turn import Part

T = TypeVar("T")
Ids = Sequence[int]
Json = dict[str, Any]


LONG = 1 << 18  # characters of a text that takes a noticeable time to tokenise
TOKENISING = 3  # threads
LONGEST_NAME = 200  # characters of a model's
EVENTS, LINES = "text/event-stream", "application/x-ndjson"  # media types of streams


class Gone(Exception):
    """The client has hung up."""


class Service:
    """What one server process shares between its requests. Belongs to one event loop."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        keys: Keys,
        model: str,
        agent: Agent | None = None,
    ) -> None:
        self.engine = engine
        self.tools = ToolExecutor(agent, several_keys=len(keys) > 1)
        self.settings = settings
        self.keys = keys
        self.model = settings.name or model
        self.created = int(time.time())
        self.admission = AdmissionQueue(settings.running, settings.queue, settings.queue_seconds)
        self.metrics = Metrics(engine, self.admission)
        kept = settings.stored_responses, settings.stored_bytes
        self.responses = ResponseStore(*kept)
        self.conversations = ConversationStore(*kept)
        self._tokenising = ThreadPoolExecutor(TOKENISING, "tokenise")
        self._long = asyncio.Lock()
        self.draining = False
        self._live: set[Answering] = set()
        self._ends: list[Callable[[], None]] = []

    def check_open(self) -> None:
        """Raises ApiError once nothing new is taken."""
        if self.draining:
            raise shutting_down()

    def check_model(self, name: str | None) -> str:
        """The name under which a request is answered."""
        if name is None:
            return self.model
        if len(name) > LONGEST_NAME:  # it would stand in every event of a stream
            raise refused(f"model: at most {LONGEST_NAME} characters", "model")
        if name in self.engine.adapters.folders or self.is_own(name):
            return name
        there = ", ".join(map(repr, (self.model, *self.engine.adapters.folders)))
        raise ApiError(
            404,
            f"the model {name!r:.100} is not here; there is {there}",
            param="model",
            code="model_not_found",
        )

    def is_own(self, name: str) -> bool:
        """Whether it means the model itself."""
        patterns = self.settings.aliases
        return name == self.model or any(fnmatchcase(name, pattern) for pattern in patterns)

    def adapter_of(self, name: str | None) -> str | None:
        """The adapter that a request's `model` names, which goes before an alias with *."""
        return name if name in self.engine.adapters.folders else None

    @asynccontextmanager
    async def answering(
        self, ask: Ask, salt: str, run: RunsPython | None = None
    ) -> AsyncIterator[Answering]:
        """The answers on their way, once it is their turn; they end with the context. run: makes
        the calls of Python, upon which the answer goes on."""
        self.check_open()
        await self.admission.enter(ask.count)
        place = Place(self.admission, ask.count)
        try:
            loop = asyncio.get_running_loop()
            until = loop.time() + self.settings.request_seconds

            def begin(asked: Ask) -> Awaitable[Answering]:
                return self._begin(asked, salt, until - loop.time())

            answering = await begin(ask)
            if run is not None:
                answering = Steps(answering, begin, run)
            else:
                answering.when_made(place.leave)
            self._live.add(answering)
            try:
                yield answering
            finally:
                self._live.discard(answering)
                answering.close()
                self._count(answering)
        finally:
            place.leave()

    async def _begin(self, ask: Ask, salt: str, left: float) -> Answering:
        try:
            replies = await self._tokenise(ask.characters, lambda: ask.start(self.engine, salt))
        except UserError as e:
            raise wrong(e) from None
        return Answering(ask, replies, self.settings.request_seconds, left)

    async def _tokenise(self, size: int, work: Callable[[], T]) -> T:
        """What `work` makes of texts of so many characters; in a thread, as templates of strangers
        run in a process and grammars are compiled. Long texts one after the other: a short one
        finds a thread. Raises ContextOverflow for texts that cannot fit."""
        tokens, room = size // self.engine.tokenizer.longest, self.engine.room
        if tokens > room:
            message = f"at least {tokens} tokens do not fit into {room}; shorten the text"
            raise ContextOverflow(message, tokens, 0, room)
        run = partial(asyncio.get_running_loop().run_in_executor, self._tokenising, work)
        if size <= LONG:
            return await run()
        async with self._long:
            return await run()

    async def tokenised(self, request: Request, size: int, work: Callable[[], T]) -> T:
        """The same of a request that wants no answer, once it is its turn."""

        async def wait() -> T:
            self.check_open()
            await self.admission.enter(1)
            try:
                return await self._tokenise(size, work)
            except UserError as e:
                raise wrong(e) from None
            finally:
                self.admission.leave(1)

        return await unless_gone(request, wait())

    async def prompts(self, request: Request, ask: Ask) -> list[list[int]]:
        """The tokens of each prompt."""
        tokenizer = self.engine.tokenizer
        return await self.tokenised(
            request, ask.characters, lambda: [asked.ids(tokenizer) for asked in ask.requests]
        )

    def _count(self, answering: Answering) -> None:
        tokens, usage = self.metrics.tokens, answering.usage
        tokens.labels("prompt").inc(usage.prompt)
        tokens.labels("cached").inc(usage.cached)
        tokens.labels("completion").inc(usage.completion)

    def drain(self) -> None:
        """Take nothing new."""
        self.draining = True
        for end in self._ends:
            end()

    def at_end(self, end: Callable[[], None]) -> None:
        """Have this called when the server is about to end."""
        self._ends.append(end)

    def end_all(self) -> None:
        """What still runs ends with an error that says why."""
        error = shutting_down()
        self.admission.refuse_waiting(error)
        self.tools.refuse_waiting()
        for answering in list(self._live):
            answering.abort(error)

    async def whole(self, request: Request, ask: Ask, run: RunsPython | None = None) -> Answering:
        """All answers, complete, unless the client hangs up before."""

        async def work() -> Answering:
            async with self.answering(ask, salt_of(request), run) as answering:
                warn(request, answering.warnings)
                async for _ in self._watched(answering):
                    pass
                return answering

        return await unless_gone(request, work())

    async def read(
        self, request: Request, texts: Sequence[Ids], start: Callable[[str], Sequence[Future[T]]]
    ) -> list[T]:
        """What the engine finds in texts that it only reads, once it is their turn; each takes an
        answer's place. start: hands them to the engine, with this salt; called in a thread."""

        async def work() -> list[T]:
            self.check_open()
            places = min(len(texts), self.settings.running)
            await self.admission.enter(places)
            try:
                async with asyncio.timeout(self.settings.request_seconds):
                    started = await asyncio.to_thread(start, salt_of(request))
                    # Shielded: the engine sets them, whoever still waits.
                    waits = (asyncio.shield(asyncio.wrap_future(f)) for f in started)
                    found = await asyncio.gather(*waits)
                self.metrics.tokens.labels("prompt").inc(sum(map(len, texts)))
                return found
            except EngineClosed:
                raise shutting_down() from None
            except UserError as e:
                raise refused(str(e)) from None
            except TimeoutError:
                raise too_late(self.settings.request_seconds) from None
            finally:
                self.admission.leave(places)

        return await unless_gone(request, work())

    async def streamed(
        self,
        request: Request,
        ask: Ask,
        tell: Callable[[Answering], Tell],
        run: RunsPython | None = None,
        media_type: str = EVENTS,
    ) -> Response:
        """A stream of what `tell` makes of the answers. What is wrong with the request is raised
        before it begins."""
        context = self.answering(ask, salt_of(request), run)
        answering = await unless_gone(request, context.__aenter__())
        teller = tell(answering)
        warn(request, answering.warnings)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for event in self._watched(answering):
                    if data := teller.event(event):
                        yield data
                yield teller.end()
            except ApiError as e:
                yield teller.error(e)
            except RequestFailed:
                yield teller.error(ApiError(500, "the engine failed on this request"))

        async def close() -> None:
            await context.__aexit__(None, None, None)

        return EventStream(chunks(), close, media_type)

    async def _watched(self, answering: Answering) -> AsyncIterator[StreamEvent]:
        watches = [Watch(self.metrics) for _ in range(answering.ask.count)]
        async for event in answering:
            if isinstance(event, Part) and event.step is not None:
                watches[event.index].token()
            yield event


class Tell(Protocol):
    """How a dialect tells a stream."""

    def event(self, event: StreamEvent) -> bytes: ...
    def end(self) -> bytes: ...
    def error(self, error: ApiError) -> bytes: ...


class EventStream(StreamingResponse):
    """Server-sent events, or lines of JSON; `close` is called however they end."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        close: Callable[[], Awaitable[None]],
        media_type: str = EVENTS,
    ) -> None:
        super().__init__(chunks, media_type=media_type)
        self.headers["x-accel-buffering"] = "no"  # proxies would collect them
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What `work` gives, which is cancelled when the client hangs up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(BaseException):
                await each


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def warn(request: Request, lines: Iterable[str]) -> None:
    """Say this in the reply's header `warning`."""
    request.state.warnings = [*getattr(request.state, "warnings", ()), *lines]


def salt_of(request: Request) -> str:
    """The cache salt of the request's key, which the guard has found."""
    salt: str = request.state.salt
    return salt


def new_id(prefix: str) -> str:
    return prefix + secrets.token_hex(12)


def sse(data: Json, event: str | None = None) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=_dumped)
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()


def _dumped(part: Any) -> Json:
    """Parts of events may be models of whole answers."""
    told: Json = part.dumped()
    return told


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": working\n\n"
