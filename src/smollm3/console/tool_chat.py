"""A conversation on the terminal with tools: calls and results are shown between the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from smollm3.agent.loop import Agent
from smollm3.agent.tools import load_tools
from smollm3.chat import ToolCall
from smollm3.console.chat import Chat, converse
from smollm3.console.terminal import is_terminal
from smollm3.infer import Engine, SamplingParams
from smollm3.turn import Request, ToolLoop, ToolResult
from smollm3.visible import visible

_SHOWN_LINES = 12  # of a call's code, or of a result
_SHOWN_CHARACTERS = 1000


class AgentChat(Chat):
    """A conversation whose answers may call tools; its Python variables live until /new."""

    def __init__(
        self,
        agent: Agent,
        params: SamplingParams,
        think: bool,
        system: str | None,
        budget: int | None,
        interactive: bool,
    ) -> None:
        super().__init__(agent.engine, params, think, system, budget, interactive)
        self.agent = agent
        for line in described(agent):
            self.tell(line)

    def request(self) -> Request:
        plain = super().request()
        return replace(
            self.agent.request(plain.messages),
            enable_thinking=plain.enable_thinking,
            params=plain.params,
            thinking_budget=plain.thinking_budget,
        )

    def turn(self) -> None:
        asked = self.request()
        before = len(asked.messages) - len(self.messages)  # a system prompt
        loop = ToolLoop(asked, self.agent.max_steps)
        while request := loop.request:
            for call in loop.feed(self.answer(request)):
                self.tell(f"-> {shown_call(call)}")
                result = self._served(call)
                loop.results([result])
                self.tell(f"<- {clipped(result.text)}")
            self.messages = loop.messages[before:]
        if loop.reason == "steps":
            self.tell(f"stopped after {loop.max_steps} steps; say something to go on")

    def new(self) -> None:
        super().new()
        self.agent.forget(self)

    def _served(self, call: ToolCall) -> ToolResult:
        try:
            return self.agent.serve(call, self)
        except KeyboardInterrupt:
            return ToolResult(call, "Error: the user stopped this call", False)


def described(agent: Agent) -> list[str]:
    """What is offered to the model, for people."""
    lines = []
    for what, tools in (("tools", agent.tools), ("in Python", agent.functions)):
        names = [n if t.read_only else f"{n} (asks)" for n, t in tools.items()]
        if names:
            lines.append(f"{what}: {', '.join(names)}")
    if agent.sandbox:
        lines.append(f"Python: {agent.sandbox.description}")
    return lines


def shown_call(call: ToolCall) -> str:
    if isinstance(call.arguments, str):
        return clipped(f"{call.name} {call.arguments}")
    if list(call.arguments) == ["code"]:
        return clipped(f"{call.name}\n{call.arguments['code']}")
    return clipped(f"{call.name} {json.dumps(call.arguments, ensure_ascii=False)}")


def clipped(text: str) -> str:
    """A few lines of it, which no terminal obeys."""
    lines = visible(text[:_SHOWN_CHARACTERS]).split("\n")
    over = len(text) > _SHOWN_CHARACTERS or len(lines) > _SHOWN_LINES
    return "\n   ".join(lines[:_SHOWN_LINES]) + " ..." * over


def chat_with_tools(
    engine: Engine,
    params: SamplingParams,
    think: bool,
    system: str | None,
    budget: int | None,
    *,
    tool: Sequence[str] = (),
    mcp: Sequence[str] = (),
    python_tools: bool = False,
    unsafe_python_tools: bool = False,
) -> None:
    """Read lines until their end or /exit; answer each, with tools. tool: as `load_tools` takes
    them; with Python they are functions of it, and so are those of the servers."""
    found = [item for target in tool for item in load_tools(target)]
    python = python_tools or unsafe_python_tools
    with Agent(
        engine,
        () if python else found,
        python_tools=found if python else False,
        mcp=mcp,
        unsafe_python=unsafe_python_tools,
    ) as agent:
        converse(AgentChat(agent, params, think, system, budget, is_terminal()))
