"""The program llm finds the model, talks to it, and calls tools through it."""

import json
import os
import subprocess
import sys

import pytest

llm = pytest.importorskip("llm")

from smollm3 import llm_plugin  # noqa: E402
from tests.support.serving import speaking  # noqa: E402

CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SCRIPT = {
    "sum": f"<think>\nplus\n</think>\n{CALL}",
    "3": "it is so",
    "greet": "<think>\nwho\n</think>\nhello",
    "again": "once more",
    "json": '{"a": 12}',
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.fixture(scope="module")
def model(tokenizer):
    model = llm_plugin.SmolLM3()
    with speaking(tokenizer, SCRIPT) as engine:
        model.engine = engine
        yield model


def add(a: int, b: int) -> str:
    """Adds."""
    return str(a + b)


def test_it_talks(model):
    response = model.prompt("greet", temperature=0)
    assert "".join(response) == "hello"
    assert response.input_tokens > 0
    assert response.output_tokens > 0
    reasoning = [part for message in response.messages() for part in message.parts]
    assert reasoning[0].text == "who"
    conversation = model.conversation()
    assert conversation.prompt("greet", temperature=0).text() == "hello"
    assert conversation.prompt("again", temperature=0, think=False).text() == "once more"


def test_it_calls(model):
    chain = model.chain("sum", tools=[add], options={"temperature": 0})
    assert chain.text() == "it is so"
    [call] = chain._responses[0].tool_calls()
    assert call.arguments == {"a": 1, "b": 2}


def test_it_keeps_to_a_schema(model):
    response = model.prompt("json", schema=SCHEMA, temperature=0, think=False)
    assert json.loads(response.text()) == {"a": 12}


def test_a_mistake_is_a_line(model):
    with pytest.raises(llm.ModelError, match="do not fit|fills"):
        model.prompt("x" * 5000).text()
    with pytest.raises(llm.ModelError, match="together"):
        model.prompt("x", tools=[add], schema=SCHEMA).text()


@pytest.mark.slow
def test_the_program(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "smollm3", "Name a city.", "-o", "max_tokens", "8"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env={
            **os.environ,
            "SMOLLM3_MODEL": "smollm2-135m",
            "LLM_LOAD_PLUGINS": "smollm3",
            "LLM_USER_PATH": str(tmp_path),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
