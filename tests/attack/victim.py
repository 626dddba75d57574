"""A server as a process, whose model says what a script says: `python -m tests.attack.victim`.

Prints its port. Everything but the model is what `smollm3 serve` runs.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[2]
KEYS = "first-key-of-the-tests", "second-key-of-the-tests"


def main() -> None:
    import torch

    from smollm3.chat import default_template
    from smollm3.infer import Engine
    from smollm3.serve.run import Server, listening, own_tools
    from smollm3.serve.service import Service
    from smollm3.serve.settings import Keys, Settings
    from smollm3.tokenizer import Tokenizer
    from tests.support.serving import ScriptedBackend

    class Forgetful(ScriptedBackend):
        """Keeps nothing of what was asked: its memory is the server's."""

        def step(self, batch):
            self.found.clear()
            del self.batches[:]
            return super().step(batch)

    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    given = json.loads(sys.argv[1])
    keys, tool, context = (given.pop(name) for name in ("keys", "tool", "context"))
    settings = Settings.model_validate({"port": 0, **given})
    text = ["the model that answers the question, été 日本"] * 4
    tokenizer = Tokenizer.train(text, 292, default_template())
    script = {"hi": "one two three", "run": tool}
    with (
        listening(settings) as listener,
        Engine(Forgetful(tokenizer, script, context // 4, context), tokenizer) as engine,
        own_tools(settings)(engine) as agent,
    ):
        service = Service(engine, settings, Keys(keys), "tiny", agent)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # soon full
        listener.listen(2048)
        print(listener.getsockname()[1], flush=True)
        Server(service).run([listener])


class Victim:
    """The running server, as its attackers and its keeper see it."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"
        self.pid = process.pid

    def _status(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    @property
    def resident(self) -> int:
        """Bytes."""
        return self._status("VmRSS:") << 10

    @property
    def peak(self) -> int:
        """The most bytes since `forget_peak`."""
        return self._status("VmHWM:") << 10

    def forget_peak(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    @property
    def threads(self) -> int:
        return self._status("Threads:")

    @property
    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    @property
    def work(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def victim(tool: str = "", keys=(), context=4096, stays=True, **settings):
    """A server with these settings, which must end when it is told to. stays: until then."""
    given = json.dumps({"keys": list(keys), "tool": tool, "context": context, **settings})
    command = [sys.executable, "-m", "tests.attack.victim", given]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        found = Victim(process)
        assert httpx2.get(found.url + "/health", timeout=60).status_code == 200
        yield found
        assert not stays or process.poll() is None, "the server has died"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            process.stdout.close()


class Pulse:
    """Asks for /health again and again; `longest` is the longest that it had to wait, in seconds.

    work: the most seconds of processor time that the server used meanwhile, all of its threads
    together. On a machine that has much else to do a wait says little, and this says whose it was.
    """

    def __init__(self, server: Victim, pause: float = 0.005) -> None:
        self.longest, self.work, self.count = 0.0, 0.0, 0
        self._server, self._pause = server, pause
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with httpx2.Client(base_url=self._server.url, timeout=120) as client:
            while not self._over.is_set():
                begun, work = time.monotonic(), self._server.work
                assert client.get("/health").status_code == 200
                self.longest = max(self.longest, time.monotonic() - begun)
                self.work = max(self.work, self._server.work - work)
                self.count += 1
                self._over.wait(self._pause)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main()
