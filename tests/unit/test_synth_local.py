"""Teachers that are loaded here: what they answer, and that a kill or another day changes nothing."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import yaml
from tests.support.noise import save_noise
from tests.support.serving import listening, speaking

from smollm3.errors import UserError
from smollm3.infer import load_engine
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.synth import local
from smollm3.synth.local import Local
from smollm3.synth.run import synthesise
from smollm3.synth.spec import Synthesis, Teacher
from smollm3.synth.teacher import Client, Refused, Silent

TODAY = datetime.date.today()


@pytest.fixture
def place(tmp_path, tokenizer):
    save_noise(tmp_path / "strong", tokenizer, spread=3)
    save_noise(tmp_path / "weak", tokenizer, spread=4)
    ask(tmp_path, 6)
    return tmp_path


def ask(place, n):
    prompts = [{"prompt": f"Say {i}"} for i in range(n)]
    (place / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))


def synthesis(place, **more):
    teacher = {"model": str(place / "strong"), "max_tokens": 8, "requests": 4}
    fields = {"name": "made", "prompts": [str(place / "prompts.jsonl")], "teacher": teacher}
    return Synthesis.model_validate(fields | more)


def quiet(_):
    pass


def lines(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_here_a_model_answers_as_behind_a_url(place):
    teacher = Teacher(model="tiny", max_tokens=8)
    messages = [{"role": "user", "content": "What is it?"}]
    here = Local(teacher, place / "strong", TODAY)
    with load_engine(place / "strong") as engine, listening(engine) as (url, _):
        there = Client(teacher, f"{url}/v1")
        for mode in ("think", "no_think"):
            for seed in (1, 2, 3):
                mine = here.ask(messages, mode, seed)
                assert mine.pop("date") == TODAY.isoformat()
                assert mine == there.ask(messages, mode, seed)
                assert mine["output"] == 8
        assert here.ask(messages, "think", 1) != here.ask(messages, "think", 2)
    with pytest.raises(Refused, match="tokens do not fit"):
        here.ask([{"role": "user", "content": "much " * 2000}], "think", 1)
    here.close()
    with pytest.raises(Silent):
        here.ask(messages, "think", 1)


def test_pairs_of_two_models_here_in_both_modes(place):
    weak = {"model": str(place / "weak"), "max_tokens": 8}
    spec = synthesis(place, modes=["think", "no_think"], pairs={"weak": weak})
    outcome = synthesise(spec, place / "out", quiet)
    told = lines(place / "out")
    assert [sum(line["role"] == role for line in told) for role in ("teacher", "weak")] == [12, 12]
    assert outcome.ledger["weak"]["output"] == 12 * 8
    assert outcome.dropped == {"cut off": 12}  # noise does not end
    synthesise(spec, place / "out", quiet)
    assert lines(place / "out") == told


def test_pairs_of_a_right_and_a_wrong_answer(place, tokenizer, monkeypatch):
    said = {
        "strong": "<think>\nI add.\n</think>\nThe answer is 4.",
        "weak": "<think>\nI guess.\n</think>\nThe answer is 5.",
    }
    with ExitStack() as stack:

        def load(path, speculation):
            return stack.enter_context(speaking(tokenizer, {"2+2": said[path.name]}))

        monkeypatch.setattr(local, "load_engine", load)
        (place / "prompts.jsonl").write_text(json.dumps({"prompt": "2+2", "answer": 4}))
        weak = {"model": str(place / "weak"), "max_tokens": 99}
        teacher = {"model": str(place / "strong"), "max_tokens": 99}
        modes = ["think", "no_think"]
        spec = synthesis(
            place, modes=modes, teacher=teacher, pairs={"weak": weak}, checks=["answer"]
        )
        outcome = synthesise(spec, place / "out", quiet)
    thinking, plain = ([row[side][-1] for side in ("chosen", "rejected")] for row in outcome.rows)
    assert [m["content"] for m in thinking] == ["The answer is 4.", "The answer is 5."]
    assert [m["reasoning_content"] for m in thinking] == ["I add.", "I guess."]
    assert plain == [{"role": "assistant", "content": m["content"]} for m in thinking]


def test_another_day_and_another_order_give_the_same_answers(place, monkeypatch):
    """What was asked yesterday is not asked again, and what is asked today is told yesterday's
    date; other weights are another teacher."""
    whole = synthesise(synthesis(place), place / "whole", quiet)
    (place / "part").mkdir()
    first = (place / "whole" / "answers.jsonl").read_text().splitlines(keepends=True)[0]
    old = json.loads(first) | {"date": "2020-02-03"}
    (place / "part" / "answers.jsonl").write_text(json.dumps(old) + "\n")
    synthesise(synthesis(place), place / "part", quiet)
    assert {line["date"] for line in lines(place / "part")} == {"2020-02-03"}
    assert len(lines(place / "part")) == 6 == whole.ledger["teacher"]["answers"]
    (place / "strong").rename(place / "gone")
    (place / "weak").rename(place / "strong")
    synthesise(synthesis(place), place / "part", quiet)
    assert len(lines(place / "part")) == 12


RECIPE = """
name: t
sources:
  questions: {{kind: procedural, generator: chat, format: chat, documents: 8, options: {{tasks: [sum]}}}}
stages:
  base:
    kind: merge
    from: {{{folder}/strong: 1}}
  ask:
    kind: synth
    teacher: {{model: {teacher}, max_tokens: 8}}
    prompts: [questions]
"""


def test_a_stage_of_the_recipe_is_a_teacher(place):
    recipe = RECIPE.format(folder=place, teacher="base")
    events = Events(*(lambda *_: None for _ in range(5)))

    def run(text):
        Run(load_recipe_text(text, "t.yaml"), place / "run", events).execute()

    with pytest.raises(UserError, match=r"stages.ask: no answer was kept \(8 cut off\)"):
        run(recipe)
    work = place / "run" / ".work" / "ask"
    assert len(lines(work)) == 8
    with pytest.raises(UserError, match="no answer was kept"):
        run(recipe)
    assert len(lines(work)) == 8
    with pytest.raises(
        UserError, match="stages.ask.*'bse' is not a stage above; did you mean 'base'"
    ):
        load_recipe_text(RECIPE.format(folder=place, teacher="bse"), "t.yaml")
    with pytest.raises(UserError, match="starts from itself"):
        load_recipe_text(RECIPE.format(folder=place, teacher="ask"), "t.yaml")


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_in_the_same_file(place):
    ask(place, 300)
    spec = synthesis(place)
    synthesise(spec, place / "calm", quiet)
    recipe = place / "synth.yaml"
    recipe.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    out = place / "killed"
    command = [sys.executable, "-m", "smollm3", "synth", str(recipe), "--out", str(out)]
    for enough in (40, 150):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        path = out / "answers.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < enough:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert path.read_bytes().count(b"\n") < 300
    subprocess.run(command, check=True, capture_output=True)
    by_key = lambda folder: sorted(lines(folder), key=lambda line: line["key"])  # noqa: E731
    assert by_key(out) == by_key(place / "calm")
    assert (out / "made.jsonl").read_bytes() == (place / "calm" / "made.jsonl").read_bytes()
