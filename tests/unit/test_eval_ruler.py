"""RULER: prompts of any length, never longer, nearly full; an oracle is always right."""

import json
import re

import pytest
from tests.support.eval_data import text

from smollm3.errors import UserError
from smollm3.eval.ruler import OFFLINE, TASKS, Files, generate
from smollm3.eval.ruler.harness import (
    by_length,
    configs,
    depths,
    effective_length,
    is_ruler,
    need_known,
    score,
)
from smollm3.eval.ruler.sources import words


def count(prompt):
    """Tokens of a tokenizer that is quick and not linear in characters."""
    return len(re.findall(r"[A-Za-z]{1,4}|\d{1,3}|[^\w\s]|\n", prompt))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files in the forms of the real ones, with text enough for 131,072 tokens."""
    import random

    folder = tmp_path_factory.mktemp("ruler")
    rng = random.Random(0)
    (folder / "essays").mkdir()
    for i in range(3):
        sentences = [f"{text(rng, rng.randint(3, 12))}." for _ in range(60)]
        (folder / f"essays/{i}.txt").write_text("\n".join(sentences))
    articles = [
        {
            "title": f"t{a}",
            "paragraphs": [
                {
                    "context": f"{text(rng, rng.randint(20, 90))} {a}-{p}",
                    "qas": [
                        {"question": f"q{a}{p}", "answers": [{"text": f"{a}-{p}"}]},
                        {"question": "impossible", "answers": []},
                    ],
                }
                for p in range(12)
            ],
        }
        for a in range(400)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    hotpot = [
        {
            "question": f"q{i}",
            "answer": f"answer{i}",
            "context": [
                [f"title {i}-{j}", [text(rng, rng.randint(8, 40)), f" answer{i}"]]
                for j in range(10)
            ],
        }
        for i in range(1000)
    ]
    (folder / "hotpot.json").write_text(json.dumps(hotpot))
    return Files(folder / "essays", folder / "squad.json", folder / "hotpot.json")


CASES = [(name, length) for name in TASKS for length in (1536, 4096, 131_072)]


@pytest.mark.parametrize(("name", "length"), CASES)
def test_prompts_fill_their_length_and_an_oracle_is_right(files, name, length):
    task = TASKS[name]
    items = list(generate(task, length, 3, count, files))
    again = list(generate(task, length, 3, count, files))
    assert items == again
    assert len({item.prompt for item in items}) == 3
    for item in items:
        tokens = count(item.prompt + item.prefix) + task.tokens
        assert item.tokens == tokens
        assert 0.97 * length <= tokens <= length
        doc = vars(item)
        assert score(task.any_of, doc, [", ".join(item.outputs).upper()]) == {"score": 1.0}
        assert score(task.any_of, doc, [""]) == {"score": 0.0}
        if task.kind in ("niah", "vt", "cwe", "qa"):
            assert all(output in item.prompt for output in item.outputs)


def test_needles_are_as_many_as_the_task_says(files):
    for name, kinds in (
        ("niah_multikey_1", 4),
        ("niah_multivalue", 4),
        ("niah_multiquery", 4),
        ("niah_single_2", 1),
    ):
        (item,) = generate(TASKS[name], 2048, 1, count, files)
        assert item.prompt.count("One of the special magic numbers for") == kinds
        wanted = 4 if name in ("niah_multivalue", "niah_multiquery") else 1
        assert len(item.outputs) == wanted
        assert ("magic numbers are hidden" in item.prompt) == (wanted > 1)
    (item,) = generate(TASKS["niah_single_3"], 2048, 1, count, files)
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", item.outputs[0])
    assert "A special magic uuid is hidden" in item.prompt
    assert item.prefix.startswith(" The special magic uuid for ")


def test_words_of_counting_tasks_are_as_often_as_they_say(files):
    (item,) = generate(TASKS["cwe"], 4096, 1, count, files)
    listed = re.findall(r"\d+\. ([^\d]+?)(?= \d+\. |\n)", item.prompt.rsplit("Below is", 1)[1])
    counts = {word: listed.count(word) for word in set(listed)}
    assert {w for w, n in counts.items() if n == 30} == set(item.outputs)
    assert {n for w, n in counts.items() if w not in item.outputs} == {3}
    (item,) = generate(TASKS["fwe"], 4096, 1, count, files)
    counted = re.findall(
        r"\b[a-z]{6}\b", item.prompt.split("coded words. ")[1].split("\nQuestion")[0]
    )
    often = sorted(set(counted), key=counted.count, reverse=True)[:4]
    assert set(often[:3]) == set(item.outputs)
    assert counted.count(often[2]) > counted.count(often[3])


def test_the_chain_of_variables_leads_to_all_five(files):
    (item,) = generate(TASKS["vt"], 2048, 1, count, files)
    asked = item.prompt.rsplit("Memorize and track", 1)[1]
    value = re.search(r"assigned the value (\d+) in", asked)[1]
    known = {name for name, v in re.findall(r"VAR (\w+) = (\d+)", asked) if v == value}
    for name, other in re.findall(r"VAR (\w+) = VAR (\w+)", asked):
        if other in known:
            known.add(name)
    assert known == set(item.outputs)
    assert len(known) == 5


def test_a_part_of_the_references_is_a_part_of_the_score():
    doc = {"outputs": ["111", "Blue", "333", "444"]}
    assert score(False, doc, ["it is 111,\x01 blue"]) == {"score": 0.5}
    assert score(True, doc, ["it is 111"]) == {"score": 1.0}


def test_lengths_that_cannot_be(files):
    with pytest.raises(UserError, match="60 tokens are too few"):
        list(generate(TASKS["qa_1"], 60, 1, count, files))
    with pytest.raises(UserError, match="the files have text for .* tokens only"):
        list(generate(TASKS["qa_1"], 1_000_000, 1, count, files))
    with pytest.raises(UserError, match="context is 4096; .*--context 8192"):
        need_known([4096, 8192], 4096)
    need_known([4096], 4096)


def test_files_that_a_user_must_name(tmp_path):
    for name, option in (
        ("niah_single_2", "--essays"),
        ("qa_1", "--squad"),
        ("qa_2", "--hotpotqa"),
    ):
        with pytest.raises(UserError, match=option):
            list(generate(TASKS[name], 1024, 1, count, Files()))
    (tmp_path / "a.jsonl").write_text('{"question": 1}\n')
    for files in (Files(squad=tmp_path / "a.jsonl"), Files(hotpotqa=tmp_path / "a.jsonl")):
        name = "qa_1" if files.squad else "qa_2"
        with pytest.raises(UserError, match="not in the form of this data set"):
            list(generate(TASKS[name], 1024, 1, count, files))
    with pytest.raises(UserError, match="no folder with .txt files"):
        list(generate(TASKS["niah_single_2"], 1024, 1, count, Files(essays=tmp_path)))
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(UserError, match="hold no text"):
        list(generate(TASKS["niah_single_2"], 1024, 1, count, Files(essays=tmp_path)))


def test_rows_of_the_hub_are_read_too(tmp_path):
    row = {
        "question": "q",
        "answer": "a1",
        "context": {"title": ["t", "u"], "sentences": [["x ", "a1"], ["y"]]},
    }
    (tmp_path / "h.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="have text for"):
        list(generate(TASKS["qa_2"], 4096, 1, count, Files(hotpotqa=tmp_path / "h.jsonl")))
    row = {"title": "t", "context": "c a1", "question": "q", "answers": {"text": ["a1"]}}
    (tmp_path / "s.jsonl").write_text(json.dumps(row) + "\n\n")
    with pytest.raises(UserError, match="have text for"):
        list(generate(TASKS["qa_1"], 4096, 1, count, Files(squad=tmp_path / "s.jsonl")))


def test_there_are_words_for_any_number():
    import random

    few = words().different(random.Random(0), 20)
    many = words().different(random.Random(0), len(words().all) + 50)
    assert len(set(few)) == 20
    assert len(set(many)) == len(words().all) + 50


def test_tasks_for_the_harness():
    assert is_ruler("ruler_offline")
    assert is_ruler("ruler_vt")
    assert not is_ruler("vt")
    made = configs("ruler_offline", [4096, 8192], None, count, Files(), chat=True)
    assert len(made) == 2 * len(OFFLINE) == 12
    assert made[0]["gen_prefix"]
    assert "gen_prefix" not in configs("ruler_vt", [4096], 1, count, Files(), False)[0]


def test_scores_by_length_and_depth():
    results = {
        f"ruler_{t}_{n}": {"score,none": s}
        for t, n, s in (("vt", 4096, 1.0), ("cwe", 4096, 0.8), ("vt", 8192, 0.5))
    }
    found = by_length({**results, "ruler_vt_100": {}, "hellaswag": {"acc,none": 1}})
    assert found == {4096: {"vt": 1.0, "cwe": 0.8}, 8192: {"vt": 0.5}}
    assert effective_length({4096: 0.9, 8192: 0.86, 16384: 0.5, 32768: 0.9}) == 8192
    assert effective_length({4096: 0.5}) is None
    samples = [
        {"doc": {"length": 4096, "depth": d}, "score": s}
        for d, s in ((0.0, 1), (0.05, 0), (1.0, 1), (None, 0))
    ]
    assert depths(samples) == {(4096, 0): 0.5, (4096, 9): 1.0}
