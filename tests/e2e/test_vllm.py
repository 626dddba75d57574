"""`smollm3 serve --engine vllm` with vLLM itself, where there is one: `make vllm`, or SMOLLM3_VLLM."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from smollm3 import SamplingParams, load_engine
from smollm3.model import nope_pattern
from tests.support.eval_data import data_folder
from tests.support.noise import save_noise

from .conftest import cli

OWN = Path(__file__).parents[2] / ".venv-vllm/bin/vllm"
PROGRAM = os.environ.get("SMOLLM3_VLLM") or shutil.which("vllm") or (OWN if OWN.exists() else None)
START_SECONDS = 400
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="needs vLLM in an environment of its own: make vllm"
    ),
]


@pytest.fixture(scope="module")
def model(tokenizer, tmp_path_factory):
    """A folder with a model that says noise; its heads are of a size that vLLM knows."""
    folder = tmp_path_factory.mktemp("vllm") / "tiny"
    save_noise(
        folder, tokenizer, spread=1, vocab_size=tokenizer.vocab_size, layers=4, hidden=128,
        head_dim=32, ffn=192, uses_rope=nope_pattern(4, 4),
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def client(model):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "smollm3",
        "serve",
        model,
        "--engine",
        "vllm",
        "--alias",
        "gpt",
    ]
    command += ["--port", port, "--dtype", "float32", "--context", 1024]
    key = "k" * 24
    process = subprocess.Popen(
        [*map(str, command)],
        env={
            **os.environ,
            "SMOLLM3_VLLM": str(PROGRAM),
            "SMOLLM3_API_KEY": key,
            "VLLM_CPU_KVCACHE_SPACE": "1",
        },
    )
    headers = {"authorization": f"Bearer {key}"}
    try:
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60
        ) as client:
            deadline = time.monotonic() + START_SECONDS
            while True:
                assert process.poll() is None, "vLLM ended"
                assert time.monotonic() < deadline
                try:
                    if client.get("/health").status_code == 200:
                        break
                except httpx2.HTTPError:
                    time.sleep(1)
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_the_next_tokens_are_as_likely(model, client):
    engine = load_engine(model, dtype="float32", engine="torch")
    for prompt in ("the model", "question answers", "日本"):
        body = {
            "model": "tiny",
            "prompt": prompt,
            "max_tokens": 12,
            "temperature": 0,
            "logprobs": 0,
        }
        theirs = client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]
        params = SamplingParams(max_tokens=12, temperature=0, logprobs=1)
        [ours] = engine.generate([prompt], params)
        found = theirs["logprobs"]["token_logprobs"]
        assert found == pytest.approx(ours.logprobs, abs=1e-4)


@pytest.mark.parametrize("thinking", [True, False])
def test_reasoning_stands_apart(client, thinking):
    body = {
        "model": "gpt",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 8,
        "chat_template_kwargs": {"enable_thinking": thinking},
    }
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    message = answer["choices"][0]["message"]
    assert bool(message["reasoning"]) == thinking
    assert bool(message["content"]) != thinking


def test_an_evaluation_gets_the_scores_of_our_engine(model, tmp_path):
    """Options scored by vLLM's log-probabilities of a prompt."""
    theirs = {"SMOLLM3_VLLM": str(PROGRAM), "VLLM_CPU_KVCACHE_SPACE": "1"}
    data = data_folder(tmp_path / "sets")
    scores = []
    for engine in ("vllm", "torch"):
        out = tmp_path / engine
        words = ["eval", model, "--engine", engine, "--dtype", "float32", "--tasks", "hellaswag"]
        done = cli(*words, "--data", data, "--out", out, **theirs)
        assert done.returncode == 0, done.stderr
        lines = (out / "samples_hellaswag.jsonl").read_text().splitlines()
        scores.append([pair[0] for line in lines for pair in json.loads(line)["filtered_resps"]])
    assert [float(x) for x in scores[0]] == pytest.approx([float(x) for x in scores[1]], abs=1e-3)


def test_a_key_is_needed(client):
    headers = {"authorization": "Bearer no"}
    assert client.get("/v1/models", headers=headers).status_code == 401
