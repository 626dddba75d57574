"""Tools of MCP servers: programs started here that speak over their pipes, or servers at a URL.

The client is the official package `mcp`, which is asynchronous: each server has a thread in which
its session lives from beginning to end.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import re
import shlex
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import IO, Any

from smollm3.agent.schema import inline
from smollm3.agent.tools import MAX_NAME, Tool, ToolError, ToolOutput, to_text
from smollm3.errors import UserError

START_SECONDS = 30.0
CALL_SECONDS = 120.0
logging.getLogger("mcp").addHandler(logging.NullHandler())  # what matters is raised
log = logging.getLogger("smollm3.agent")
_FOREIGN = re.compile(r"[^A-Za-z0-9_.-]")
_END_SECONDS = 10.0  # the package gives a program 4 before it kills it


class McpServer:
    """A server and its `tools`. Use it as a context manager, or `close` it: the program that was
    started is killed then, and in any case when this one ends.

    target: a command as a shell would split it, or an http(s) URL. Raises UserError where it does
    not start or speak.
    """

    def __init__(self, target: str | Sequence[str]) -> None:
        self.name = target if isinstance(target, str) else shlex.join(target)
        self.tools: list[Tool] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._ready: Future[None] = Future()
        self._end: asyncio.Event | None = None
        self._log = _Log()
        try:
            transport = self._transport(target)
        except UserError:
            self._log.close()
            raise
        self._thread = threading.Thread(target=self._run, args=(transport,), daemon=True)
        self._thread.start()
        atexit.register(self.close)
        try:
            self._ready.result(START_SECONDS)
        except FutureTimeout:
            self._fail(f"does not answer within {START_SECONDS:g} seconds")
        except (Exception, CancelledError) as e:
            self._fail(_reason(e))

    def __enter__(self) -> McpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the program."""
        atexit.unregister(self.close)
        if self._loop and self._end:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(_END_SECONDS)
        self._log.close()

    def _fail(self, reason: str) -> None:
        self.close()
        last = self._log.text.strip().splitlines()[-1:]
        raise UserError(f"--mcp {self.name}: {': '.join([reason, *last])}") from None

    def _transport(self, target: str | Sequence[str]) -> Any:
        try:
            from mcp import StdioServerParameters, stdio_client
        except ImportError:
            raise UserError("MCP servers need a package: pip install 'smollm3[agent]'") from None
        if isinstance(target, str) and target.startswith(("http://", "https://")):
            return target
        try:
            words = shlex.split(target) if isinstance(target, str) else list(target)
        except ValueError as e:
            raise UserError(f"--mcp {self.name}: {e}") from None
        if not words:
            raise UserError("--mcp: must be a command or a URL")
        parameters = StdioServerParameters(command=words[0], args=words[1:])
        return stdio_client(parameters, errlog=self._log.sink)  # type: ignore[arg-type]

    def _run(self, transport: Any) -> None:
        try:
            asyncio.run(self._serve(transport))
        except BaseException as e:
            if not self._ready.done():
                self._ready.set_exception(e)

    async def _serve(self, transport: Any) -> None:
        from mcp import Client

        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        ending = asyncio.ensure_future(self._end.wait())
        session = asyncio.ensure_future(self._session(Client(transport, cache=None)))
        # A server that never answers is given up when `close` is called.
        await asyncio.wait([ending, session], return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.done():
            session.cancel()
        await session

    async def _session(self, client: Any) -> None:
        assert self._end
        async with client:
            cursor = None
            while True:
                page = await client.list_tools(cursor=cursor)
                for found in page.tools:
                    self.tools.append(self._tool(found))
                cursor = page.next_cursor
                if not cursor:
                    break
            self._client = client
            self._ready.set_result(None)
            await self._end.wait()

    def _tool(self, found: Any) -> Tool:
        def run(**arguments: Any) -> ToolOutput:
            return self._call(found.name, arguments)

        annotations = found.annotations
        return Tool(
            name=self._allowed_name(found.name),
            description=found.description or "",
            parameters=inline({"type": "object", "properties": {}, **found.input_schema}),
            run=run,
            read_only=bool(annotations and annotations.read_only_hint),
        )

    def _allowed_name(self, name: str) -> str:
        """The tool's own, or the nearest that a model may call, which no other tool has."""
        allowed = base = _FOREIGN.sub("_", name)[:MAX_NAME] or "tool"
        taken, number = {tool.name for tool in self.tools}, 2
        while allowed in taken:
            end = f"_{number}"
            allowed, number = base[: MAX_NAME - len(end)] + end, number + 1
        if allowed != name:
            log.warning("%s: the tool %r is called %s here", self.name, name[:200], allowed)
        return allowed

    def _call(self, name: str, arguments: dict[str, Any]) -> ToolOutput:
        assert self._loop
        call = self._client.call_tool(name, arguments)
        try:
            if not self._thread.is_alive():
                raise RuntimeError
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
        except RuntimeError:
            call.close()
            raise ToolError(f"the MCP server {self.name} is gone") from None
        try:
            result = future.result(CALL_SECONDS)
        except FutureTimeout:
            future.cancel()
            raise ToolError(f"{name}: no answer within {CALL_SECONDS:g} seconds") from None
        except CancelledError:
            raise ToolError(f"the MCP server {self.name} is gone") from None
        except Exception as e:
            raise ToolError(f"{name}: {_reason(e)}") from None
        text = "\n".join(map(_text, result.content))
        if not text and result.structured_content is not None:
            text = to_text(_value(text, result.structured_content))
        if result.is_error:
            raise ToolError(text or "the tool failed")
        return ToolOutput(text, _value(text, result.structured_content))


class _Log:
    """What a program says of itself: the last line is shown where it does not start. However much
    it says, so much is kept. sink: where it writes."""

    KEPT = 2000  # bytes

    def __init__(self) -> None:
        source, sink = os.pipe()
        self.sink: IO[str] = os.fdopen(sink, "w")
        self._data = b""
        self._reader = threading.Thread(target=self._read, args=(source,), daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return self._data.decode(errors="replace")

    def close(self) -> None:
        """With the program's own, which has ended, this was the last end of the pipe."""
        self.sink.close()
        self._reader.join(1)

    def _read(self, source: int) -> None:
        with os.fdopen(source, "rb", 0) as pipe:
            while data := pipe.read(1 << 16):
                self._data = (self._data + data)[-self.KEPT :]


def _value(text: str, structured: Any) -> Any:
    """For Python code. Values that are no object come wrapped in one."""
    if isinstance(structured, dict) and structured.keys() == {"result"}:
        return structured["result"]
    return text if structured is None else structured


def _text(block: Any) -> str:
    """Of one part of a result, which may be no text."""
    if block.type == "text":
        return str(block.text)
    resource = getattr(block, "resource", None)
    if (text := getattr(resource, "text", None)) is not None:
        return str(text)
    kind = getattr(block, "mime_type", None) or getattr(resource, "mime_type", None)
    place = getattr(block, "uri", None) or getattr(resource, "uri", None)
    return f"[{' '.join(str(part) for part in (block.type, kind, place) if part)}]"


def _reason(error: BaseException) -> str:
    """The first error within groups of errors, which task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, FileNotFoundError):
        return f"{error.filename}: no such command"
    return f"{error}" if str(error) else type(error).__name__
