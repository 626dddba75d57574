"""A server at a URL as a target: what is asked, what is tried again, what fails in one line."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.support.eval_data import Watching, data_folder

from smollm3.errors import UserError
from smollm3.eval.harness import Wanted
from smollm3.eval.remote import UrlTarget
from smollm3.eval.results import ITEMS, RESULTS
from smollm3.eval.run import run
from smollm3.eval.target import Ask, Prompt, Settings


@pytest.fixture
def server():
    """server(answers) -> url, requests: each path gives its answers in turn, the last for ever."""
    servers = []

    def start(answers):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                size = int(self.headers.get("Content-Length") or 0)
                asked.append((self.path, json.loads(self.rfile.read(size) or b"null")))
                queue = answers[self.path]
                status, body = queue.pop(0) if len(queue) > 1 else queue[0]
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        servers.append((made, thread))
        return f"http://127.0.0.1:{made.server_port}/v1", asked

    yield start
    for made, thread in servers:
        made.shutdown()
        thread.join()
        made.server_close()


MODELS = [(200, {"data": [{"id": "m"}]})]


def test_a_conversation_is_asked_and_its_reasoning_dropped(server):
    said = {
        "choices": [
            {"message": {"content": "<think>STOP</think>yes STOP no"}, "finish_reason": "stop"}
        ],
        "usage": {"completion_tokens": 9},
    }
    url, asked = server({"/v1/models": MODELS, "/v1/chat/completions": [(503, {}), (200, said)]})
    target = UrlTarget(url, Settings(chat=True, think=True, system="Be brief."), pause=0.01)
    prompt = Prompt(messages=({"role": "user", "content": "hi"},), prefill="Well,")
    written = target.answer(Ask(prompt, stop=("STOP",), max_tokens=50)).result()
    assert written == {"text": "yes ", "finish": "stop", "tokens": 9, "calls": []}
    body = asked[-1][1]
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant"]
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    assert "stop" not in body
    assert "temperature" not in body
    assert target.origin() == f"{url} m"


def test_calls_and_plain_texts(server):
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    bad = {"function": {"name": "g", "arguments": "{"}}
    chat = {
        "choices": [
            {"message": {"content": None, "tool_calls": [call, bad]}, "finish_reason": "length"}
        ]
    }
    text = {"choices": [{"text": "one two", "finish_reason": "stop"}]}
    url, asked = server(
        {
            "/v1/models": MODELS,
            "/v1/chat/completions": [(200, chat)],
            "/v1/completions": [(200, text)],
        }
    )
    target = UrlTarget(url, Settings(chat=True))
    prompt = Prompt(messages=({"role": "user", "content": "hi"},), tools=({"type": "function"},))
    written = target.answer(Ask(prompt, temperature=0.0)).result()
    assert written["calls"] == [
        {"name": "f", "arguments": {"a": 1}},
        {"name": "g", "arguments": {}},
    ]
    assert written["finish"] == "length"
    assert asked[-1][1]["tools"]
    assert (
        target.answer(Ask(Prompt("say"), stop=(" two",), temperature=0.0)).result()["text"] == "one"
    )
    assert asked[-1][1]["stop"] == [" two"]


def test_log_probabilities_by_echo(server):
    found = {
        "token_logprobs": [None, -1.0, -2.0, -9.0],
        "top_logprobs": [None, {"b": -1.0}, {"x": -0.5, "c": -2.0}, {"d": -9.0}],
        "text_offset": [0, 3, 5, 7],
    }
    good = {"choices": [{"logprobs": found}]}
    url, asked = server(
        {
            "/v1/models": MODELS,
            "/v1/completions": [(200, good), (200, {"choices": [{"logprobs": None}]})],
        }
    )
    target = UrlTarget(url, Settings())
    assert target.score(Prompt("abc"), " d e").result() == [-3.0, False]
    assert asked[-1][1]["prompt"] == "abc d e"
    with pytest.raises(UserError, match="does not tell log-probabilities of a prompt"):
        target.score_all("abc").result()
    with pytest.raises(UserError, match="use --no-chat"):
        target.score(Prompt(messages=({"role": "user", "content": ""},)), "x")
    with pytest.raises(UserError, match="RULER measures"):
        target.count("x")


@pytest.mark.parametrize(
    ("answers", "message", "tries"),
    [
        ([(401, {"error": "no key"})], "401 .*no key.*run the same command to go on", 1),
        ([(500, {})], "500", 4),
        ([(200, b"no json")], "go on", 4),
        ([(200, {"choices": []})], "not an answer of OpenAI's API", 1),
        ([(200, {"choices": [{}]})], "not an answer of OpenAI's API", 1),
    ],
)
def test_what_fails_is_one_line(server, answers, message, tries):
    url, asked = server({"/v1/models": MODELS, "/v1/completions": answers})
    target = UrlTarget(url, Settings(), pause=0.001)
    with pytest.raises(UserError, match=message):
        target.answer(Ask(Prompt("x"))).result()
    assert len(asked) == 1 + tries


def test_a_server_without_a_model(server):
    url, _ = server({"/v1/models": [(200, {"data": []})]})
    with pytest.raises(UserError, match="names no model"):
        UrlTarget(url, Settings()).origin()


def test_a_named_model_and_a_server_that_is_not_told_of_thinking(server):
    answer = {"choices": [{"message": {"content": "[[3]]"}, "finish_reason": "stop"}]}
    url, asked = server({"/v1/chat/completions": [(200, answer)]})
    target = UrlTarget(f"{url}#judge", Settings(chat=True), says_mode=False)
    assert target.answer(Ask(Prompt(messages=({"role": "user", "content": "hi"},)))).result()
    assert asked[0][1]["model"] == "judge"
    assert "chat_template_kwargs" not in asked[0][1]
    assert target.origin() == f"{url} judge"


def test_a_server_that_fails_half_way_loses_nothing(tmp_path):
    """What was on its way when it failed is kept too; then the same bytes as if it never had."""
    data = data_folder(tmp_path / "sets")
    wanted = Wanted(["gsm8k"], data=data, few_shot=0)
    broken: set[str] = set()
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(200, {"data": [{"id": "m"}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body["prompt"])
            if body["prompt"] in broken:
                self.answer(400, {"error": "broken"})
            else:
                time.sleep(0.2)  # others are on their way when one fails
                text = f"#### {len(body['prompt'])}"
                self.answer(200, {"choices": [{"text": text, "finish_reason": "stop"}]})

        def answer(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    def evaluated(out):
        target = UrlTarget(url, Settings(), pause=0)
        run(target, wanted, Settings(), out / ITEMS, None, Watching()).write(out)

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{made.server_port}/v1"
    try:
        evaluated(tmp_path / "whole")
        items = len(asked)
        broken.add(min(asked))
        for _ in range(2):
            with pytest.raises(UserError, match=r"400 .*broken.*; what is finished is kept"):
                evaluated(tmp_path / "cut")
        broken.clear()
        asked.clear()
        evaluated(tmp_path / "cut")
    finally:
        made.shutdown()
        thread.join()
        made.server_close()
    assert len(asked) == 1 < items
    for name in (RESULTS, "samples_gsm8k.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
