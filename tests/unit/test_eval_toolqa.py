"""ToolQA with questions and tables of our own: what is asked, what a query may do, what is right."""

import json

import pytest
from tests.support.eval_data import Calling, Watching, fake_engine, write

from smollm3.errors import UserError
from smollm3.eval import toolqa
from smollm3.eval.harness import Wanted, run_tasks
from smollm3.eval.journal import Journal
from smollm3.eval.results import measures
from smollm3.eval.target import EngineTarget, Settings

CHAT = Settings(chat=True)
QUESTIONS = [
    {"qid": f"easy-lamp-{i:04}", "question": f"Which room has lamp {i}?", "answer": f"room {i}"}
    for i in range(10)
]
LAMPS = 'lamp,room,watts,its "light"\n' + "".join(
    f'{i},room {i},{10 * i},"warm, white"\n' for i in range(30)
)
DIARY = [{"day": i, "text": f"I saw lamp {i}.", "more": {"n": i}} for i in range(5)]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    write(folder / "toolqa/easy.jsonl.gz", QUESTIONS)
    write(folder / "toolqa/hard.jsonl", QUESTIONS[:2])
    write(folder / "toolqa/corpora/diary.jsonl", DIARY)
    (folder / "toolqa/corpora/lamps-2.csv").write_text(LAMPS)
    return folder


@pytest.fixture
def database(data, tmp_path):
    made = toolqa.Database(toolqa.tables(data), tmp_path / "t.sqlite")
    yield made
    made.close()


def evaluated(tokenizer, data, out, says, task="toolqa_easy", settings=CHAT, **wanted):
    target = Calling(fake_engine(tokenizer), "fake", settings, says)
    with Journal(out / "items.jsonl", {}) as journal:
        return run_tasks(target, Wanted([task], data=data, **wanted), settings, journal, Watching())


def looking(ask):
    """Asks for the room, and says it."""
    last = ask.prompt.messages[-1]
    if last["role"] == "tool":
        return f"It is \\boxed{{The {json.loads(last['content'])[0]}.}}"
    lamp = last["content"].split("?")[0].split()[-1]
    return [("sql", {"query": f'SELECT room FROM "lamps_2" WHERE lamp = {lamp}'})]


def test_a_model_that_looks_is_right(tokenizer, data, tmp_path):
    asked = []
    found = evaluated(tokenizer, data, tmp_path, lambda ask: asked.append(ask) or looking(ask))
    values = measures(found)["toolqa_easy"]
    assert (values["exact_match,none"].value, values["exact_match,none"].n) == (1.0, 10)
    assert len(asked) == 20
    (tool,) = asked[0].prompt.tools
    described = tool["function"]["description"]
    assert '"lamps_2" ("lamp", "room", "watts", "its ""light""")' in described
    assert '[0, "room 0", 0, "warm, white"]' in described
    assert '"diary" ("day", "text", "more")' in described
    target = EngineTarget(fake_engine(tokenizer), "fake", CHAT)
    seen = tokenizer.decode(target.request(asked[-1]).ids(tokenizer))
    assert "SELECT room FROM" in seen
    both = evaluated(tokenizer, data, tmp_path / "both", looking, "toolqa", limit=1)
    assert set(both["results"]) == {"toolqa_easy", "toolqa_hard"}
    assert both["n-samples"]["toolqa_easy"] == {"original": 10, "effective": 1}


def test_an_answer_without_a_look_and_one_that_never_comes(tokenizer, data, tmp_path):
    asked = []
    found = evaluated(tokenizer, data, tmp_path, lambda ask: "room 7", limit=8)
    assert measures(found)["toolqa_easy"]["exact_match,none"].value == 1 / 8
    assert measures(found)["toolqa_easy"]["f1,none"].value == pytest.approx((1 + 7 / 2) / 8)

    def never(ask):
        asked.append(ask)
        return [("sql", {"query": "SELECT 1"}), ("fly", {}), ("sql", {}), ("sql", "{")]

    found = evaluated(tokenizer, data, tmp_path / "never", never, limit=1)
    assert len(asked) == toolqa.STEPS + 1
    told = [m["content"] for m in asked[1].prompt.messages[-4:]]
    assert told[0] == "[1]"
    assert told[1:] == ["Error: there is no tool fly", *["Error: query must be a text"] * 2]
    assert found["samples"]["toolqa_easy"][0]["exact_match"] == 0.0


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("SELECT sum(watts) FROM lamps_2 WHERE watts > 250", "[1100]"),
        ("SELECT 7 * 6.5", "[45.5]"),
        ("SELECT day FROM diary WHERE text LIKE '%lamp 3%'", "[3]"),
        ("SELECT more FROM diary WHERE day = 1", '["{\\"n\\": 1}"]'),
        ("SELECT 1 WHERE 0", "No rows."),
        ("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n LIMIT 2",
         "[1]\n[2]"),
        ("SELECT x'00ff'", "[\"b'\\\\x00\\\\xff'\"]"),
        ("SELECT absent FROM lamps_2", "Error: no such column: absent"),
        ("SELECT 1; SELECT 2", "Error: You can only execute one statement at a time."),
        ("DELETE FROM lamps_2", "Error: not authorized"),
        ("ATTACH DATABASE '/etc/passwd' AS x", "Error: not authorized"),
        ("PRAGMA temp_store_directory = '/'", "Error: not authorized"),
        ("SELECT load_extension('x')", "Error: not authorized"),
        ("SELECT zeroblob(100000000)", "Error: string or blob too big"),
        ("", "No rows."),
        ("\0", "Error: "),
    ],
)  # fmt: skip
def test_what_a_query_may_do(database, query, told):
    answer = database.ask(query)
    assert answer == told or (told.startswith("Error: ") and answer.startswith(told))


def test_work_and_results_are_bounded(database, monkeypatch):
    monkeypatch.setattr(toolqa, "INSTRUCTIONS", 2_000_000)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    assert database.ask(endless) == "Error: interrupted"
    assert database.ask("SELECT lamp FROM lamps_2").count("\n") == toolqa.ROWS
    assert database.ask("SELECT lamp FROM lamps_2").endswith("[19]\n...")
    long = database.ask("SELECT hex(zeroblob(20000))")
    assert len(long) == toolqa.CHARACTERS
    wide = ", ".join(["zeroblob(200000)"] * 201)
    assert database.ask(f"SELECT {wide}").startswith("Error: too many columns")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "easy.jsonl.gz").unlink(), r"easy\.jsonl: no such file; its questions"),
        (lambda d: write(d / "easy.jsonl", [{"qid": 1}]), "not the questions of .*'question'"),
        (lambda d: [f.unlink() for f in (d / "corpora").iterdir()], "holds no .csv or .jsonl"),
        (lambda d: (d / "corpora/x.csv").write_text(""), "x.csv: has no line of columns"),
        (lambda d: (d / "corpora/x.csv").write_text("a,A\n"), "x.csv: cannot be a table"),
        (lambda d: (d / "corpora/x.csv").write_bytes(b"a\n\xff\n"), "x.csv: cannot be a table"),
    ],
)
def test_what_is_missing_or_no_table_is_one_line(tokenizer, data, tmp_path, change, said):
    change(data / "toolqa")
    with pytest.raises(UserError, match=said):
        evaluated(tokenizer, data, tmp_path, looking)


def test_it_is_of_chats_and_needs_data(tokenizer, data, tmp_path):
    with pytest.raises(UserError, match="toolqa_easy: is of chats"):
        evaluated(tokenizer, data, tmp_path, looking, settings=Settings())
    with pytest.raises(UserError, match=r"add --data FOLDER with toolqa/easy\.jsonl"):
        evaluated(tokenizer, None, tmp_path, looking)
