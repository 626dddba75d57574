"""Tools, the loop that calls them and goes on, MCP servers, and the model's own Python."""

from smollm3.agent.approval import ApprovalRequest, Approvals, Approve, Decision, Refused
from smollm3.agent.loop import Agent, AgentEvent, Done
from smollm3.agent.tools import Tool, ToolError, load_tools, tool
from smollm3.turn import ToolResult

__all__ = [
    "Agent",
    "AgentEvent",
    "ApprovalRequest",
    "Approvals",
    "Approve",
    "Decision",
    "Done",
    "Refused",
    "Tool",
    "ToolError",
    "ToolResult",
    "load_tools",
    "tool",
]
