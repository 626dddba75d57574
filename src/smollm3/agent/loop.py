"""The agent: the model answers, its calls are made, it reads the results and goes on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from smollm3.agent.approval import ApprovalRequest, Approvals, Approve, ask_on_terminal
from smollm3.agent.mcp import McpServer
from smollm3.agent.python import Interpreters, declarations, for_sandbox, functions
from smollm3.agent.sandbox import Limits, Sandbox, StartError, find_sandbox, unsafe_sandbox
from smollm3.agent.tools import Tool, ToolError, as_tools, to_json_value, to_text
from smollm3.chat import Event, Message, ToolCall
from smollm3.chat.tags import PYTHON
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams
from smollm3.infer.constrain.grammars import Tools
from smollm3.turn import MAX_STEPS, LoopReason, Part, Request, ToolLoop, ToolResult

_LOST = "(The interpreter is a new one: what was defined earlier is gone.)"


@dataclass(frozen=True)
class Done:
    """The end. messages: the conversation with all that was added. reason: it answered ("stop"),
    its answer was cut at max_tokens ("length"), the steps ran out, so that it had to answer without
    more calls ("steps")."""

    messages: list[dict[str, Any]]
    reason: LoopReason

    @property
    def answer(self) -> str:
        """What the model said last."""
        said = [m["content"] for m in self.messages if m["role"] == "assistant"]
        return str(said[-1]) if said else ""


AgentEvent = Event | ToolResult | Done


class Agent:
    """A model with tools.

    tools: functions or Tools, called as JSON. python_tools: the model may run Python; True, or
    functions that its code can call. mcp: servers whose tools are added, commands or URLs; to
    python_tools if these were asked for. approve: asked before anything that is not read-only;
    by default the terminal. unsafe_python: without isolation, which is asked about each time.

    Use it as a context manager or `close` it: servers and interpreters end then.
    """

    def __init__(
        self,
        engine: Engine,
        tools: Sequence[Tool | Callable[..., Any]] = (),
        *,
        python_tools: bool | Sequence[Tool | Callable[..., Any]] = False,
        mcp: Sequence[str | Sequence[str]] = (),
        max_steps: int = MAX_STEPS,
        approve: Approve = ask_on_terminal,
        params: SamplingParams | None = None,
        enable_thinking: bool = True,
        thinking_budget: int | None = None,
        unsafe_python: bool = False,
        limits: Limits | None = None,
    ) -> None:
        if max_steps < 1:
            raise UserError(f"max_steps: must be at least 1, not {max_steps}")
        self.engine = engine
        self.max_steps = max_steps
        self.params = params
        self.enable_thinking = enable_thinking
        self.thinking_budget = thinking_budget
        self.sandbox: Sandbox | None = None
        self._approvals = Approvals(approve)
        self._stack = ExitStack()
        with ExitStack() as stack:
            self._set_up(stack, tools, python_tools, mcp, unsafe_python, limits)
            self._stack = stack.pop_all()

    def _set_up(
        self,
        stack: ExitStack,
        tools: Sequence[Tool | Callable[..., Any]],
        python_tools: bool | Sequence[Tool | Callable[..., Any]],
        mcp: Sequence[str | Sequence[str]],
        unsafe_python: bool,
        limits: Limits | None,
    ) -> None:
        served = [tool for server in mcp for tool in stack.enter_context(McpServer(server)).tools]
        python = python_tools is not False
        self._constraint: Tools | None = None
        inside = [] if isinstance(python_tools, bool) else list(python_tools)
        self.tools = {t.name: t for t in as_tools([*tools, *([] if python else served)])}
        self.functions = functions(as_tools([*inside, *(served if python else [])]))
        if (self.tools or python) and importlib.util.find_spec("llguidance"):
            declared = [tool.signature for tool in self.tools.values()]
            self._constraint = Tools(declared, python=python)
        if not python:
            return
        if PYTHON in self.tools:
            raise UserError(f"tool {PYTHON}: with python_tools that name is taken; rename it")
        self.sandbox = sandbox = unsafe_sandbox() if unsafe_python else find_sandbox()
        called = for_sandbox(self.functions)
        self.interpreters = Interpreters(lambda: sandbox.interpreter(called, limits))
        stack.callback(self.interpreters.close)

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    @property
    def offered(self) -> dict[str, Any]:
        """What a rendering is told of the tools."""
        offered: dict[str, Any] = {}
        if self.tools:
            offered["tools"] = [tool.signature for tool in self.tools.values()]
        if self.sandbox:
            offered["python_tools"] = declarations(self.functions)
        return offered

    def run(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        conversation: Hashable = None,
        approvals: Approvals | None = None,
    ) -> Done:
        """`stream` to its end."""
        for event in self.stream(messages, conversation, approvals):
            if isinstance(event, Done):
                return event
        raise AssertionError("a stream ends in Done")

    def stream(
        self,
        messages: Sequence[Mapping[str, Any] | Message],
        conversation: Hashable = None,
        approvals: Approvals | None = None,
    ) -> Iterator[AgentEvent]:
        """Answer, call and go on: the events of each answer, the results of its calls, Done.

        conversation: whose Python variables are used and kept; without one they live until Done.
        approvals: asked instead of the agent's own. Several threads may stream at once.
        """
        own = object() if conversation is None else conversation
        try:
            loop = ToolLoop(self.request(messages), self.max_steps)
            while request := loop.request:
                reply = request.submit(self.engine)
                for part in reply:
                    yield from part.events if isinstance(part, Part) else ()
                for call in loop.feed(reply):
                    result = self.serve(call, own, approvals)
                    loop.results([result])
                    yield result
            assert loop.reason
            yield Done(loop.messages, loop.reason)
        finally:
            if conversation is None:
                self.forget(own)

    def request(self, messages: Sequence[Mapping[str, Any] | Message]) -> Request:
        """What answers these messages with the tools. Calls are held to the tools' schemas as they
        are written, where llguidance is installed and knows these schemas."""
        return Request(
            messages,
            **self.offered,
            enable_thinking=self.enable_thinking,
            params=self.params,
            constraint=self._constraint,
            optional=True,
            thinking_budget=self.thinking_budget,
        )

    def forget(self, conversation: Hashable) -> None:
        """The conversation is over: its Python ends."""
        if self.sandbox:
            self.interpreters.end(conversation)

    def interrupt(self, conversation: Hashable) -> None:
        """End the Python that runs for a conversation."""
        if self.sandbox:
            self.interpreters.interrupt(conversation)

    def serve(
        self, call: ToolCall, conversation: Hashable = None, approvals: Approvals | None = None
    ) -> ToolResult:
        """Make a call of the model, or say why not. As in `stream`."""
        approvals = approvals or self._approvals
        try:
            if call.name == PYTHON and self.sandbox:
                return self._run_python(call, conversation, approvals)
            if call.name not in self.tools:
                there = ", ".join(self.tools) or "none"
                raise ToolError(f"there is no tool {call.name}; there are: {there}")
            value = _call(self.tools[call.name], call.arguments, approvals)
            return ToolResult(call, to_text(value), True)
        except ToolError as e:
            return ToolResult(call, to_text(f"Error: {e}"), False)

    def _run_python(
        self, call: ToolCall, conversation: Hashable, approvals: Approvals
    ) -> ToolResult:
        code = call.arguments.get("code") if isinstance(call.arguments, dict) else None
        if not isinstance(code, str):
            raise ToolError('python takes {"code": a text}')
        assert self.sandbox
        if not self.sandbox.isolated:
            approvals.check(ApprovalRequest(PYTHON, {"code": code}))
        with self.interpreters.lease(conversation) as (interpreter, lost):
            try:
                run = interpreter.run(code, partial(self._call_from_code, approvals))
            except StartError as e:
                raise ToolError(f"Python cannot be started: {e}") from None
        text = f"{_LOST}\n{run.text}" if lost else run.text
        return ToolResult(call, to_text(text), run.ok)

    def _call_from_code(
        self, approvals: Approvals, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if name not in self.functions:
            raise ToolError(f"there is no function {name}")
        tool = self.functions[name]
        return to_json_value(_call(tool, tool.named(args, kwargs), approvals, from_code=True))


def _call(tool: Tool, arguments: Any, approvals: Approvals, from_code: bool = False) -> Any:
    if not tool.read_only:
        shown = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        approvals.check(ApprovalRequest(tool.name, shown, from_code))
    return tool.call(arguments)
