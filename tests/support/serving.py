"""A server around an engine that says what a script says; in this process or on a socket."""

import contextlib
import json
import threading

import uvicorn
from starlette.testclient import TestClient

from smollm3.infer import Engine
from smollm3.model import ModelConfig
from smollm3.serve.app import guarded
from smollm3.serve.service import Service
from smollm3.serve.settings import Keys, Settings
from tests.support.fake_backend import CONFIG, FakeBackend

SURE = 60.0  # of a logit: the model is certain


class ScriptedBackend(FakeBackend):
    """Says what belongs to the last words of the prompt, and noise where there is nothing. Where a
    mask has led it elsewhere it goes on where the same was said."""

    def __init__(self, tokenizer, script, blocks=256, context=2048, **options) -> None:
        config = ModelConfig(
            **{**vars(CONFIG), "vocab_size": tokenizer.vocab_size, "context": context}
        )
        super().__init__(blocks, config, **options)
        self.tokenizer = tokenizer
        self.script = {
            tuple(tokenizer.encode(words)): tokenizer.encode_markup(text)
            for words, text in script.items()
        }
        self.found = {}
        self.gate = threading.Event()  # steps wait for it
        self.gate.set()

    def step(self, batch):
        self.gate.wait()
        return super().step(batch)

    def logits_after(self, ids):
        logits = super().logits_after(ids[-8:]) / self.spread
        found = self._line(list(ids))
        if found is not None:
            logits[self._next(*found)] = SURE
        return logits

    def _line(self, ids):
        """The line that belongs to the latest words, and what was said after them."""
        header = self.tokenizer.encode("assistant\n")
        ends = range(len(ids), len(header), -1)
        said = next((end for end in ends if ids[end - len(header) : end] == header), None)
        asked = ids if said is None else ids[: said - len(header)]
        key = tuple(asked)
        if said is None or key not in self.found:
            self.found[key] = self._found(asked)
        end, line = self.found[key]
        return None if line is None else (line, ids[said or end :])

    def _found(self, asked):
        best = (0, 0, None)
        for words, line in self.script.items():
            n = len(words)
            ends = range(len(asked), n - 1, -1)
            end = next((end for end in ends if tuple(asked[end - n : end]) == words), 0)
            if end and (end, n) > best[:2]:
                best = (end, n, line)
        return best[0], best[2]

    def _next(self, line, said):
        blank = self.tokenizer.encode_markup("<think>\n\n</think>\n")
        if said[: len(blank)] == blank:
            said = said[len(blank) :]
            end = self.tokenizer.tags["</think>"]
            if end in line:  # the prompt has closed the reasoning
                line = line[line.index(end) + 2 :]
        line = [*line, self.tokenizer.stop_ids[0]]
        if said == line[: len(said)]:
            return line[min(len(said), len(line) - 1)]
        for length in range(min(len(said), 24), 0, -1):
            for at in range(len(line) - length - 1, -1, -1):
                if line[at : at + length] == said[-length:]:
                    return line[at + length]
        return line[-1]


@contextlib.contextmanager
def speaking(tokenizer, script, **options):
    """An engine that says `script`."""
    with Engine(ScriptedBackend(tokenizer, script, **options), tokenizer) as engine:
        yield engine


def local(engine, settings=None, keys=(), agent=None, **options):
    """A client of a server in this process."""
    service = Service(engine, settings or Settings(), Keys(list(keys)), "tiny", agent)
    client = TestClient(guarded(service), base_url="http://127.0.0.1:8000", **options)
    client.service = service
    return client


@contextlib.contextmanager
def listening(engine, settings=None, keys=(), agent=None):
    """The address of a server on a socket of this machine."""
    service = Service(engine, settings or Settings(), Keys(list(keys)), "tiny", agent)
    config = uvicorn.Config(guarded(service), port=0, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def events(response):
    """The data of an event stream, and whether it says that it is done."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    done = lines[-1:] == ["[DONE]"]
    return [json.loads(line) for line in lines[: -1 if done else None]], done


def added_up(chunks):
    """The choices that a stream of chat chunks adds up to, as of a whole answer."""
    choices = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            i, delta = part["index"], part["delta"]
            choice = choices.setdefault(i, {"message": {}, "logprobs": []})
            message = choice["message"]
            for key in ("content", "reasoning_content"):
                if delta.get(key) is not None:
                    message[key] = message.get(key, "") + delta[key]
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append({"name": call["function"]["name"], "arguments": ""})
                calls[call["index"]]["arguments"] += call["function"].get("arguments", "")
            if part["logprobs"]:
                choice["logprobs"] += part["logprobs"]["content"]
            choice["finish_reason"] = part["finish_reason"]
    return [choices[i] for i in sorted(choices)]


def plain(message):
    """A whole answer's message with what a stream tells of it too."""
    told = {key: message[key] for key in ("content", "reasoning_content") if message.get(key)}
    if message.get("tool_calls"):
        told["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    return told


def noted_prompts(engine, monkeypatch):
    """The prompts that the engine is given from here on."""
    seen, submit = [], engine.submit

    def note(ids, *args, **options):
        seen.append(engine.tokenizer.decode(ids))
        return submit(ids, *args, **options)

    monkeypatch.setattr(engine, "submit", note)
    return seen


def post(client, path, status=200, **body):
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()
