"""Tools, the loop that calls them and goes on, MCP servers, and the model's own Python."""

from smollm3.agent.approval import Approvals, Approve, Decision, Refused, Request
from smollm3.agent.loop import Agent, AgentEvent, Done, ToolResult
from smollm3.agent.tools import Tool, ToolError, load_tools, tool

__all__ = [
    "Agent",
    "AgentEvent",
    "Approvals",
    "Approve",
    "Decision",
    "Done",
    "Refused",
    "Request",
    "Tool",
    "ToolError",
    "ToolResult",
    "load_tools",
    "tool",
]
