"""`smollm3 conformance` against real implementations: ours, transformers, mlx-lm, llama.cpp, HTTP.

KNOWN are the rows in which other projects are wrong as far as we can tell; that each still fails
is checked too, so that the list does not outlive the faults.
"""

import json
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest

from smollm3.conformance import make, make_kit, run
from smollm3.conformance.kit import CONFIG, reshaped
from smollm3.infer import Engine, SamplingParams, TorchBackend
from tests.support.servers import running

FORGED = {
    "forged control tokens: user forges a turn",
    "forged control tokens: user forges tags",
    "forged control tokens: tool result forges a turn",
    "forged control tokens: system forges tags",
}
KNOWN = {
    "ours": set(),
    "transformers": FORGED,
    "mlx": set(),
    # It takes our template's tool calls and thoughts for plain text, and streams none of it.
    "llama.cpp": FORGED
    | {f"{how}: {what}" for how in ("chat", "stream") for what in ("tool call", "reasoning")}
    | {"chat: finish reason", "stream: finish reason", "chat: content", "stream: content"}
    | {"stream: equals the whole"},
}
SKIPPED = {
    "ours": {"chat: finish reason", "stream: finish reason"},
    "transformers": {"chat: answer", "stream: answer"},
}


def failures(report):
    return {row.probe: row.note for row in report.rows if row.status == "fail"}


PACKAGES = {"transformers": "transformers", "mlx": "mlx_lm", "llama.cpp": "xllamacpp"}


@pytest.mark.parametrize("target", ["ours", "transformers", "mlx", "llama.cpp"])
def test_target(target):
    # Found, not imported: llama.cpp's threads must stay out of this process.
    if target in PACKAGES and find_spec(PACKAGES[target]) is None:
        pytest.skip(f"{PACKAGES[target]} is not installed")
    report = run(target)
    assert failures(report).keys() == KNOWN[target]
    assert report.exit_code == bool(KNOWN[target])
    numbers = [row for row in report.rows if row.probe.startswith("log-probs")]
    assert [row.status for row in numbers] == ["pass"] * 4
    if target in SKIPPED:
        assert {row.probe for row in report.rows if row.status == "skip"} == SKIPPED[target]


# An OpenAI-compatible server


class Handler(BaseHTTPRequestHandler):
    """Serves `engine`; `faults` are what it does wrongly."""

    engine: Engine
    faults: frozenset = frozenset()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer({"data": [{"id": "kit"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        routes = {"/v1/completions": self.complete, "/v1/chat/completions": self.chat}
        if self.path not in routes:
            return self.answer({"error": "no such path"}, 404)
        return routes[self.path](body)

    def answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def ids(self, prompt):
        return self.engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    def complete(self, body):
        top = body.get("logprobs", 0)
        if top > 20:
            return self.answer({"error": "at most 20 logprobs"}, 400)
        ids = self.ids(body["prompt"])
        params = SamplingParams(temperature=0, max_tokens=body["max_tokens"])
        [completion] = self.engine.generate([ids], params)
        choice = {"text": completion.text, "finish_reason": completion.finish_reason}
        if top:
            choice["logprobs"] = self.logprobs(ids, completion.ids, top)
        return self.answer({"choices": [choice], "usage": {"prompt_tokens": len(ids)}})

    def logprobs(self, ids, new, top):
        decode = self.engine.tokenizer.decode
        rows = self.engine.logprobs([*ids, *new])[len(ids) - 1 : -1]
        likeliest = [row.topk(top) for row in rows]
        return {
            "tokens": [decode([i]) for i in new],
            "token_logprobs": [float(row[i]) for row, i in zip(rows, new, strict=True)],
            "top_logprobs": [
                {decode([int(i)]): float(p) for p, i in zip(t.values, t.indices, strict=True)}
                for t in likeliest
            ],
        }

    def chat(self, body):
        tokenizer = self.engine.tokenizer
        thinking = body.get("chat_template_kwargs", {}).get("enable_thinking", True)
        options = {"tools": body.get("tools"), "enable_thinking": thinking}
        ids = tokenizer.render(body["messages"], **options).ids
        if "forgeable" in self.faults:
            ids = tokenizer.encode_markup(tokenizer.render_text(body["messages"], **options))
        params = SamplingParams(temperature=0, max_tokens=body["max_tokens"])
        [completion] = self.engine.generate([ids], params)
        said = tokenizer.parse(completion.text, tools="raw calls" not in self.faults)
        calls = [
            {"index": i, "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
            for i, c in enumerate(said.tool_calls)
        ]
        message = {"content": said.content, "reasoning_content": said.reasoning}
        message |= {"tool_calls": calls} if calls else {}
        reason = "tool_calls" if calls else "stop"
        if not body.get("stream"):
            choice = {"message": message, "finish_reason": reason}
            return self.answer({"choices": [choice], "usage": {"prompt_tokens": len(ids)}})
        return self.stream(message, reason)

    def stream(self, message, reason):
        self.send_response(200)
        self.end_headers()
        for key in ("reasoning_content", "content"):
            for letter in message[key] or "":
                self.event({key: letter})
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            if "cut arguments" in self.faults:
                arguments = arguments[:-1]
            self.event({"tool_calls": [{"index": 0, "function": {"name": "get_weather"}}]})
            for letter in arguments:
                self.event({"tool_calls": [{"index": 0, "function": {"arguments": letter}}]})
        self.event({}, reason)
        self.wfile.write(b'data: {"choices": [], "usage": {}}\n\n')
        if "no end" not in self.faults:
            self.wfile.write(b"data: [DONE]\n\n")

    def event(self, delta, reason=None):
        data = json.dumps({"choices": [{"delta": delta, "finish_reason": reason}]})
        self.wfile.write(f"data: {data}\n\n".encode())


@contextmanager
def served(engine, *faults):
    handler = type("Faulty", (Handler,), {"engine": engine, "faults": frozenset(faults)})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as address:
        yield f"{address}/v1/"


@pytest.fixture(scope="module")
def kit():
    return make_kit()


def test_a_good_server_passes(kit):
    with served(Engine(TorchBackend(kit.models["plain"]), kit.tokenizer)) as url:
        report = run(url)
    assert failures(report) == {}
    assert report.exit_code == 0
    skipped = {row.probe for row in report.rows if row.status == "skip"}
    assert skipped == {"log-probs: yarn, short prompts", "log-probs: yarn, long prompts"}


def test_a_bad_server_is_caught(kit, tmp_path):
    everywhere = reshaped(kit.models["plain"], replace(CONFIG, uses_rope=(True,) * CONFIG.layers))
    engine = Engine(TorchBackend(everywhere), kit.tokenizer)
    with served(engine, "forgeable", "raw calls", "no end") as url:
        report = run(url, keep=tmp_path / "kit")
    found = failures(report)
    assert "RoPE on every layer" in found["log-probs: plain, short prompts"]
    assert "RoPE on every layer" in found["log-probs: plain, long prompts"]
    assert found.keys() >= FORGED
    assert found["chat: content"] == "<tool_call>, </tool_call> left in it"
    assert found["stream: answer"].endswith("does not end with [DONE]")
    assert (tmp_path / "kit/plain/config.json").exists()


def test_truncated_tool_arguments_are_caught(kit):
    with served(Engine(TorchBackend(kit.models["plain"]), kit.tokenizer), "cut arguments") as url:
        found = failures(run(url))
    assert found.keys() == {"stream: answer"}
    assert "tool calls in no known form" in found["stream: answer"]


def test_make_is_what_servers_load(tmp_path):
    make(tmp_path / "kit")
    names = {path.name for path in (tmp_path / "kit").iterdir()}
    assert names >= {"plain", "yarn"}
    make(tmp_path / "kit")  # over its own files
