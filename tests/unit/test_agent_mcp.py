"""MCP servers: a program over its pipes, and one over HTTP."""

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mcp")

from smollm3.agent import ToolError, mcp
from smollm3.agent.mcp import McpServer
from smollm3.agent.tools import to_json_value, to_text
from smollm3.errors import UserError

FILE = str(Path(__file__).parents[1] / "support" / "mcp_server.py")
COMMAND = [sys.executable, FILE]


def running(text):
    """Whether a process with this in its command line runs."""
    found = subprocess.run(
        ["ps", "-ww", "-eo", "stat,args"], capture_output=True, text=True, check=True
    ).stdout
    return any(text in line and not line.startswith("Z") for line in found.splitlines())


@pytest.fixture(scope="module")
def server():
    with McpServer(COMMAND) as server:
        yield {tool.name: tool for tool in server.tools}


class TestTools:
    def test_declared(self, server):
        assert set(server) == {"add", "write", "fail", "leave", "child", "tell_the_weather"}
        add = server["add"]
        assert add.description == "Add two numbers."
        assert add.parameters["properties"]["a"] == {"type": "integer"}
        assert add.parameters["required"] == ["a"]
        assert add.read_only
        assert not server["write"].read_only

    def test_results(self, server):
        assert to_text(server["add"].call({"a": 2, "b": 3})) == "5"
        assert to_json_value(server["add"].call({"a": 2})) == 3
        assert to_json_value(server["write"].call({"text": "é"})) == {"written": "é"}

    def test_odd_names_are_changed_and_stay_different(self, server, caplog):
        assert to_json_value(server["tell_the_weather"].call({})) == {"sky": "grey"}
        made = McpServer.__new__(McpServer)
        made.name, made.tools = "test", []
        for name, told in (("a b", "a_b"), ("a/b", "a_b_2"), ("", "tool"), ("x" * 200, "x" * 128)):
            made.tools.append(SimpleNamespace(name=made._allowed_name(name)))
            assert made.tools[-1].name == told
        assert made._allowed_name("x" * 200) == "x" * 126 + "_2"
        assert made._allowed_name("fine") == "fine"
        assert "'a/b' is called a_b_2" in caplog.text

    def test_results_that_are_only_structured(self, monkeypatch):
        class Client:
            async def call_tool(self, name, arguments):
                return SimpleNamespace(content=[], structured_content=arguments, is_error=False)

        with McpServer(COMMAND) as server:
            monkeypatch.setattr(server, "_client", Client())
            tool = next(tool for tool in server.tools if tool.name == "write")
            assert to_text(tool.call({"a": [1, "é"]})) == '{"a":[1,"é"]}'
            assert to_text(tool.call({"result": 3})) == "3"
            assert to_json_value(tool.call({"result": 3})) == 3

    def test_errors_are_texts(self, server):
        with pytest.raises(ToolError, match="fail"):
            server["fail"].call({})
        with pytest.raises(ToolError, match="valid integer"):
            server["add"].call({"a": "x"})
        assert to_text(server["add"].call({"a": 1})) == "2"

    def test_calls_from_many_threads(self, server):
        results = {}

        def call(i):
            results[i] = to_json_value(server["add"].call({"a": i, "b": i}))

        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {i: 2 * i for i in range(8)}

    def test_parts_that_are_no_text(self):
        from mcp_types import EmbeddedResource, ImageContent, TextResourceContents

        image = ImageContent(type="image", data="QUJD", mime_type="image/png")
        assert mcp._text(image) == "[image image/png]"
        resource = TextResourceContents(uri="file:///x", text="inside", mime_type="text/plain")
        assert mcp._text(EmbeddedResource(type="resource", resource=resource)) == "inside"


class TestLife:
    def test_it_ends_at_close(self):
        marker = f"--marker-{time.monotonic_ns()}"
        server = McpServer([*COMMAND, marker])
        assert running(marker)
        server.close()
        assert not running(marker)
        with pytest.raises(ToolError, match="is gone"):
            server.tools[0].call({"a": 1})
        server.close()

    def test_one_that_leaves(self):
        with McpServer(COMMAND) as server:
            tools = {tool.name: tool for tool in server.tools}
            with pytest.raises(ToolError, match="closed"):
                tools["leave"].call({})
            with pytest.raises(ToolError):
                tools["add"].call({"a": 1})

    def test_one_that_answers_late(self, monkeypatch):
        monkeypatch.setattr(mcp, "CALL_SECONDS", 0.0)
        with McpServer(COMMAND) as server, pytest.raises(ToolError, match="no answer within"):
            server.tools[0].call({"a": 1})

    @pytest.mark.parametrize(
        ("target", "said"),
        [
            (
                "no-such-command-at-all x",
                "--mcp no-such-command-at-all x: no-such-command-at-all: no such command",
            ),
            ([*COMMAND, "--broken"], "the server's configuration is missing"),
            ("http://127.0.0.1:9/mcp", "attempts failed"),
            ("a 'b", "No closing quotation"),
            ("", "a command or a URL"),
        ],
    )
    def test_what_does_not_start(self, target, said):
        with pytest.raises(UserError, match=said):
            McpServer(target)

    @pytest.mark.slow
    def test_one_that_says_nothing(self, monkeypatch):
        monkeypatch.setattr(mcp, "START_SECONDS", 0.3)
        with pytest.raises(UserError, match="does not answer within 0.3 seconds"):
            McpServer([*COMMAND, "--silent"])
        assert not running("--silent")

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "mcp", None)
        with pytest.raises(UserError, match=r"pip install 'smollm3\[agent\]'"):
            McpServer(COMMAND)

    @pytest.mark.slow
    def test_over_http(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = subprocess.Popen([*COMMAND, "--http", str(port)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 20
            while True:
                try:
                    with McpServer(f"http://127.0.0.1:{port}/mcp") as server:
                        tools = {tool.name: tool for tool in server.tools}
                        assert to_text(tools["add"].call({"a": 2, "b": 3})) == "5"
                    return
                except UserError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.2)
        finally:
            program.kill()
            program.wait()
