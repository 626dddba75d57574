"""A teacher's answers as a stage of a recipe, and as the source of a later one."""

import json

import pytest
from tests.support.teacher import serving

from smollm3 import plan
from smollm3.data.preparation import Here
from smollm3.errors import UserError
from smollm3.recipe.data import prepare_sources
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run
from smollm3.synth import teacher as teacher_module

RECIPE = """
name: t
sources:
  questions: {{kind: jsonl, files: ['{folder}/questions.jsonl'], format: chat, columns: {{prompt: frage}}}}
  made: {{kind: synth, from: ask, format: {format}, holdout: 0.2}}
stages:
  ask:
    kind: synth
    teacher: {{url: '{url}', model: strong, attempts: 3, input_price: 1}}
    prompts: [questions]
    checks: [answer]
    {pairs}
  train:
    kind: train
    from: {folder}/base
    mixture: {{made: 1}}
    loss: {loss}
    packing: bfd
    context: 256
    batch: 2
    steps: 2
    lr: {{peak: 1e-3}}
"""


@pytest.fixture
def place(tmp_path, tokenizer, monkeypatch):
    from tests.support.noise import save_noise

    monkeypatch.setattr(teacher_module, "LONGEST_WAIT", 0.01)
    save_noise(tmp_path / "base", tokenizer)
    write(tmp_path, [{"frage": f"{a}+{a % 7}", "answer": a + a % 7} for a in range(20)])
    return tmp_path


def write(place, rows):
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def text(place, url, **more):
    fields = {"pairs": "", "format": "chat", "loss": "assistant"} | more
    return RECIPE.format(folder=place, url=url, **fields)


def run(place, recipe, *overrides, **options):
    """(stages done before, stages made, what was warned of) of a run in <place>/run."""
    before, made, warned = [], [], []
    nothing = lambda *_: None  # noqa: E731
    events = Events(
        before.append, nothing, nothing, lambda name, _: made.append(name), warned.append
    )
    Run(load_recipe_text(recipe, "t.yaml", overrides), place / "run", events).execute(**options)
    return before, made, warned


def stage(place, name):
    return json.loads((place / "run" / name / "stage.json").read_text())


def test_what_a_stage_keeps_is_trained_on(place):
    with serving() as (url, handler):
        write(place, [{"frage": "1+1", "answer": 3}, {"x": 1}, *rows(19)])
        _, made, warned = run(place, text(place, url))
        assert made == ["ask", "train"]
        assert warned[0] == "1 prompts skipped: without a prompt"
        record = stage(place, "ask")
        assert record["metrics"]["kept"] == 19
        assert record["metrics"]["dropped"] == {"wrong answer": 1}
        assert record["metrics"]["cost"]["teacher"]["money"] == pytest.approx(200 / 1e6)
        assert stage(place, "train")["inputs"]["parents"]["ask"] == record["digest"]
        report = (place / "run" / "report.html").read_text()
        assert "Answers of teachers" in report
        assert "1 wrong answer" in report
        assert run(place, text(place, url))[0] == ["ask", "train"]
    # Another place of the same teacher makes no other answers.
    assert run(place, text(place, "http://elsewhere/v1"))[0] == ["ask", "train"]
    assert set(handler.asked.values()) == {1}


def rows(n):
    return [{"frage": f"{a}+{a % 7}", "answer": a + a % 7} for a in range(2, 2 + n)]


def test_made_again_it_asks_only_what_is_new_and_its_children_follow(place):
    with serving() as (url, handler):
        run(place, text(place, url))
        before = stage(place, "train")["digest"]
        write(place, [*rows(25)])
        with pytest.raises(UserError, match=r"the data of questions have changed.*--redo ask"):
            run(place, text(place, url))
        assert run(place, text(place, url), redo=["ask"])[1] == ["ask", "train"]
        assert set(handler.asked.values()) == {1}
        assert len(handler.asked) == 27
    assert stage(place, "train")["digest"] != before


def test_a_teacher_that_goes_away_loses_nothing(place):
    with serving() as (url, first):
        write(place, rows(8))
        run(place, text(place, url), only="ask")
        write(place, rows(12))
    with pytest.raises(UserError, match=r"stages.ask: teacher.url: .*what was answered is kept"):
        run(place, text(place, url), redo=["ask"])
    with serving() as (url, second):
        run(place, text(place, url))
    assert len(first.asked) == 8
    assert len(second.asked) == 4


def test_pairs_are_a_source_of_preference(place):
    with serving() as (url, _):
        recipe = text(
            place, url, format="preference", loss="apo_zero",
            pairs=f"pairs: {{weak: {{url: '{url}', model: weak}}}}",
        )  # fmt: skip
        run(place, recipe)
    assert 0 < stage(place, "ask")["metrics"]["kept"] < 20
    assert stage(place, "train")["tokens"] == {"made": 4}


def test_a_generator_asks_what_its_answers_are_known_of(place):
    with serving() as (url, handler):
        procedural = "sources.questions={kind: procedural, generator: chat, format: chat, documents: 20, options: {tasks: [sum]}}"
        with pytest.raises(UserError, match=r"no answer was kept \(20 wrong answer\)"):
            run(place, text(place, url), procedural, only="ask")
    assert all(prompt.startswith("Total of") for prompt, *_ in handler.asked)


def test_data_prepare_needs_the_rows_first(place):
    with serving() as (url, _):
        recipe = load_recipe_text(text(place, url), "t.yaml")
        with pytest.raises(UserError, match=r"sources.made: stage 'ask' is not done; run it first"):
            list(prepare_sources(recipe, place / "run", [], Here()))
        run(place, text(place, url), only="ask")
        ((name, shard),) = prepare_sources(recipe, place / "run", [], Here())
    assert name == "made"
    assert shard.documents + shard.meta["heldout"]["documents"] == 20


def test_a_damaged_stage_is_not_trained_on(place):
    with serving() as (url, _):
        run(place, text(place, url), only="ask")
        rows = place / "run" / "ask" / "rows.jsonl"
        rows.write_text(rows.read_text().replace("0", "1"))
        with pytest.raises(UserError, match=r"ask: damaged, .*--redo ask makes it again"):
            run(place, text(place, url))


def test_the_plan_says_what_is_asked(place):
    recipe = load_recipe_text(text(place, "http://x/v1"), "t.yaml", ["stages.ask.samples=3"])
    cost = plan.stage_costs(recipe)[0]
    assert cost.note == "3 to each of questions by strong at http://x/v1"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.ask.prompts=[question]", r"prompts.*unknown source.*questions"),
        ("sources.made.from=train", "'train' is no synth stage"),
        ("sources.made.format=preference", "'ask' makes conversations: format: chat"),
        ("stages.ask.prompts=[made]", "'ask' comes after a stage that reads its rows"),
    ],
)
def test_mistakes(place, override, message):
    with pytest.raises(UserError, match=message):
        load_recipe_text(text(place, "http://x/v1"), "t.yaml", [override])
