"""MixEval-Hard with files of its form that we make: who is asked what, and what a verdict counts."""

import json

import pytest
from tests.support.eval_data import Saying, Watching, data_folder, fake_engine

from smollm3.errors import UserError
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.mixeval import JUDGE, LETTER, Item, verdict_of
from smollm3.eval.results import measures
from smollm3.eval.target import Settings

CHAT = Settings(chat=True)


def free(i, **more):
    return {
        "problem_type": "free-form",
        "context": None,
        "prompt": f"What is number {i}?",
        "target": [f"n{i}", f"no. {i}"],
        "benchmark_name": "Invented",
    } | more


def choice(i, **more):
    return {
        "problem_type": "single-choice",
        "context": f"Box {i} is red.",
        "prompt": "What colour is it?",
        "options": ["red", "green", "blue"],
        "target": [0],
        "benchmark_name": "Invented choice",
    } | more


FILES = {
    "free-form.json": {str(i): free(i) for i in range(5)},
    "multiple-choice.json": {str(i): choice(i) for i in range(5)},
}


@pytest.fixture
def data(tmp_path):
    write(tmp_path, FILES)
    return tmp_path / "data"


def write(tmp_path, files):
    folder = tmp_path / "data/mixeval_hard"
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / name).write_text(json.dumps(rows))


def evaluated(tokenizer, data, out, model=lambda ask: "n0", judge=lambda ask: "", **wanted):
    engine = fake_engine(tokenizer)
    rates = judge and Saying(engine, "judge", CHAT, judge)
    target = Saying(engine, "fake", CHAT, model)
    wanted = Wanted(["mixeval_hard"], data=data, judge=rates, **wanted)
    with Journal(out / "items.jsonl", {}) as journal:
        return run_tasks(target, wanted, CHAT, journal, Watching())


def test_questions_and_what_the_judge_sees(tokenizer, data, tmp_path):
    asked, judged = [], []

    def judge(ask):
        judged.append([m["content"] for m in ask.prompt.messages])
        return "[[A]]" if ask.prompt.messages[0]["content"] == LETTER else "well, [[0.5]]"

    def model(ask):
        asked.append(ask.prompt.messages[0]["content"])
        return f"a{len(asked)}"

    found = evaluated(tokenizer, data, tmp_path, model, judge, limit=1)
    options = "A. red\nB. green\nC. blue\nAnswer with the option letter from the given choices"
    assert asked == [
        "Question: What is number 0?\nAnswer the question shortly.",
        f"Box 0 is red.\nWhat colour is it?\n{options} directly.",
    ]
    assert judged == [
        [JUDGE, f"{asked[0]}\n\nAnswer to judge: a1\nRight answer 1: n0\nRight answer 2: no. 0"],
        [LETTER, f"{asked[1]}\n\nAnswer to judge: a2"],
    ]
    values = {name: m.value for name, m in measures(found)["mixeval_hard"].items()}
    assert values == {
        "score,none": 0.75,
        "free_form,none": 0.5,
        "multiple_choice,none": 1.0,
        "unrated,none": 0.0,
    }
    assert found["n-samples"]["mixeval_hard"] == {"original": 10, "effective": 2}


def test_what_the_judge_gives_no_verdict_on_counts_nowhere(tokenizer, data, tmp_path):
    def judge(ask):
        text = ask.prompt.messages[1]["content"]
        return "[[1]]" if "number 3" in text else "[[none]]" if "Box 3" in text else "hm"

    numbers = measures(evaluated(tokenizer, data, tmp_path, judge=judge))["mixeval_hard"]
    assert numbers["score,none"].value == 0.5
    assert numbers["score,none"].n == 2
    assert numbers["unrated,none"].value == 0.8


@pytest.mark.parametrize(
    ("options", "verdict", "value"),
    [
        ((), "[[1]]", 1.0),
        ((), "first [[1]], but then [[0.2]]", 0.2),
        ((), "[[7]]", None),
        ((), "[1]", None),
        (("x", "y"), "[[b]]", 1.0),
        (("x", "y"), "not [[B]] but [[A]]", 0.0),
        (("x", "y"), "[[None]]", 0.0),
        (("x", "y"), "B", None),
    ],
)
def test_verdicts(options, verdict, value):
    item = Item("1", "s", "q", options, ("B",))
    assert verdict_of(item, verdict) == value


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"free-form.json": {"0": {"prompt": "p"}}}, "not the file of .*: 'target'"),
        ({"free-form.json": {"0": free(0, target=[])}}, "free-form/0 has no right answer"),
        ({"multiple-choice.json": {"0": choice(0, target=[3])}}, "multiple-choice.json: not"),
        ({"free-form.json": [1]}, "free-form.json: not the file of"),
    ],
)
def test_files_of_another_form(tokenizer, data, tmp_path, files, said):
    write(tmp_path, files)
    with pytest.raises(UserError, match=said):
        evaluated(tokenizer, data, tmp_path)


def test_what_is_missing_is_one_line(tokenizer, data, tmp_path):
    with pytest.raises(UserError, match="add --judge URL"):
        evaluated(tokenizer, data, tmp_path, judge=None)
    with pytest.raises(UserError, match=r"add --data FOLDER with mixeval_hard/free-form\.json and"):
        evaluated(tokenizer, None, tmp_path)
    (data / "mixeval_hard/free-form.json").unlink()
    with pytest.raises(UserError, match=r"free-form\.json: no such file; it is free-form\.json in"):
        evaluated(tokenizer, data, tmp_path)


def test_a_suite_leaves_out_what_has_no_judge(tokenizer, data, tmp_path):
    data_folder(data)
    engine = fake_engine(tokenizer)
    target = Saying(engine, "fake", CHAT, lambda ask: "n0")
    with Journal(tmp_path / "items.jsonl", {}) as journal:
        wanted = Wanted(["mixeval_hard", "gsm8k"], data=data, few_shot=0, skip=True)
        found = run_tasks(target, wanted, CHAT, journal, Watching())
        assert set(found["results"]) == {"gsm8k"}
        assert "a judge rates the answers" in found["smollm3"]["skipped"]["mixeval_hard"]
        wanted = Wanted(["mixeval_hard"], data=data, skip=True)
        with pytest.raises(UserError, match="nothing left to evaluate: mixeval_hard: a judge"):
            run_tasks(target, wanted, CHAT, journal, Watching())
