"""`smollm3 serve` as a process, and the official clients of OpenAI and Anthropic against it."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import anthropic
import httpx2
import openai
import pydantic
import pytest

from smollm3.serve.settings import Settings
from tests.support.noise import save_noise

NODE = Path(__file__).parents[1] / "node"
PAGE = (Path(__file__).parents[2] / "docs/serving.md").read_text()
HI = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A folder with a model that says noise."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    save_noise(folder, tokenizer)
    return str(folder)


class Process:
    """A server on a port of its own. said: its log so far."""

    def __init__(self, *words, **environment):
        command = [sys.executable, "-m", "smollm3", "serve", "--port", "0", *map(str, words)]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )
        self.said, self.url = [], ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        deadline = time.monotonic() + 180
        while not self.url:
            assert time.monotonic() < deadline
            assert self._reader.is_alive(), "".join(self.said)
            self._reader.join(0.05)

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r" on (http://\S+)$", line.strip()):
                self.url = found[1]

    def end(self, seconds=60):
        """SIGTERM; its exit code and how long it took."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        finally:
            self.process.kill()
        self._reader.join(5)
        self.process.stderr.close()
        return code, time.monotonic() - begun


@contextlib.contextmanager
def serving(*words, **environment):
    server = Process(*words, **environment)
    try:
        yield server
    finally:
        code, _ = server.end()
        assert code == 0, "".join(server.said)
        assert not any("Traceback" in line for line in server.said), "".join(server.said)


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    files = str(tmp_path_factory.mktemp("kept"))
    options = ["--alias", "smollm3-3b", "--python-tools", "--files", files]
    with serving(model, *options) as server:
        yield server


@pytest.fixture
def gpt(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


SHORT = {"model": "tiny", "messages": HI, "max_tokens": 24, "seed": 1}


def test_openai_chat(gpt):
    whole = gpt.chat.completions.create(**SHORT)
    assert whole.choices[0].finish_reason in ("stop", "length")
    stream = gpt.chat.completions.create(
        **SHORT, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thoughts == getattr(whole.choices[0].message, "reasoning_content", "")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    word = {"structured_outputs": {"regex": "[a-z]{8}"}, "reasoning_effort": "none"}
    with gpt.chat.completions.stream(**SHORT, extra_body=word) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert re.fullmatch("[a-z]{8}", final.choices[0].message.content)


class Place(pydantic.BaseModel):
    city: Literal["Paris", "Oslo"]


def test_openai_structured(gpt):
    options = SHORT | {"max_tokens": 300, "reasoning_effort": "none"}
    found = gpt.chat.completions.parse(**options, response_format=Place)
    assert found.choices[0].message.parsed.city in ("Paris", "Oslo")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    options = {"response_format": form, "reasoning_effort": "none", "max_tokens": 200}
    answer = gpt.chat.completions.create(**SHORT | options)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Paris", "Oslo")
    answer = gpt.chat.completions.create(**SHORT | options, logprobs=True, top_logprobs=3, n=2)
    assert len(answer.choices) == 2
    first = answer.choices[1].logprobs.content[0]
    told = [alternative.token for alternative in first.top_logprobs]
    assert first.token in told  # the grammar may have taken one that is not likely
    assert len(set(told) - {first.token}) in (2, 3)


def test_openai_tools(gpt):
    function = {"name": "weather", "description": "Says it.", "parameters": SCHEMA}
    options = {
        "tools": [{"type": "function", "function": function}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "none",
        "max_tokens": 300,
    }
    answer = gpt.chat.completions.create(**SHORT | options)
    [call] = answer.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo")
    with gpt.chat.completions.stream(**SHORT | options) as events:
        [streamed] = events.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    turns = [
        *HI,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "rain"},
    ]
    later = gpt.chat.completions.create(
        **SHORT | options | {"messages": turns, "tool_choice": "auto"}
    )
    assert later.usage.prompt_tokens > answer.usage.prompt_tokens


def test_openai_responses(gpt):
    options = {"model": "tiny", "input": "hi", "max_output_tokens": 24, "extra_body": {"seed": 1}}
    whole = gpt.responses.create(**options)
    assert whole.status in ("completed", "incomplete")
    with gpt.responses.stream(**options) as events:
        final = list(events)[-1].response
    assert final.output_text == whole.output_text
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    later = gpt.responses.create(**options, previous_response_id=whole.id)
    assert later.usage.input_tokens > whole.usage.input_tokens
    tool = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
    called = gpt.responses.create(
        **options | {"max_output_tokens": 300},
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        reasoning={"effort": "none"},
    )
    assert json.loads(called.output[-1].arguments)["city"] in ("Paris", "Oslo")
    assert gpt.responses.retrieve(called.id).output == called.output
    parsed = gpt.responses.parse(
        **options | {"max_output_tokens": 300}, text_format=Place, reasoning={"effort": "none"}
    )
    assert parsed.output_parsed.city in ("Paris", "Oslo")


def test_openai_texts_and_models(gpt):
    text = gpt.completions.create(model="tiny", prompt="The", max_tokens=5, seed=2, logprobs=2)
    assert text.usage.completion_tokens <= 5
    pieces = gpt.completions.create(model="tiny", prompt="The", max_tokens=5, seed=2, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == text.choices[0].text
    assert [model.id for model in gpt.models.list()] == ["tiny"]
    assert gpt.models.retrieve("tiny").id == "tiny"


def test_openai_errors(gpt):
    with pytest.raises(openai.NotFoundError):
        gpt.chat.completions.create(**SHORT | {"model": "gpt-4"})
    with pytest.raises(openai.BadRequestError, match="temperature"):
        gpt.chat.completions.create(**SHORT, temperature=7)
    with pytest.raises(openai.BadRequestError, match="audio"):
        gpt.chat.completions.create(**SHORT, audio={"voice": "alloy", "format": "wav"})
    long = [{"role": "user", "content": "long " * 2000}]
    with pytest.raises(openai.BadRequestError, match="context"):
        gpt.chat.completions.create(**SHORT | {"messages": long})


def test_anthropic(claude):
    options = {
        "model": "tiny",
        "messages": HI,
        "max_tokens": 24,
        "extra_body": {"seed": 1, "temperature": 0},
    }
    whole = claude.messages.create(**options)
    assert whole.stop_reason in ("end_turn", "max_tokens")
    with claude.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == "".join(block.text for block in whole.content if block.type == "text")
    assert final.usage.output_tokens == whole.usage.output_tokens
    count = claude.messages.count_tokens(model="tiny", messages=HI).input_tokens
    used = whole.usage
    assert count == used.input_tokens + used.cache_read_input_tokens
    tool = {"name": "weather", "input_schema": SCHEMA}
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    called = claude.messages.create(
        **options | {"max_tokens": 300}, tools=[tool], tool_choice=choice
    )
    assert called.stop_reason == "tool_use"
    assert called.content[-1].input["city"] in ("Paris", "Oslo")
    with claude.messages.stream(
        **options | {"max_tokens": 300}, tools=[tool], tool_choice=choice
    ) as stream:
        assert stream.get_final_message().content[-1].input == called.content[-1].input
    thought = claude.messages.create(
        **options | {"max_tokens": 300}, thinking={"type": "enabled", "budget_tokens": 20}
    )
    assert thought.usage.output_tokens_details.thinking_tokens <= 20 + 3
    assert [model.id for model in claude.models.list()] == ["tiny"]
    with pytest.raises(anthropic.BadRequestError, match="container"):
        claude.messages.create(**options, container="x")
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(**options | {"model": "claude"})


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("npm"), reason="no Node here")
def test_openai_from_node(server, tmp_path):
    folder = shutil.copytree(NODE, tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["node", "suite.mjs", server.url]):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["chat", "structured", "tools", "responses", "others", "stopped"]


CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", CODE, ids=lambda code: re.search(r"(from|import) (\w+)", code)[2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_guides(server, code, capsys):
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(package)
    assert "http://127.0.0.1:8000" in code
    exec(code.replace("http://127.0.0.1:8000", server.url), {"__name__": "page"})
    assert capsys.readouterr().out


def test_every_setting_is_documented():
    for name in Settings.model_fields:
        assert f"`{name}`" in PAGE, name


def metric(url, name):
    text = httpx2.get(f"{url}/metrics").text
    return float(re.search(rf"^{name} (\S+)", text, re.MULTILINE)[1])


def running(url):
    return metric(url, "smollm3_answers_running")


def until_none_runs(url):
    end = time.monotonic() + 60
    while running(url):
        assert time.monotonic() < end
        time.sleep(0.01)


LONG = {"messages": HI, "max_tokens": 1500, "ignore_eos": True, "stream": True, "seed": 3}


def test_a_vanished_client_frees_its_slot(server):
    url = f"{server.url}/v1/chat/completions"
    before = metric(server.url, "smollm3_decode_tokens_total")
    with httpx2.Client() as client, client.stream("POST", url, json=LONG | {"n": 8}) as response:
        lines = response.iter_lines()
        next(lines)
        assert running(server.url) == 8
    until_none_runs(server.url)
    whole = LONG | {"stream": False, "n": 8}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.post(url, json=whole, timeout=0.2)
    until_none_runs(server.url)
    # Not one of the two requests was answered to its end.
    assert (
        metric(server.url, "smollm3_decode_tokens_total") - before < 2 * 8 * LONG["max_tokens"] / 2
    )


@pytest.mark.parametrize("grace", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_sigterm_during_fifty_streams(model, tmp_path, grace):
    config = tmp_path / "serve.yaml"
    config.write_text(f"grace_seconds: {grace}\n")
    asked = LONG | {"max_tokens": 1500 if grace == 1 else 60}

    async def scene(server):
        begun, ended = [asyncio.Event() for _ in range(50)], []

        async def stream(client, i):
            last = ""
            async with client.stream("POST", "/v1/chat/completions", json=asked) as response:
                assert response.status_code == 200
                async for line in response.aiter_lines():
                    begun[i].set()
                    last = line or last
            ended.append(last)

        limits = httpx2.Limits(max_connections=60)
        async with httpx2.AsyncClient(base_url=server.url, limits=limits, timeout=60) as client:
            tasks = [asyncio.create_task(stream(client, i)) for i in range(50)]
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60)
            done = await asyncio.to_thread(server.end, grace + 60)
            await asyncio.gather(*tasks)
        return ended, done

    server = Process(model, "--config", config)
    ended, (code, seconds) = asyncio.run(scene(server))
    assert code == 0, "".join(server.said)
    assert seconds < grace + 60
    assert len(ended) == 50
    failed = [last for last in ended if last != "data: [DONE]"]
    assert all("shutting_down" in last for last in failed), failed
    assert bool(failed) == (grace == 1)


@pytest.mark.slow
def test_with_a_key_from_the_environment(model, tmp_path):
    key = "k" * 24
    with serving(model, "--quiet", "--name", "mine", SMOLLM3_API_KEY=key) as server:
        url = f"{server.url}/v1"
        with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
            assert client.models.list().data[0].id == "mine"
        with (
            openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()
        with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
            assert client.models.list().data[0].id == "mine"
    assert key not in "".join(server.said)
    assert "GET" not in "".join(server.said)
