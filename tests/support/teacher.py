"""A teacher that speaks OpenAI's API: right or wrong as its name says, and as faulty as asked for."""

import json
import random
import re
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.servers import running


class Teacher(BaseHTTPRequestHandler):
    """Solves "a+b"; the model `weak` is wrong every other time. Faults: what share of requests is
    answered 429, 500, with garbage, not at all, byte by byte or only when all is over."""

    protocol_version = "HTTP/1.1"
    asked: Counter
    answered: Counter
    faults = 0.0
    delay = 0.0
    over: threading.Event
    lock = threading.Lock()
    rng = random.Random(0)

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        key = (prompt, body["model"], body["chat_template_kwargs"]["enable_thinking"], body["seed"])
        with self.lock:
            self.asked[key] += 1
            fault = (
                self.rng.choice(["429", "500", "garbage", "cut", "drip", "hang"])
                if self.rng.random() < self.faults
                else ""
            )
        time.sleep(self.delay)
        match fault:
            case "429":
                return self.send(429, b"{}", {"Retry-After": "0"})
            case "500":
                return self.send(500, b"oops")
            case "garbage":
                return self.send(200, b'{"choices": []}')
            case "cut":
                self.close_connection = True
                return None
            case "drip" | "hang":
                return self.never(b" " if fault == "drip" else b"")
        if "forbidden" in prompt:
            return self.send(400, b"{}")
        content = self.solve(prompt, body["model"])
        message = {"role": "assistant", "content": content}
        if key[2] and "plain" not in prompt:
            message["reasoning_content"] = "I add."
        finish = "length" if "endless" in prompt else "stop"
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        answer = {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}
        self.send(200, json.dumps(answer).encode())
        with self.lock:
            self.answered[key] += 1
        return None

    def solve(self, prompt, model):
        if found := re.search(r"(\d+)\+(\d+)", prompt):
            a, b = map(int, found.groups())
            right = a + b if model == "strong" or (a + b) % 2 else a + b + 1
            return f"{'We add' if model == 'strong' else 'One adds'} {a} and {b}. The answer is \\boxed{{{right}}}."
        if "double" in prompt:
            factor = 2 if model == "strong" else 3
            return f"```python\ndef double(x):\n    return {factor} * x\n```"
        return f"You said: {prompt}"

    def never(self, data):
        """A body that does not end, with `data` every 50 ms."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        while not self.over.wait(0.05):
            self.wfile.write(data)
            self.wfile.flush()

    def send(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that are killed


@contextmanager
def serving(faults=0.0, delay=0.0):
    counts = {"asked": Counter(), "answered": Counter()}
    fields = {**counts, "faults": faults, "delay": delay, "over": threading.Event()}
    handler = type("Handler", (Teacher,), fields)
    with running(Server(("127.0.0.1", 0), handler)) as address:
        try:
            yield f"{address}/v1", handler
        finally:
            handler.over.set()
