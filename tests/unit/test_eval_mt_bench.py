"""MT-Bench with files that we make: who is asked what, and what a rating counts."""

import pytest
from tests.support.eval_data import Saying, Watching, fake_engine, write
from tests.support.serving import listening, speaking

from smollm3.errors import UserError
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.mt_bench import rating
from smollm3.eval.remote import UrlTarget
from smollm3.eval.results import measures
from smollm3.eval.target import Settings

CHAT = Settings(chat=True)
SINGLE, SECOND = "{question}|{answer}", "{question_1}|{answer_1}|{question_2}|{answer_2}"
QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["w1", "w2"]},
    {"question_id": 101, "category": "math", "turns": ["m1", "m2"]},
]
FILES = {
    "question.jsonl": QUESTIONS,
    "reference_answer_gpt-4.jsonl": [{"question_id": 101, "choices": [{"turns": ["r1", "r2"]}]}],
    "judge_prompts.jsonl": [
        {"name": name, "system_prompt": "Be fair.", "prompt_template": template}
        for name, template in (
            ("single-v1", SINGLE),
            ("single-v1-multi-turn", SECOND),
            ("single-math-v1", SINGLE + "|{ref_answer_1}"),
            ("single-math-v1-multi-turn", SECOND + "|{ref_answer_1}|{ref_answer_2}"),
        )
    ],
}


@pytest.fixture
def data(tmp_path):
    for name, rows in FILES.items():
        write(tmp_path / "data/mt_bench" / name, rows)
    return tmp_path / "data"


def evaluated(tokenizer, data, out, judged, asked, **wanted):
    """asked: gets what each is asked. judged: the judge's verdict on a text."""

    def model(ask):
        asked.append(ask)
        return f"a{len(ask.prompt.messages)}"

    def judge(ask):
        asked.append(ask)
        return judged(ask.prompt.messages[-1]["content"])

    engine = fake_engine(tokenizer)
    target, rates = Saying(engine, "fake", CHAT, model), Saying(engine, "judge", CHAT, judge)
    wanted = Wanted(["mt_bench"], data=data, judge=rates, **wanted)
    with Journal(out / "items.jsonl", {}) as journal:
        return run_tasks(target, wanted, CHAT, journal, Watching())


def test_both_turns_are_asked_and_each_is_judged(tokenizer, data, tmp_path):
    asked = []
    found = evaluated(tokenizer, data, tmp_path, lambda _: "Good. Rating: [[10]]", asked)
    said = [[m["content"] for m in ask.prompt.messages] for ask in asked]
    assert said[:4] == [["w1"], ["m1"], ["w1", "a1", "w2"], ["m1", "a1", "m2"]]
    assert [ask.temperature for ask in asked] == [0.7, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert said[4:] == [
        ["Be fair.", "w1|a1"],
        ["Be fair.", "w1|a1|w2|a3"],
        ["Be fair.", "m1|a1|r1"],
        ["Be fair.", "m1|a1|m2|a3|r1|r2"],
    ]
    numbers = measures(found)["mt_bench"]
    assert {name: m.value for name, m in numbers.items()} == {
        "rating,none": 1.0,
        "rating_turn_1,none": 1.0,
        "rating_turn_2,none": 1.0,
        "unrated,none": 0.0,
    }
    assert found["n-samples"]["mt_bench"] == {"original": 4, "effective": 4}


def test_a_turn_without_a_rating_counts_nowhere(tokenizer, data, tmp_path):
    def judged(text):
        return "no number" if text.startswith("w1|a1|w2") else "[[2]]" if "w1" in text else "[4]"

    asked = []
    found = evaluated(tokenizer, data, tmp_path, judged, asked)
    numbers = measures(found)["mt_bench"]
    assert numbers["rating,none"].value == pytest.approx((0.2 + 0.4 + 0.4) / 3)
    assert numbers["rating_turn_1,none"].value == pytest.approx(0.3)
    assert numbers["rating_turn_2,none"].n == 1
    assert numbers["unrated,none"].value == 0.25
    again = []
    evaluated(tokenizer, data, tmp_path, judged, again, limit=1)
    assert again == []  # answers and judgements are kept


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [("[[7.5]] not [[3]]", 7.5), ("[6]", 6.0), ("[[x]] [2]", 2.0), ("7", None), ("", None)],
)
def test_ratings(verdict, expected):
    assert rating(verdict) == expected


def test_what_is_missing_is_one_line(tokenizer, data, tmp_path):
    target = Saying(fake_engine(tokenizer), "fake", CHAT, lambda _: "")

    def run(settings=CHAT, **wanted):
        with Journal(tmp_path / "items.jsonl", {}) as journal:
            run_tasks(target, Wanted(["mt_bench"], **wanted), settings, journal, Watching())

    with pytest.raises(UserError, match="is of chats; add --chat"):
        run(Settings(), data=data, judge=target)
    with pytest.raises(UserError, match="add --judge URL"):
        run(data=data)
    with pytest.raises(UserError, match=r"add --data FOLDER with mt_bench/question\.jsonl"):
        run(judge=target)
    write(data / "mt_bench/judge_prompts.jsonl", FILES["judge_prompts.jsonl"][:1])
    with pytest.raises(UserError, match="no usable prompt single-v1-multi-turn"):
        run(data=data, judge=target)
    write(data / "mt_bench/reference_answer_gpt-4.jsonl", [])
    with pytest.raises(UserError, match="101 is missing"):
        run(data=data, judge=target)
    (data / "mt_bench/judge_prompts.jsonl").unlink()
    with pytest.raises(UserError, match=r"judge_prompts\.jsonl: no such file; .*FastChat"):
        run(data=data, judge=target)


def test_a_judge_on_our_own_server(tokenizer, data, tmp_path, monkeypatch):
    """Over HTTP: the judge's key, its system prompt, what it says, and that it is asked once."""
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    script = {"w1|a1": "Fine. Rating: [[7]]", "a3": "I think that is [3]", "r1": "Not good."}
    script |= {"w1|a1|w2|a3": "[[9]] or [[8]]", "r2": "Rating: [[4.5]]"}
    with (
        speaking(tokenizer, script, context=4096) as engine,
        listening(engine, keys=["a key"]) as (url, _),
    ):
        judge = UrlTarget(f"{url}/v1", CHAT, says_mode=False)
        target = Saying(engine, "fake", CHAT, lambda ask: f"a{len(ask.prompt.messages)}")
        wanted = Wanted(["mt_bench"], data=data, judge=judge)
        runs = []
        for _ in range(2):
            with Journal(tmp_path / "items.jsonl", {}) as journal:
                runs.append((run_tasks(target, wanted, CHAT, journal, Watching()), len(journal)))
    found = runs[0][0]
    ratings = [s.get("rating") for s in found["samples"]["mt_bench"]]
    assert ratings == [0.7, 0.9, None, 0.45]
    assert runs[0][1] == runs[1][1] == 8
