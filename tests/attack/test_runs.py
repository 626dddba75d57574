"""One deadline for a run of the model's Python; a run that nobody waits for is ended.

Bound: a run ends within its seconds, one of grace and what ending takes, whatever it does with
what it is sent.
"""

import threading
import time
from pathlib import Path

import httpx2
import pytest

from smollm3.agent.sandbox import Limits, find_sandbox
from smollm3.errors import UserError
from tests.attack.victim import victim

pytestmark = pytest.mark.xdist_group("attack")
try:
    SANDBOX = find_sandbox()
except UserError:
    SANDBOX = None
needs_process = pytest.mark.skipif(
    SANDBOX is None or SANDBOX.kind == "monty", reason="no process to be ended"
)
# Answers are as long as they may be, and the code asks on without having read them.
DEAF = """
import gc, os, signal, time
signal.setitimer(signal.ITIMER_REAL, 0)
channel = next(o for o in gc.get_objects() if type(o).__name__ == "WorkerChannel")
for _ in range(100):
    channel.send({"call": "f", "args": [], "kwargs": {}})
    time.sleep(0.2)
    os.read(channel._source, 1000)
"""


@pytest.mark.slow
@needs_process
def test_a_run_that_reads_slowly():
    from smollm3.agent.sandbox import Function

    interpreter = SANDBOX.interpreter([Function("f")], Limits(seconds=2))
    try:
        interpreter.run("1")
        begun = time.monotonic()
        run = interpreter.run(DEAF, lambda *_: "x" * (1 << 20))
        assert run.ended
        assert time.monotonic() - begun < 8  # it was 12 and more
    finally:
        interpreter.close()


@needs_process
def test_closing_ends_a_run():
    interpreter = SANDBOX.interpreter(limits=Limits(seconds=300))
    interpreter.run("1")
    found = []
    code = "import time\nwhile True: time.sleep(1)"
    thread = threading.Thread(target=lambda: found.append(interpreter.run(code)))
    thread.start()
    while not interpreter._lock._is_owned() and interpreter._runs < 2:
        thread.join(0.01)
    interpreter.close()
    thread.join(60)
    assert found[0].ended
    assert not interpreter.alive


def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.slow
@needs_process
def test_a_client_that_leaves_ends_its_run():
    """And gives back its place among the tools that run."""
    with victim(python_tools=True) as server:
        call = {"name": "python", "arguments": {"code": "while True: pass"}}
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(server.url + "/v1/tools/call", json=call, timeout=1.5)
        until = time.monotonic() + 7  # its own end would come after 11 seconds
        while children(server.pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert not children(server.pid)
        done = {"name": "python", "arguments": {"code": "6 * 7"}}
        answer = httpx2.post(server.url + "/v1/tools/call", json=done, timeout=60)
        assert "42" in answer.text
        begun = time.monotonic()
    assert time.monotonic() - begun < 15
