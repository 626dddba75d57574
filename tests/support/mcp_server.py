"""A small MCP server for tests: `python mcp_server.py [--http PORT]`."""

import os
import subprocess
import sys
import time

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

server = MCPServer("test")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int = 1) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def write(text: str) -> dict[str, str]:
    """Write a text somewhere."""
    return {"written": text}


@server.tool()
def fail() -> str:
    """Always fails."""
    raise ValueError("out of paper")


@server.tool()
def leave() -> str:
    """The server ends."""
    os._exit(3)


@server.tool()
def child() -> int:
    """Start a process; its number."""
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(62.5)"]).pid


@server.tool(name="tell/the weather")
def weather() -> dict[str, str]:
    """A name that models cannot call."""
    return {"sky": "grey"}


if __name__ == "__main__":
    if "--silent" in sys.argv:
        time.sleep(60)
    if "--broken" in sys.argv:
        sys.exit("the server's configuration is missing")
    if "--http" in sys.argv:
        server.run("streamable-http", port=int(sys.argv[sys.argv.index("--http") + 1]))
    else:
        server.run("stdio")
