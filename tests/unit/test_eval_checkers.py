"""What judges answers: programs in the sandbox, calls by BFCL's rules, numbers, comparisons."""

import base64
import json
import pickle
import zlib

import pytest

from smollm3.errors import UserError
from smollm3.eval import bfcl, code, questions
from smollm3.eval.compare import compare_on_console, mean_of, paired, published_lines
from smollm3.eval.maths import answer_number, as_number, average, number
from smollm3.eval.measure import Measure
from smollm3.eval.plots import heat_map
from smollm3.eval.published import models, name_of, tables, win_rates
from smollm3.eval.questions import hotpotqa_scores
from smollm3.eval.results import json_of, read_results

# programs

CHECK = """
import numpy as np
def check(candidate):
    assert np.allclose(candidate(2), [4.0, (1.0,)], rtol=1e-07, atol=1e-6)
    assert not np.allclose([1, 2], [1, 3])
"""
ITEM = {"entry_point": "f", "prompt": "def f(x):\n", "test": CHECK}


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("    return [x * 2, (1,)]\n", True),
        (
            "Here it is:\n```python\ndef f(x):\n    return [x + x + 1e-9, (1,)]\n```\nIt doubles.",
            True,
        ),
        ("    return [x * 3, (1,)]\n", False),
        ("    import os; os._exit(0)\n", False),
        ("    raise SystemExit(0)\n", False),
        ("    return [x * 2,\n", False),
    ],
)
def test_programs_pass_or_fail(answer, passed):
    assert code.humaneval(ITEM, [answer]) == {"pass@1": float(passed)}


def test_a_verdict_says_why():
    assert code.run_tests("x = 1", "assert x == 2").why == "AssertionError"
    assert code.run_tests("x = 1", "import os; os._exit(0)").why.startswith(
        "the interpreter is gone"
    )
    assert code.mbpp({"test": "assert f(1) == 2"}, ["```\ndef f(x): return x + 1\n```"]) == {
        "pass@1": 1.0
    }


def test_the_tests_of_humaneval_32_are_mended():
    test = "def check(candidate):\n    assert _poly(*candidate(*inp), inp) <= 0.0001"
    assert "abs(_poly(*inp, candidate(*inp)))" in code.humaneval_tests(
        {"test": test, "entry_point": "f"}
    )


def test_comparisons_of_mbpp_are_asserted():
    test = (
        "def assertion(out, exp, atol):\n    if isinstance(out, bool):\n        exact_match = out == exp\n"
        "    else:\n        exact_match = exp == (out is not None)\n\nassertion(f(1), True, 0)\n"
    )
    for value, passed in (("3", 1.0), ("None", 0.0)):
        assert code.mbpp({"test": test}, [f"def f(x): return {value}"]) == {"pass@1": passed}


def test_programs_that_read_and_methods_that_are_called():
    item = {
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "2\n3\n", "output": "5 \n"}]),
    }
    good = "```python\nprint(int(input()) + int(input()))\nraise SystemExit\n```"
    assert code.livecodebench(item, [good]) == {"pass@1": 1.0}
    assert code.livecodebench(item, ["print(6)"]) == {"pass@1": 0.0}
    starter = "class Solution:\n    def add(self, a: List[int]) -> int:\n"
    item = {
        "starter_code": starter,
        "public_test_cases": json.dumps([{"input": "[2, 3]", "output": "5"}]),
    }
    assert code.livecodebench(item, [starter + "        return sum(a)"]) == {"pass@1": 1.0}
    assert code.livecodebench({**item, "public_test_cases": "[]"}, ["x"]) == {"pass@1": 0.0}


def packed(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def test_hidden_tests_count_too():
    """As the lighter files of LiveCodeBench have them, ten items of our own."""
    cases = [{"input": f"{n}\n", "output": f"{n * n}\n", "testtype": "stdin"} for n in range(10)]
    for n in range(10):
        item = {
            "starter_code": "",
            "public_test_cases": json.dumps(cases[:1]),
            "private_test_cases": packed(json.dumps(cases[: n + 1])),
        }
        assert code.cases_in(item["private_test_cases"])[n] == {
            "input": f"{n}\n",
            "output": f"{n * n}\n",
        }
    assert code.livecodebench(item, ["print(int(input()) ** 2)"]) == {"pass@1": 1.0}
    only_public = ["n = int(input())\nprint(n * n if n < 9 else 0)"]
    assert code.livecodebench(item, only_public) == {"pass@1": 0.0}
    assert code.livecodebench({**item, "private_test_cases": "[]"}, only_public) == {"pass@1": 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{}]", "'input'"),
        ("[1", "tests that cannot be read"),
        ("no base64!", "tests that cannot be read"),
        (base64.b64encode(b"not packed").decode(), "incorrect header"),
        (packed(pytest.raises), "names "),
        (packed([1]), "tests that cannot be read"),
        (packed("[]")[:-8], "more than 1 MiB, or cut off"),
        (packed(" " * (2 << 20)), "more than 1 MiB"),
    ],
    ids=range(8),
)
def test_hidden_tests_of_another_form_are_one_line(text, said, monkeypatch):
    monkeypatch.setattr(code, "MOST_BYTES", 1 << 20)
    with pytest.raises(UserError, match=said):
        code.cases_in(text)


def test_without_a_sandbox_nothing_is_run(monkeypatch):
    def none():
        raise UserError("the model's Python cannot be isolated on this computer")

    monkeypatch.setattr(code, "find_sandbox", none)
    with pytest.raises(UserError, match="humaneval_plus_sandbox: .*cannot be isolated"):
        code.need_sandbox("humaneval_plus_sandbox")


# calls

FUNCTIONS = [
    {
        "name": "area.get",
        "description": "An area.",
        "parameters": {
            "type": "dict",
            "properties": {
                "side": {"type": "float"},
                "name": {"type": "string"},
                "points": {"type": "array", "items": {"type": "integer"}},
                "where": {"type": "dict", "properties": {"type": {"type": "string"}}},
                "rows": {"type": "array", "items": {"type": "dict"}},
                "at": {"type": "tuple", "items": {"type": "float"}},
                "big": {"type": "boolean"},
            },
            "required": ["side"],
        },
    }
]
ANSWER = [
    {
        "area.get": {
            "side": [5.0],
            "name": ["New York, NY", ""],
            "points": [[1, 2], ""],
            "where": [{"type": ["x", "y"], "z": [1, ""]}, ""],
            "rows": [[{"a": [1]}, {"a": [2]}], ""],
            "at": [[1.0, 2.0], ""],
            "big": [True, ""],
        }
    }
]


def verdict(*calls, answers=ANSWER, wants=True):
    question = bfcl.Question("1", [], FUNCTIONS, answers, wants)
    return bfcl.right(question, list(calls))


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        ({"side": 5}, True),
        ({"side": 5.0, "name": "new york ny"}, True),
        ({"side": "5"}, False),
        ({"name": "New York"}, False),
        ({"side": 5, "other": 1}, False),
        ({"side": 5, "name": "Boston"}, False),
        ({"side": 5, "points": [1, 2]}, True),
        ({"side": 5, "points": [2, 1]}, False),
        ({"side": 5, "points": ["1", "2"]}, False),
        ({"side": 5, "where": {"type": "Y"}}, True),
        ({"side": 5, "where": {"type": "q"}}, False),
        ({"side": 5, "where": {"z": 1}}, False),
        ({"side": 5, "where": {"type": "x", "k": 1}}, False),
        ({"side": 5, "rows": [{"a": 1}, {"a": 2}]}, True),
        ({"side": 5, "rows": [{"a": 1}]}, False),
        ({"side": 5, "at": (1.0, 2.0)}, True),
        ({"side": 5, "big": 1}, False),
        ({"side": 5, "big": True}, True),
    ],
)
def test_arguments_are_judged(arguments, right):
    assert verdict(("area_get", arguments)) is right


def test_names_and_numbers_of_calls():
    assert not verdict(("area_put", {"side": 5}))
    assert not verdict()
    two = [*ANSWER, {"area.get": {"side": [6.0]}}]
    assert verdict(("area_get", {"side": 6}), ("area_get", {"side": 5}), answers=two)
    assert not verdict(("area_get", {"side": 5}), ("area_get", {"side": 5}), answers=two)
    assert verdict(answers=None, wants=False)
    assert not verdict(answers=None, wants=True)
    variable = [{"area.get": {"side": ["x1"]}}]
    assert verdict(("area_get", {"side": "x1"}), answers=variable)
    assert not verdict(("area_get", {"side": "X 1"}), answers=variable)
    named = [{"area.get": {"side": [5.0], "name": ["Boston"]}}]  # the schema does not require it
    assert verdict(("area_get", {"side": 5, "name": "Boston"}), answers=named)
    assert not verdict(("area_get", {"side": 5}), answers=named)


def test_types_become_those_of_json_schema():
    (tool,) = bfcl.tools(FUNCTIONS)
    properties = tool["function"]["parameters"]["properties"]
    assert tool["function"]["name"] == "area_get"
    assert [properties[k]["type"] for k in ("side", "where", "at")] == ["number", "object", "array"]
    assert properties["where"]["properties"] == {"type": {"type": "string"}}
    with pytest.raises(UserError, match="simple_pythn"):
        bfcl.questions("simple_pythn")


# numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", 1234.5),
        ("1.234.567", 1234567),
        ("3,5", 3.5),
        ("1 234", 1234),
        ("-7.", -7),
        ("3/4", 0.75),
        ("1/0", None),
        ("None", None),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert as_number(text) == value


def test_the_boxed_number_or_the_last_one_counts():
    assert answer_number(r"12, so \boxed{\text{about } 1{,}4}") is not None
    assert answer_number(r"first 3 then \boxed{42}. And 7") == 42
    assert answer_number("it is 3, no, 18") == 18
    assert answer_number("no idea") is None
    assert number({"answer": "1,000"}, ["thus 1000."]) == {"exact_match": 1.0}
    assert number({"answer": "None"}, ["thus"]) == {"exact_match": 0.0}
    assert average({"answer": "2"}, [["2", "3", r"\boxed{2}", "x"]]) == {"exact_match": 0.5}


# comparisons


def results(folder, name, task_values, *, n=4, settings=None):
    """A folder as `smollm3 eval` leaves one; task -> metric -> values of the items."""
    folder.mkdir()
    kept = {"results": {}, "n-samples": {}, "config": {"model": name, "settings": settings or {}}}
    for task, metrics in task_values.items():
        kept["results"][task] = {"alias": task}
        for metric, values in metrics.items():
            kept["results"][task] |= {
                f"{metric},none": sum(values) / len(values),
                f"{metric}_stderr,none": 0.1,
            }
        kept["n-samples"][task] = {"original": n, "effective": len(values)}
        samples = [
            {
                "doc_id": i,
                "doc_hash": "h",
                "filter": "none",
                **{m: v[i] for m, v in metrics.items()},
            }
            for i in range(len(values))
        ]
        (folder / f"samples_{task}.jsonl").write_text(
            "".join(json.dumps(s) + "\n" for s in samples)
        )
    (folder / "results.json").write_text(json.dumps(kept))
    return folder


def test_ours_stands_beside_what_is_published(tmp_path):
    folder = results(
        tmp_path / "a",
        "smollm2-135m",
        {
            "arc_easy": {"acc_norm": [1, 0, 1, 0]},
            "arc_challenge": {"acc_norm": [0, 0, 1, 0]},
            "piqa": {"acc_norm": [1, 1]},
        },
        settings={"chat": False, "think": False},
    )
    lines = {
        line.benchmark: line
        for line in published_lines(read_results(folder))
        if line.table == "smollm2-card"
    }
    assert lines["ARC"].value == 37.5
    assert lines["ARC"].difference == pytest.approx(0.2)
    assert "without the chat template" in lines["ARC"].why
    assert "2 of 4 items" in lines["PIQA"].why
    assert lines["ARC"].low < 37.5 < lines["ARC"].high


def test_the_rows_of_smollm2_are_those_of_its_tables(tmp_path):
    """Of one task two metrics with the wider's interval; a table of the harness's own protocol."""
    ifeval = {"prompt_level_strict_acc": [1, 0, 0, 0], "inst_level_strict_acc": [1, 1, 0, 0]}
    scores = {"arc_easy": {"acc": [1, 1, 1, 0]}, "arc_challenge": {"acc_norm": [1, 0, 0, 0]}}
    folder = results(tmp_path / "a", "smollm2-135m", {"ifeval": ifeval, **scores}, n=4)
    read = read_results(folder)
    lines = {(line.table, line.benchmark): line for line in published_lines(read)}
    line = lines["smollm2-card", "IFEval"]
    assert (line.value, line.n, line.published) == (37.5, 4, 29.9)
    prompts = read.measure("ifeval", "prompt_level_strict_acc,none")
    assert line.high == pytest.approx(37.5 + 100 * (prompts.high - prompts.value))
    assert lines["smollm2-third-party", "ARC Easy"].difference == pytest.approx(75 - 54.12)
    assert lines["smollm2-third-party", "ARC Challenge"].why == ""


def test_another_blank_is_told(tmp_path):
    values = {"piqa": {"acc_norm": [1, 0]}}
    settings = {"chat": True, "option_prefix": ""}
    (line,) = (
        line
        for line in published_lines(
            read_results(results(tmp_path / "a", "smollm2-135m", values, n=2, settings=settings))
        )
        if line.table == "smollm2-card"
    )
    assert line.why == "another blank before the options of a chat"


def test_two_are_compared_item_by_item(tmp_path):
    a = results(tmp_path / "a", "m", {"t": {"acc": [1, 0, 0, 0]}})
    b = results(tmp_path / "b", "m", {"t": {"acc": [1, 1, 1, 0]}, "u": {"acc": [1]}})
    pair = paired(read_results(a), read_results(b))
    (line,) = pair.lines
    assert (line.difference, line.wins, line.losses, line.n) == (50.0, 2, 0, 4)
    assert line.low < 50 < line.high
    assert (pair.a, pair.b) == ("m (a)", "m (b)")


def test_the_command_prints_and_writes(tmp_path, capsys):
    a = results(tmp_path / "a", "smollm2-135m", {"piqa": {"acc_norm": [1, 0]}})
    b = results(tmp_path / "b", "mine", {"piqa": {"acc_norm": [1, 1]}})
    compare_on_console([a, b], tmp_path / "c.json", tmp_path / "c.svg")
    shown = capsys.readouterr().out
    assert "PIQA" in shown
    assert "66.3" in shown
    assert "win rate: smollm2-135m 0%, mine 100%" in shown
    kept = json.loads((tmp_path / "c.json").read_text())
    assert kept["paired"][0]["lines"][0]["difference"] == 50.0
    assert (tmp_path / "c.svg").read_text().startswith("<svg")
    compare_on_console([b], None, tmp_path / "d.svg")
    assert "nothing of these is published" in capsys.readouterr().out
    with pytest.raises(UserError, match="--against: 'x' is not one of"):
        compare_on_console([a], None, None, "x")
    with pytest.raises(UserError, match="no results of an evaluation"):
        (tmp_path / "e.json").write_text("[]")
        compare_on_console([tmp_path / "e.json"], None, None)


def test_ruler_gets_its_mean_and_its_map(tmp_path, capsys):
    from smollm3.eval.ruler import TASKS

    scores = {f"ruler_{t}_4096": {"score": [1, 1]} for t in TASKS}
    folder = results(tmp_path / "a", "m", scores)
    file = folder / "samples_ruler_niah_single_1_4096.jsonl"
    file.write_text(
        json.dumps(
            {"doc_id": 0, "filter": "none", "score": 1, "doc": {"depth": 0.5, "length": 4096}}
        )
        + "\n"
    )
    compare_on_console([folder], None, tmp_path / "map.svg")
    shown = capsys.readouterr().out
    assert "4,096: 100.0 (13 tasks)" in shown
    assert "effective length: 4,096 tokens" in shown
    assert "4,096 tokens, depth 50%: 100%" in (tmp_path / "map.svg").read_text()
    assert heat_map({(8192, 9): 0.0}, "x < y").count("<rect") == 2


def test_ruler_stands_beside_what_is_published(tmp_path):
    from smollm3.eval.ruler import TASKS

    scores = {f"ruler_{t}_32768": {"score": [1, 0]} for t in TASKS}
    (line,) = published_lines(read_results(results(tmp_path / "a", "smollm3-3b-base", scores)))
    assert (line.benchmark, line.value, line.published) == ("RULER 32768", 50.0, 76.35)


def test_win_rates_are_shares_of_beaten_models():
    rates = win_rates({"a": {"x": 3, "y": 1}, "b": {"x": 2, "y": 1, "z": 9}, "c": {"x": 1, "y": 0}})
    assert rates == {"a": 0.875, "b": 0.625, "c": 0.0}
    assert win_rates({"a": {"x": 1}}) == win_rates({}) == {}


def test_published_names():
    assert name_of("smollm2-135m") == "SmolLM2-135M-Instruct"
    assert name_of("HuggingFaceTB/SmolLM3-3B@main") == "SmolLM3-3B"
    assert name_of("runs/mine") is None
    assert "Qwen3-4B" in models()
    assert mean_of([Measure(0.5, 0.4, 0.6, 3)]).high == pytest.approx(0.6)


def test_results_hold_no_addresses():
    value = json_of({"f": as_number, "n": float("nan"), "o": object(), "s": {1}, 2: (True, None)})
    assert value == {"f": "as_number", "n": "nan", "o": "object", "s": [1], "2": [True, None]}


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [
        ("The United States.", "united states", 1.0, 1.0),
        ("in United States", "the united states", 0.0, 0.8),
        ("yes, it is", "yes", 0.0, 0.0),
        ("no", "No!", 1.0, 1.0),
        ("", "united", 0.0, 0.0),
    ],
)
def test_answers_by_the_rules_of_hotpotqa(answer, right, exact, f1):
    assert hotpotqa_scores({"answer": right}, [answer]) == {
        "exact_match": exact,
        "f1": pytest.approx(f1),
    }


def test_calls_and_languages_stand_beside_the_report_s_one_number(tmp_path):
    """BFCL's categories are of another suite than the table's; Global MMLU is a mean of languages."""
    from smollm3.eval.suites import suite_of

    calls = {row.task: {"accuracy": [1, 1]} for row in suite_of("tools").rows}
    languages = ("de", "es", "fr", "it", "pt")
    mmlu = {f"global_mmlu_chat_{x}": {"exact_match": [x != "de", 0]} for x in languages}
    chat = {"chat": True, "think": True}
    folder = results(tmp_path / "a", "smollm3-3b", calls | mmlu, settings=chat, n=2)
    lines = {(x.table, x.benchmark): x for x in published_lines(read_results(folder))}
    assert lines["smollm3-think", "BFCL"].difference == pytest.approx(100 - 88.8)
    assert lines["smollm3-think", "Global MMLU"].value == pytest.approx(40)
    assert "other mode of thinking" not in lines["smollm3-think", "BFCL"].why
    assert "the other mode of thinking" in lines["smollm3-no-think", "BFCL"].why


def test_every_published_score_of_the_3b_has_a_row_and_a_source():
    from smollm3.eval.suites import suite_of

    for table in tables():
        assert table.source
        assert table.protocol
        rows = [row for suite in table.suites for row in suite_of(suite).rows]
        made = {r.benchmark for r in rows} | {f"{r.benchmark} {r.language}" for r in rows}
        if table.name.startswith("smollm3-"):
            scores = {name for by_name in table.scores.values() for name in by_name}
            assert {s for s in scores if not s.startswith("RULER ")} <= made, table.name


@pytest.mark.parametrize(
    "value",
    [
        {"results": {"piqa": 3}},
        {"results": {"piqa": {"acc,none": "a"}}},
        {"results": {"piqa": {"acc_norm,none": None}}, "config": None},
        {"results": {"piqa": {"acc_norm,none": 0.5}}, "config": [1]},
        {"results": {"piqa": {"acc_norm,none": 0.5}}, "n-samples": 3},
        {"results": {"piqa": {"acc_norm,none": 0.5}}, "config": {"model": "smollm2-135m"}},
        {
            "results": {"piqa": {"acc_norm,none": 0.5}},
            "smollm3": {"intervals": {"piqa": {"acc_norm,none": {"value": 1}}}},
        },
        {"results": {"piqa": {}}},
        {"results": {}},
        {"results": {"ruler_niah_single_1_x": {"score,none": 1.0}}},
    ],
)
def test_files_of_another_form_are_one_line_or_a_table(tmp_path, value, capsys):
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(value))
    for paths in ([file], [file, file]):
        try:
            compare_on_console(paths, None, tmp_path / "a.svg")
        except UserError as e:
            assert str(file) in str(e)


@pytest.mark.parametrize(
    "line", ["[1]", "3", "{", '{"doc_id": {}}', '{"filter": "none", "acc": 1}']
)
def test_samples_of_another_form_are_one_line(tmp_path, line):
    a = results(tmp_path / "a", "m", {"t": {"acc": [1, 0]}})
    (a / "samples_t.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="samples_t.jsonl"):
        compare_on_console([a, a], None, None)


@pytest.mark.parametrize(
    ("answer", "rights", "f1", "exact"),
    [
        ("The red house.", ["red house"], 1.0, 1.0),
        ("red", ["blue", "red house"], 2 / 3, 0.0),
        ("紅色的", ["紅色"], 0.8, 0.0),
        ("", ["x"], 0.0, 0.0),
    ],
)
def test_answers_out_of_a_passage(answer, rights, f1, exact):
    scores = questions.passage_scores({"answers": {"text": rights}}, [answer])
    assert scores == {"f1": pytest.approx(f1), "exact_match": exact}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (r"So it is \boxed{B}.", True),
        (r"A, then \boxed{\text{B}}", True),
        (r"\boxed{B) yes}, no: \boxed{A}", False),
        ("The answer is B", True),
        ("Be it A or B or C", False),
        ("b", False),
    ],
)
def test_the_letter_of_an_answer(answer, right):
    assert questions.letter({"answer": "B"}, [answer]) == {"exact_match": float(right)}
