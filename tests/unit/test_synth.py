"""Synthesis against a local teacher: what is asked, what is kept, what a kill costs."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from tests.support.teacher import Teacher, serving

from smollm3.data import documents
from smollm3.data.languages import language
from smollm3.data.spec import FileSource
from smollm3.errors import UserError
from smollm3.synth import checks
from smollm3.synth import teacher as teacher_module
from smollm3.synth.run import synthesise
from smollm3.synth.spec import Synthesis


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(teacher_module, "LONGEST_WAIT", 0.01)


def sums(n):
    return [{"prompt": f"{a}+{a % 7}", "answer": str(a + a % 7)} for a in range(n)]


def synthesis(folder, url, rows, **more):
    folder.mkdir(exist_ok=True)
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    teacher = {"url": url, "model": "strong", "requests": 16, **more.pop("teacher", {})}
    return Synthesis.model_validate(
        {"name": "made", "prompts": [str(path)], "teacher": teacher} | more
    )


def made(spec, out):
    outcome = synthesise(spec, out, lambda line: None)
    rows = [json.loads(line) for line in (out / "made.jsonl").read_text().splitlines()]
    return rows, outcome


def test_answers_are_kept_as_smoltalk2_has_them(tmp_path):
    with serving() as (url, handler):
        spec = synthesis(
            tmp_path, url, sums(5), modes=["think", "no_think"],
            teacher={"input_price": 1.0, "output_price": 4.0},
        )  # fmt: skip
        rows, outcome = made(spec, tmp_path / "out")
    assert len(rows) == len(outcome.rows) == 10
    assert rows[0]["messages"][1]["reasoning_content"] == "I add."
    assert "reasoning_content" not in rows[1]["messages"][1]
    assert [row["chat_template_kwargs"]["enable_thinking"] for row in rows[:2]] == [True, False]
    source = FileSource(kind="jsonl", files=[str(tmp_path / "out" / "made.jsonl")], format="chat")
    assert len(list(documents(source, 0))) == 10
    assert set(handler.asked.values()) == {1}
    cost = outcome.ledger["teacher"]
    assert (cost["answers"], cost["input"], cost["output"]) == (10, 100, 50)
    assert cost["money"] == pytest.approx((100 * 1 + 50 * 4) / 1e6)
    record = json.loads((tmp_path / "out" / "synth.json").read_text())
    assert record["by_mode"] == {"think": 5, "no_think": 5}


def test_wrong_maths_and_failing_code_are_not_kept(tmp_path):
    tests = "assert double(4) == 8"
    rows = [*sums(10), {"prompt": "Write double", "tests": tests}, {"prompt": "free"}]
    with serving() as (url, _):
        weak = synthesis(
            tmp_path, url, rows, checks=["answer", "code"], teacher={"model": "weak"}
        )  # fmt: skip
        kept, outcome = made(weak, tmp_path / "weak")
        strong = synthesis(tmp_path, url, rows, checks=["answer", "code"])
        everything, _ = made(strong, tmp_path / "strong")
    odd = [row for row in rows[:10] if int(row["answer"]) % 2]
    assert [r["messages"][0]["content"] for r in kept] == [*(r["prompt"] for r in odd), "free"]
    assert outcome.dropped == {"wrong answer": 10 - len(odd), "failing code": 1}
    assert len(everything) == 12


def test_what_no_check_is_needed_for(tmp_path):
    rows = [{"prompt": p} for p in ("forbidden", "endless", "plain one", "fine", " ")]
    with serving() as (url, handler):
        spec = synthesis(tmp_path, url, [*rows, {"x": 1}], modes=["think"])
        kept, outcome = made(spec, tmp_path / "out")
    assert [r["messages"][0]["content"] for r in kept] == ["fine"]
    assert outcome.dropped == {"refused (HTTP 400)": 1, "cut off": 1, "without reasoning": 1}
    assert sum(handler.asked.values()) == 4


def test_a_faulty_teacher_costs_only_time(tmp_path):
    with serving() as (url, _):
        spec = synthesis(tmp_path, url, sums(60))
        calm, _ = made(spec, tmp_path / "calm")
    with serving(faults=0.4) as (url, handler):
        spec = synthesis(tmp_path, url, sums(60), teacher={"attempts": 50, "timeout": 0.4})
        shaky, outcome = made(spec, tmp_path / "shaky")
    assert shaky == calm
    assert outcome.unanswered == 0
    assert sum(handler.asked.values()) > 60


def test_no_more_requests_at_a_time_than_allowed(tmp_path, monkeypatch):
    now, most, lock = Counter(), Counter(), threading.Lock()
    solve = Teacher.solve

    def watched(self, prompt, model):
        with lock:
            now[model] += 1
            most[model] = max(most[model], now[model])
        try:
            time.sleep(0.01)
            return solve(self, prompt, model)
        finally:
            with lock:
                now[model] -= 1

    monkeypatch.setattr(Teacher, "solve", watched)
    with serving() as (url, _):
        weak = {"url": url, "model": "weak", "requests": 2}
        made(synthesis(tmp_path, url, sums(40), pairs={"weak": weak}), tmp_path / "out")
    assert most["weak"] <= 2
    assert most["strong"] <= 16


def test_a_changed_recipe_asks_only_what_is_new(tmp_path):
    with serving() as (url, handler):
        made(synthesis(tmp_path, url, sums(6)), tmp_path / "out")
        rows = [{"prompt": "new"}, *reversed(sums(6)), {"prompt": "new", "answer": 3}]
        kept, outcome = made(synthesis(tmp_path, url, rows, checks=["answer"]), tmp_path / "out")
        assert sum(handler.asked.values()) == 7
        assert [r["messages"][0]["content"] for r in kept] == [r["prompt"] for r in rows[:-1]]
        again = {"model": "weak", "temperature": 0.0}
        made(synthesis(tmp_path, url, rows, teacher=again), tmp_path / "out")
        made(synthesis(tmp_path, url, rows, teacher=again, seed=1), tmp_path / "out")
    assert sum(handler.asked.values()) == 7 + 7 + 7
    assert outcome.dropped == {}


def test_of_a_conversation_all_up_to_the_last_question_is_asked(tmp_path):
    talk = [
        ("system", "s"),
        ("user", "1+1"),
        ("assistant", "2"),
        ("user", "2+2"),
        ("assistant", "5"),
    ]
    messages = [{"role": role, "content": content} for role, content in talk]
    with serving() as (url, _):
        kept, _ = made(synthesis(tmp_path, url, [{"messages": messages}]), tmp_path / "out")
    assert kept[0]["messages"][:-1] == messages[:-1]
    assert "\\boxed{4}" in kept[0]["messages"][-1]["content"]


def test_a_dead_teacher_is_one_line_and_nothing_is_lost(tmp_path):
    with serving() as (url, _):
        spec = synthesis(tmp_path, url, sums(3))
        made(spec, tmp_path / "out")
    more = synthesis(tmp_path, url, sums(6), teacher={"attempts": 2})
    with pytest.raises(UserError, match=r"teacher.url: http.*no answer after 2 attempts"):
        synthesise(more, tmp_path / "out", print)
    assert len((tmp_path / "out" / "answers.jsonl").read_text().splitlines()) == 3


def test_a_cut_off_line_is_asked_again_and_a_damaged_one_named(tmp_path):
    with serving() as (url, handler):
        spec = synthesis(tmp_path, url, sums(5))
        first, _ = made(spec, tmp_path / "out")
        path = tmp_path / "out" / "answers.jsonl"
        path.write_bytes(path.read_bytes()[:-20])
        again, _ = made(spec, tmp_path / "out")
        assert again == first
        assert sum(handler.asked.values()) == 6
        path.write_bytes(b"{}\n" + path.read_bytes())
        with pytest.raises(UserError, match=r"answers.jsonl:1: not an answer"):
            made(spec, tmp_path / "out")


def test_targets_fill_only_the_gap(tmp_path):
    rows = [r | {"domain": "maths", "language": "fr"} for r in sums(40)]
    rows += [{"prompt": f"Say {i}", "domain": "everyday", "language": "en"} for i in range(40)]
    targets = [
        {"rows": 7, "domain": "maths", "mode": "think"},
        {"rows": 5, "domain": "everyday", "language": "en", "mode": "no_think"},
        {"rows": 3, "domain": "nothing"},
    ]
    with serving() as (url, handler):
        spec = synthesis(
            tmp_path, url, rows, targets=targets, modes=["think", "no_think"], checks=["answer"],
            teacher={"model": "weak"},
        )  # fmt: skip
        kept, _ = made(spec, tmp_path / "out")
        asked = sum(handler.asked.values())
        made(spec, tmp_path / "out")
        assert sum(handler.asked.values()) == asked
    thinking = [r for r in kept if r["chat_template_kwargs"]["enable_thinking"]]
    assert len(thinking) == 7
    assert len(kept) == 12
    assert 12 < asked < 40  # the weak one's wrong answers had to be made up for


def test_samples_that_agree(tmp_path):
    with serving() as (url, _):
        spec = synthesis(
            tmp_path, url, [{"prompt": "3+4"}, {"prompt": "no number"}], samples=3,
            checks=["agreement"],
        )  # fmt: skip
        kept, outcome = made(spec, tmp_path / "out")
    assert len(kept) == 3
    assert outcome.dropped == {"samples disagree": 3}
    assert checks.agreed(["1", "1.0", "2"], 0.6) == 1
    assert checks.agreed(["1", "3", "2"], 0.6) is None
    assert checks.agreed([None, None], 0.5) is None


def test_near_duplicates_are_kept_once(tmp_path):
    words = [f"w{i}" for i in range(200)]
    texts = [" ".join(words), " ".join([*words[:199], "x"]), " ".join(reversed(words))]
    with serving() as (url, _):
        spec = synthesis(tmp_path, url, [{"prompt": t} for t in texts], checks=["duplicates"])
        kept, outcome = made(spec, tmp_path / "out")
    assert [r["messages"][0]["content"] for r in kept] == [texts[0], texts[2]]
    assert outcome.dropped == {"near duplicate": 1}


def test_preference_pairs(tmp_path):
    rows = [*sums(10), {"prompt": "the same"}]
    with serving() as (url, handler):
        spec = synthesis(
            tmp_path, url, rows, checks=["answer"], modes=["think"],
            pairs={"weak": {"url": url, "model": "weak"}},
        )  # fmt: skip
        kept, outcome = made(spec, tmp_path / "out")
    even = [r for r in rows[:10] if int(r["answer"]) % 2 == 0]
    assert [r["prompt"] for r in kept] == [r["prompt"] for r in even]
    assert outcome.dropped == {"both right": 10 - len(even), "identical answers": 1}
    assert set(handler.asked.values()) == {1}
    path = tmp_path / "out" / "made.jsonl"
    pairs = list(documents(FileSource(kind="jsonl", files=[str(path)], format="preference"), 0))
    assert len(pairs) == len(even)
    assert pairs[0].messages == [{"role": "user", "content": even[0]["prompt"]}]
    assert pairs[0].options == {"enable_thinking": True}
    assert outcome.ledger["weak"]["answers"] == 11


def test_pairs_of_very_different_lengths_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(
        Teacher, "solve", lambda self, p, model: "x" * (10 if model == "weak" else 100)
    )
    with serving() as (url, _):
        spec = synthesis(
            tmp_path, url, [{"prompt": "p"}], pairs={"weak": {"url": url, "model": "weak"}}
        )
        assert made(spec, tmp_path / "out")[1].dropped == {"lengths too different": 1}


# Checks


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("so \\boxed{12}", "12"),
        ("first \\boxed{1}, then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("The answer is 1,234.", "1,234"),
        ("The answer is: $7.5$.", "7.5"),
        ("3 apples and 4 make 7", "7"),
        ("nothing", None),
        ("\\boxed{open", None),
    ],
)
def test_final_answers(content, answer):
    assert checks.final_answer(content) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,234", "1234", True),
        ("\\frac{1}{2}", "0.5", True),
        ("50\\%", "0.5", True),
        ("\\text{east}", "East", True),
        ("x + 1", "x+1", True),
        ("2", "3", False),
        ("1/0", "1/0", True),
        ("$3$", "3.0", True),
    ],
)
def test_equal_values(one, other, same):
    assert (checks.value(one) == checks.value(other)) == same


@pytest.mark.parametrize(
    ("constraint", "good", "bad"),
    [
        ({"kind": "min_words", "value": 3}, "one two three", "one two"),
        ({"kind": "max_words", "value": 2}, "one two", "one two three"),
        ({"kind": "contains", "value": "Cat"}, "a cat", "a dog"),
        ({"kind": "lacks", "value": "cat"}, "a dog", "a Cat"),
        ({"kind": "starts_with", "value": "So"}, "So it is", "It is so"),
        ({"kind": "ends_with", "value": "so."}, "It is so.", "So it is."),
        ({"kind": "lowercase"}, "low", "Low"),
        ({"kind": "uppercase"}, "UP", "Up"),
        ({"kind": "bullets", "value": 2}, "- a\n- b", "- a"),
        ({"kind": "json"}, '{"a": 1}', "{"),
    ],
)
def test_constraints(constraint, good, bad):
    row = {"constraints": [constraint]}
    assert checks.broken_instructions(row, good) is None
    assert checks.broken_instructions(row, bad) == f"breaks {constraint['kind']}"
    assert (
        checks.broken_instructions({"constraints": [{"kind": "?"}]}, good)
        == "unknown constraint '?'"
    )


TEXTS = {
    "en": "The house that was built on the hill is not for sale, and it was not cheap.",
    "fr": "La maison est sur la colline et elle n'est pas à vendre, il ne faut pas la voir.",
    "de": "Das Haus auf dem Hügel ist nicht zu haben, und es wird auch nicht mit dem Garten verkauft.",
    "es": "La casa que está en el monte no se vende y los precios son muy altos para una familia.",
    "it": "La casa non è in vendita, ma il giardino del vicino sono anche più belli nel sole.",
    "pt": "A casa não está à venda e os preços são muito altos para uma família, mas o jardim é bom.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_languages(name):
    assert language(TEXTS[name]) == name
    other = "fr" if name == "en" else "en"
    assert checks.other_language({"language": name}, TEXTS[name]) is None
    assert (
        checks.other_language({"language": other}, TEXTS[name]) == f"in {name} instead of {other}"
    )
    assert checks.other_language({"language": "ja"}, TEXTS[name]) is None
    assert language("12 34") is None


def test_code_needs_a_block():
    assert checks.failing_code({"tests": "pass"}, "no code here") == "no code"
    assert checks.failing_code({}, "no code here") is None


def test_agreement_needs_samples():
    with pytest.raises(ValueError, match="samples: 2 or more"):
        Synthesis(name="a", teacher={"url": "u", "model": "m"}, prompts=["p"], checks=["agreement"])


# The command


def command(recipe, out, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "smollm3", "synth", str(recipe), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def recipe_file(folder, url, rows):
    spec = synthesis(folder, url, rows, checks=["answer"])
    path = folder / "synth.yaml"
    path.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    return path


def test_the_command_tells_what_it_kept(tmp_path):
    with serving() as (url, _):
        recipe = recipe_file(tmp_path, url, sums(8))
        out, err = (process := command(recipe, tmp_path / "out")).communicate()
    assert process.returncode == 0, err
    assert "8 kept" in out
    assert "teacher: 8 answers, 80 + 40 tokens" in out


def kill_when(process, path, lines):
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.01)
    process.communicate()


@pytest.mark.slow
def test_two_thousand_prompts_of_two_policies_killed_three_times(tmp_path):
    """429, 500, garbage and silence cost only time, a kill what was under way, and what is wrong is
    not among the chosen answers."""
    code = [
        {"prompt": f"Write double, number {i}", "tests": "assert double(4) == 8"} for i in range(40)
    ]
    rows = [*sums(1960), *code]
    random.Random(0).shuffle(rows)
    with serving(delay=0.02, faults=0.05) as (url, handler):
        spec = synthesis(
            tmp_path, url, rows, checks=["answer", "code"],
            teacher={"attempts": 30, "timeout": 5.0},
            pairs={"weak": {"url": url, "model": "weak", "attempts": 30, "timeout": 5.0}},
        )  # fmt: skip
        recipe = tmp_path / "synth.yaml"
        recipe.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
        answers = Path(tmp_path / "out" / "answers.jsonl")
        known = set()
        for lines in (600, 1800, 3000):
            kill_when(command(recipe, tmp_path / "out"), answers, lines)
            data = answers.read_bytes()
            assert lines <= data.count(b"\n") < 4000
            keys = [json.loads(line)["key"] for line in data[: data.rfind(b"\n")].split(b"\n")]
            assert len(set(keys)) == len(keys)
            assert known <= set(keys)
            known = set(keys)
        _, err = (process := command(recipe, tmp_path / "out")).communicate()
        assert process.returncode == 0, err
        # Asked again is at most what was under way at a kill, or came after its time was over.
        twice = sum(n - 1 for n in handler.answered.values())
        command(recipe, tmp_path / "plain").communicate()
    assert len(answers.read_bytes().splitlines()) == 4000
    assert twice <= 3 * (16 + 64)
    whole = (tmp_path / "out" / "made.jsonl").read_bytes()
    assert whole == (tmp_path / "plain" / "made.jsonl").read_bytes()
    pairs = {row["prompt"]: row for row in map(json.loads, whole.splitlines())}
    by_prompt = {row["prompt"]: row for row in rows}
    assert set(pairs) == {
        row["prompt"] for row in rows if "tests" in row or int(row["answer"]) % 2 == 0
    }
    for prompt, pair in pairs.items():
        chosen, rejected = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
        row = by_prompt[prompt]
        assert checks.wrong_answer(row, chosen) is None
        assert ("return 3" in rejected) if "tests" in row else checks.wrong_answer(row, rejected)
        assert "tests" not in row or "return 2" in chosen
