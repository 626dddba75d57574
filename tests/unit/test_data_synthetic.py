import re

import pytest

from smollm3.data import procedural, synthetic
from smollm3.data.words import LANGUAGES
from smollm3.errors import UserError


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_items_are_reproducible_distinct_and_on_their_side(task):
    held = synthetic.items(task, 40, seed=1, held_out=True)
    trained = synthetic.items(task, 40, seed=1, held_out=False)
    assert held == synthetic.items(task, 40, seed=1, held_out=True)
    assert held[:10] == synthetic.items(task, 10, seed=1, held_out=True)
    assert len({item.question for item in held}) == len(held) == 40
    assert all(synthetic.is_held_out(item.question) for item in held)
    assert not any(synthetic.is_held_out(item.question) for item in trained)
    assert held != synthetic.items(task, 40, seed=2, held_out=True)


def compute(item, task):
    """The answer of an arithmetic item from its question alone."""
    start = re.search(r"Start:(\d+)", item.question)
    value = int(start[1]) if start else 0
    for sign, digits in re.findall(r" [A-Z]\w+([:+*-])(\d+)", item.question):
        n = int(digits)
        value = {":": value + n, "+": value + n, "-": value - n, "*": value * n}[sign]
    return str(value if task == "sum" else value % 10)


@pytest.mark.parametrize("task", ["sum", "mod", "ops"])
def test_arithmetic_is_right_and_reasoning_ends_in_the_answer(task):
    for item in synthetic.items(task, 200, seed=0, held_out=False):
        assert item.answer == compute(item, task)
        assert item.reasoning.endswith(f"={item.answer}.")
        assert " 0" not in item.question  # a digit after a blank would be two tokens
        assert not re.search(r" \d", item.question + item.reasoning)


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_wrong_items_are_wrong(task):
    for index in range(200):
        rng = synthetic.Random(f"{index}")
        right, wrong = synthetic.TASKS[task](rng)
        assert right.question == wrong.question
        assert (right.answer, right.tool_call) != (wrong.answer, wrong.tool_call)


def test_a_slip_is_carried_on():
    right, wrong = synthetic.TASKS["sum"](synthetic.Random("a"))
    one, other = (re.findall(r"=(\d+)", i.reasoning) for i in (right, wrong))
    differences = [int(b) - int(a) for a, b in zip(one, other, strict=True)]
    first = next(i for i, d in enumerate(differences) if d)
    assert set(differences[first:]) == {differences[first]}
    assert wrong.reasoning.endswith(f"={wrong.answer}.")


def test_language_items_cover_six_languages():
    items = synthetic.items("language", 120, seed=0, held_out=True)
    openings = {words.question.split("{")[0] for words in LANGUAGES.values()}
    assert openings == {next(o for o in openings if i.question.startswith(o)) for i in items}
    for words in LANGUAGES.values():
        assert len(set(words.numbers)) == 31


def test_tool_items_call_an_offered_tool_with_its_arguments():
    for item in synthetic.items("tool", 60, seed=0, held_out=False):
        offered = {tool["name"]: tool["parameters"] for tool in item.tools}
        assert item.tool_call is not None
        assert list(item.tool_call["arguments"]) == list(offered[item.tool_call["name"]])
        assert all(str(v) in item.question for v in item.tool_call["arguments"].values())


@pytest.mark.parametrize(
    ("generator", "form"),
    [(g, f) for g, (f, _) in procedural.GENERATORS.items()],
)
def test_rows_do_not_depend_on_how_many_are_made(generator, form):
    few = list(procedural.rows(generator, form, 5, 3, {}))
    many = list(procedural.rows(generator, form, 9, 3, {}))
    assert few == many[:5]
    assert few != list(procedural.rows(generator, form, 5, 4, {}))


@pytest.mark.parametrize("language", LANGUAGES)
def test_training_text_never_shows_a_held_out_question(language):
    rows = procedural.rows("web", "text", 400, 0, {"language": language})
    text = "".join(row["text"] for row in rows)
    words = LANGUAGES[language]
    shown = 0
    for a in range(11):
        for b in range(11):
            question = synthetic.language_question(language, a, b)
            one, other, total = (words.numbers[n] for n in (a, b, a + b))
            fact = words.fact.format(a=one, b=other, c=total)
            if synthetic.is_held_out(question):
                assert question not in text
                assert fact not in text
            else:
                shown += question in text
    assert shown


def test_chat_rows_follow_options():
    def rows(**options):
        return list(procedural.rows("chat", "chat", 60, 0, options))

    assert all("reasoning_content" in row["messages"][1] for row in rows(think=1))
    assert not any("reasoning_content" in row["messages"][1] for row in rows(think=0))
    mixed = rows(think=0.5)
    assert {row["chat_template_kwargs"]["enable_thinking"] for row in mixed} == {True, False}
    for row in rows(tasks={"sum": 1, "smalltalk": 0.0001}, name="Nano"):
        assert row["messages"][0]["content"].startswith("Total of")
    said = {row["messages"][1]["content"] for row in rows(tasks=["smalltalk"], name="Nano")}
    assert "I am Nano, a small language model." in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wep", "text", 1, 0, {}), "no generator 'wep'"),
        (("chat", "text", 1, 0, {}), "set format: chat"),
        (("web", "text", 1, 0, {"langage": "fr"}), "no option 'langage'"),
        (("web", "text", 1, 0, {"language": "nl"}), "no 'nl'"),
        (("chat", "chat", 1, 0, {"tasks": ["sums"]}), "no task 'sums'"),
        (("pairs", "preference", 1, 0, {"tasks": ["smalltalk"]}), "no task 'smalltalk'"),
    ],
)
def test_wrong_options_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        list(procedural.rows(*arguments))


def test_unknown_task():
    with pytest.raises(UserError, match="unknown task"):
        synthetic.items("sums", 1, 0, held_out=True)
