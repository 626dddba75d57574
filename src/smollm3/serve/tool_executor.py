"""Tools that the server runs itself: functions, those of MCP servers, the model's own Python.

Whatever is not read-only is asked about: the client that made the call gets the question and
answers it, while the call waits. Where no one can be asked the answer is no.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Hashable
from concurrent.futures import CancelledError, Future
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial

from smollm3.agent import Agent, ApprovalRequest, Approvals, ToolResult
from smollm3.agent.approval import nobody
from smollm3.chat import ToolCall
from smollm3.serve.errors import ApiError, refused

MOST = 16  # calls at once
SHARE = 4  # of these, of one key where there are several
ASK_SECONDS = 600.0


@dataclass(frozen=True)
class Question:
    """Whether a call may be made."""

    id: str
    request: ApprovalRequest


class ToolExecutor:
    """Runs calls of tools for clients. Belongs to one event loop. agent: has the tools; None: there
    are none."""

    def __init__(self, agent: Agent | None, several_keys: bool = False) -> None:
        self.agent = agent
        self._share = SHARE if several_keys else MOST
        self._of_key: Counter[str] = Counter()
        self._questions: dict[tuple[str, str], Future[bool]] = {}
        self._running = 0

    async def call(
        self, call: ToolCall, salt: str, conversation: str | None, ask: bool = False
    ) -> AsyncGenerator[Question | ToolResult]:
        """The questions on the way if `ask`, at last the result. conversation: whose Python
        variables these are; without one they are gone afterwards. Raises ApiError."""
        if self.agent is None:
            raise refused("this server runs no tools; see --tool, --mcp and --python-tools")
        if self._running >= MOST or self._of_key[salt] >= self._share:
            raise ApiError(429, "too many tools run already; try again later", retry_after=5)
        self._running += 1
        self._of_key[salt] += 1
        work = _Call(self.agent, call, salt, conversation, self._questions if ask else None)
        done = partial(self._done, salt)
        threading.Thread(target=work.run, args=(done,), daemon=True).start()
        try:
            while True:
                found = await work.events.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if isinstance(found, ToolResult):
                    return
        finally:
            work.leave()

    async def result(self, call: ToolCall, salt: str, conversation: str | None) -> ToolResult:
        """The result of a call about which nobody is asked."""
        async with aclosing(self.call(call, salt, conversation)) as events:
            async for event in events:
                if isinstance(event, ToolResult):
                    return event
        raise AssertionError("a call ends in its result")

    def answer(self, salt: str, name: str, allow: bool) -> None:
        """To a question. Raises ApiError where it does not wait, or is another key's."""
        asked = self._questions.pop((salt, name), None)
        if asked is None or not asked.set_running_or_notify_cancel():
            raise ApiError(404, "no call waits for this answer", param="id")
        asked.set_result(allow)

    def refuse_waiting(self) -> None:
        """No question is answered any more."""
        for asked in list(self._questions.values()):
            asked.cancel()

    def _done(self, salt: str) -> None:
        self._running -= 1
        self._of_key[salt] -= 1


class PythonRun:
    """What runs the Python of one answer. kept: its variables may be wanted later."""

    def __init__(self, host: ToolExecutor, salt: str, container: str, kept: bool) -> None:
        self.container = container
        self._host = host
        self._salt = salt
        self._kept = kept

    async def __call__(self, call: ToolCall) -> ToolResult:
        return await self._host.result(call, self._salt, self.container)

    def close(self) -> None:
        """The answer is over."""
        agent, own = self._host.agent, (self._salt, self.container)
        if agent is not None and not self._kept:
            threading.Thread(target=agent.forget, args=(own,), daemon=True).start()


class _Call:
    """A call in a thread of its own. events: what it tells the event loop."""

    def __init__(
        self,
        agent: Agent,
        call: ToolCall,
        salt: str,
        conversation: str | None,
        questions: dict[tuple[str, str], Future[bool]] | None,
    ) -> None:
        self.events: asyncio.Queue[Question | ToolResult | BaseException] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._agent = agent
        self._call = call
        self._salt = salt
        self._own: Hashable = object() if conversation is None else (salt, conversation)
        self._kept = conversation is not None
        self._questions = questions
        self._asked: Future[bool] | None = None
        self._left = False
        self._over = False

    def run(self, done: Callable[[], None]) -> None:
        approve = nobody if self._questions is None else self._ask
        try:
            self._tell(self._agent.serve(self._call, self._own, Approvals(approve)))
        except Exception as e:
            self._tell(e)
        finally:
            self._over = True
            if not self._kept:
                self._agent.forget(self._own)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(done)

    def leave(self) -> None:
        """Nobody listens any more: what the model's code does is ended."""
        self._left = True
        if self._asked:
            self._asked.cancel()
        if not self._over:
            threading.Thread(target=self._agent.interrupt, args=(self._own,), daemon=True).start()

    def _ask(self, request: ApprovalRequest) -> bool:
        assert self._questions is not None
        question = Question(f"ask_{secrets.token_hex(12)}", request)
        key = self._salt, question.id
        asked = self._asked = self._questions[key] = Future()
        if self._left:
            asked.cancel()
        self._tell(question)
        try:
            return asked.result(ASK_SECONDS)
        except (CancelledError, TimeoutError):
            return False
        finally:
            self._questions.pop(key, None)

    def _tell(self, event: Question | ToolResult | BaseException) -> None:
        with suppress(RuntimeError):  # the loop has ended, with all who listened
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
