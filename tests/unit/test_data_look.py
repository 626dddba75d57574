"""`smollm3 data look`: what is in a file before anything is trained on it."""

import json

import pytest
from click.testing import CliRunner
from rich.console import Console

from smollm3.checkpoint.config import to_json
from smollm3.cli import cli
from smollm3.cli import look as view
from smollm3.data.look import Summary, bytes_tokenizer, look
from smollm3.data.spec import FileSource
from smollm3.errors import UserError
from smollm3.files import write_json

Q, A = {"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "It is this."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
TOOL = {"type": "function", "function": {"name": "g"}}


def run(*arguments):
    result = CliRunner().invoke(cli, ["data", "look", *map(str, arguments)])
    return result.exit_code, result.output


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="a.jsonl"):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / name).write_text("\n".join(lines))
        return tmp_path / name

    return write


def test_one_object_a_row(write):
    path = write(
        {"messages": [Q, A]}, "broken", {"messages": [Q]}, {"messages": [Q, A], "tools": 1}
    )
    code, output = run(path, "--json")
    used, *left_out = map(json.loads, output.splitlines())
    assert code == 0
    assert (used["line"], used["row"], used["file"]) == (1, 1, "a.jsonl")
    assert used["trained"] == ["It is this.<|im_end|>"]
    assert "What is it?<|im_end|>" in used["text"]
    assert used["text"].count("<|im_start|>") == 3
    assert used["tokens"] > 20
    assert (used["thinking"], used["odd"]) == ("no_think (guessed)", [])
    assert [(row["line"], row["left_out"]) for row in left_out] == [
        (2, "damaged JSON"),
        (3, "without an answer"),
        (4, "tools that are no objects"),
    ]


def test_both_sides_of_a_pair_and_texts(write):
    pairs = write({"prompt": "Q", "chosen": "A", "rejected": "B", "extra": 1})
    [row] = map(json.loads, run(pairs, "--json")[1].splitlines())
    assert row["trained"] == [["A<|im_end|>"], ["B<|im_end|>"]]
    shown = run(pairs)[1]
    assert "preference pairs (chosen and rejected) in 1 of the first 1 rows" in shown
    assert "a.jsonl:1 chosen" in shown
    assert "⟦B<|im_end|>⟧" in shown
    assert "not read   extra" in shown
    texts = write("Some plain text.", name="a.txt")
    [row] = map(json.loads, run(texts, "--json")[1].splitlines())
    assert (row["text"], row["trained"]) == ("Some plain text.", ["Some plain text."])
    assert "thinking" not in row
    marks = write("[INST] Q [/INST]", name="b.txt")
    [row] = map(json.loads, run(marks, "--json", "--format", "text")[1].splitlines())
    assert row["odd"] == ["begins with a template's marks, which are trained as plain text"]


ODD = {
    "ends on a message of the user": [Q, A, Q],
    "without a message of the user": [A],
    "an empty message of the user": [Q | {"content": " "}, A],
    "an empty message of the assistant": [Q, A, Q, A | {"content": ""}],
    "a template's marks in a message of the assistant": [Q, A | {"content": "<|im_start|>x"}],
    "signs that are no text in a message of the user": [Q | {"content": "caf\ufffd"}, A],
    "tool calls without tools": [Q, CALL],
    "a call whose arguments are no JSON object": [
        Q, {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": "{x"}}]},
    ],
}  # fmt: skip


def test_what_is_odd_is_named_with_its_line(write):
    rows = [{"messages": messages} for messages in ODD.values()]
    rows[-1]["tools"] = [TOOL]
    rows += [{"messages": [Q, CALL], "tools": [TOOL]}, {"messages": [Q, A]}, {"messages": [Q, A]}]
    code, output = run(write(*rows))
    assert code == 0
    for line, what in enumerate(ODD, 1):
        assert [what in said and f"a.jsonl:{line}" in said for said in output.splitlines()].count(
            True
        ) == 1
    assert "1 a call of 'f', which is none of its tools: a.jsonl:9" in output
    assert "1 the same as an earlier row: a.jsonl:11" in output
    assert "tools      f 2, g 1" in output
    assert "languages" in output


def test_tools_that_a_chat_template_does_not_show(write):
    path = write({"messages": [Q, A], "tools": [TOOL]}, {"messages": [A | {"content": "x"}]})
    source = FileSource(kind="jsonl", files=[str(path)], format="chat")
    plain = bytes_tokenizer().with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    for tokenizer, expected in ((bytes_tokenizer(), False), (plain, True)):
        rows = list(look(source, tokenizer))
        assert not any(row.left_out for row in rows)
        found = [any("does not show" in odd for odd in row.odd) for row in rows]
        assert found == [expected, False]


def test_the_chosen_context_and_evaluation_items(write, tmp_path):
    long = Q | {"content": "word " * 300}
    item = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    path = write(
        {"messages": [long, A]},
        {"messages": [Q, A | {"content": "word " * 300}]},
        {"messages": [Q, A | {"content": f"I know: {item}"}]},
        {"messages": [Q, A]},
    )
    items = write({"question": item}, name="items.jsonl")
    rows = [
        json.loads(line)
        for line in run(path, "--json", "--context", 400, "--against", items)[1].splitlines()
    ]
    assert [row["odd"] for row in rows] == [
        ["its answers begin beyond the context: it is left out"],
        ["cut at the context"],
        ["holds an evaluation item"],
        [],
    ]
    pairs = write({"prompt": "word " * 300, "chosen": "A", "rejected": "B"}, name="p.jsonl")
    [row] = map(json.loads, run(pairs, "--json", "--context", 400)[1].splitlines())
    assert row["odd"] == ["a pair longer than the context, which is left out"]


def test_settings_overrule_what_is_found(write):
    path = write({"frage": "Q", "antwort": "A"})
    with pytest.raises(UserError, match="no texts, conversations or pairs in its first 1 rows"):
        cli(["data", "look", str(path)], standalone_mode=False)
    names = ["--column", "prompt=frage", "--column", "completion=antwort", "--thinking", "think"]
    [row] = map(json.loads, run(path, "--json", *names)[1].splitlines())
    assert row["trained"] == ["A<|im_end|>"]
    assert row["thinking"] == "think"
    [row] = map(
        json.loads,
        run(path, "--json", "--format", "text", "--text", "{frage}: {antwort}")[1].splitlines(),
    )
    assert row["text"] == "Q: A"
    with pytest.raises(UserError, match="prompt: write it as key=value"):
        cli(["data", "look", str(path), "--column", "prompt"], standalone_mode=False)


def test_a_file_of_which_nothing_can_be_used_is_an_error(write):
    path = write({"messages": [Q]})
    with pytest.raises(UserError, match="no row of it can be used"):
        cli(["data", "look", str(path)], standalone_mode=False)


def test_a_models_tokens_and_context(write, tokenizer, make_job, tmp_path):
    tokenizer.save(tmp_path / "model")
    config = to_json(make_job(tmp_path / "work").model, "float32")
    write_json(tmp_path / "model" / "config.json", config)
    output = run(write({"messages": [Q, A]}), "--model", tmp_path / "model")[1]
    assert "context    32 tokens" in output
    assert "tokens     shortest" in output
    assert "cut at the context" in output or "begin beyond the context" in output


def test_keys_that_nobody_reads_are_named(write):
    shown = run(write({"messages": [Q | {"functions": []}, A | {"id": 1, "name": None}], "x": 1}))[
        1
    ]
    assert "not read   messages.functions, messages.id, x" in shown


def test_a_folder_says_what_it_passes_over(write, tmp_path):
    write({"messages": [Q, A]})
    write("x", name="README")
    assert "1 are no data files by their names" in run(tmp_path)[1]


@pytest.mark.parametrize("without", [False, True])
def test_examples_are_coloured_and_cut(write, monkeypatch, without):
    terminal = {"force_terminal": True, "color_system": "standard", "no_color": without}
    monkeypatch.setattr(view, "wide_console", lambda: Console(**terminal))
    monkeypatch.setattr(view, "LONG", 300)
    with_marks = A | {"content": "\x1b[31mred " + "y" * 300}
    output = run(write({"messages": [Q, with_marks]}))[1]
    assert ("\x1b[32m" in output) != without
    assert ("⟦" in output) == without
    assert "\x1b[31mred" not in output
    assert "y" * 200 not in output


def test_rows_come_in_the_order_of_the_files(tmp_path):
    for name in "cab":
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(f'{{"text": "{name}{i}"}}\n' for i in range(3))
        )
    source = FileSource(kind="files", files=[str(tmp_path)], part=1e-6)
    rows = list(look(source, bytes_tokenizer()))
    assert [row.sides[0].text for row in rows] == [f"{n}{i}" for n in "abc" for i in range(3)]
    summary = Summary()
    assert summary.lengths() == {}
    for row in rows:
        summary.add(row)
    assert summary.lengths()["all"] == 9 * 3
