"""The whole life of a model, through the command line."""

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from .conftest import cli

pytestmark = pytest.mark.xdist_group("smoke")
MODELS = ["stage1", "decay", "long", "sft", "apo", "final"]


def test_it_takes_at_most_75_seconds_of_processor_time(smoke):
    assert 1 < float((smoke.parent / "smoke.seconds").read_text()) < 75


def test_every_stage_left_what_it_should(smoke):
    run = json.loads((smoke / "run.json").read_text())
    assert run["final"] == "final"
    assert not list((smoke / ".work").glob("*"))
    for name in run["order"]:
        record = json.loads((smoke / name / "stage.json").read_text())
        assert record["name"] == name
        assert record["key"]
        assert record["environment"]["torch"] == torch.__version__
    for name in MODELS:
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= {
            f.name for f in (smoke / name).iterdir()
        }
    steps = [
        json.loads(x)["step"] for x in (smoke / "stage1/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 31))


def test_training_learns(smoke):
    rows = [json.loads(x) for x in (smoke / "stage1/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1


def test_lineage_and_tokens_add_up(smoke):
    decay = json.loads((smoke / "decay/stage.json").read_text())
    stage1 = json.loads((smoke / "stage1/stage.json").read_text())
    assert sum(stage1["tokens"].values()) == 30 * 8 * 64
    assert sum(decay["tokens"].values()) == 20 * 8 * 64
    for source, tokens in decay["tokens"].items():
        assert decay["positions"][source] == stage1["tokens"].get(source, 0) + tokens
    final = json.loads((smoke / "final/stage.json").read_text())
    assert [a["stage"] for a in final["lineage"]] == ["stage1", "decay", "long", "sft", "apo"]


def test_a_second_run_redoes_nothing(smoke):
    before = {f: f.stat().st_mtime_ns for f in smoke.rglob("model.safetensors")}
    process = cli("run", "smoke", "--out", smoke)
    assert process.returncode == 0
    assert process.stdout.count("(done before)") == 9
    assert {f: f.stat().st_mtime_ns for f in smoke.rglob("model.safetensors")} == before


@pytest.mark.parametrize("stage", [*MODELS, "export/hf-bfloat16"])
def test_transformers_loads_any_stage(smoke, stage):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import smollm3

    theirs = AutoModelForCausalLM.from_pretrained(smoke / stage, dtype=torch.float32)
    assert type(theirs).__name__ == "SmolLM3ForCausalLM"
    ids = AutoTokenizer.from_pretrained(smoke / stage)("def main(): 12", return_tensors="pt")[
        "input_ids"
    ]
    ours = smollm3.load_model(smoke / stage)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


def test_score_card(smoke):
    card = json.loads((smoke / "scorecard.json").read_text())
    assert len(card["claims"]) == 3
    for claim in card["claims"]:
        assert {
            "claim",
            "metric",
            "value",
            "low",
            "high",
            "n",
            "baseline",
            "target",
            "verdict",
        } <= set(claim)
    assert "Training lowers the loss on maths" in (smoke.parent / "smoke.txt").read_text()


class Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("#", "data:"))
        ]


def test_report_stands_alone(smoke):
    html = (smoke / "report.html").read_text()
    parser = Outside()
    parser.feed(html)
    assert parser.found == []
    assert "<svg" in html
    for name in MODELS:
        assert name in html


@pytest.mark.parametrize("mode", ["--think", "--no-think"])
def test_chat_answers_in_both_modes(smoke, mode):
    process = cli("chat", smoke, mode, "--max-tokens", 16, stdin="Hello!\n/new\nAgain\n/exit\n")
    assert process.returncode == 0, process.stderr
    assert len(process.stdout.splitlines()) >= 2


@pytest.mark.parametrize("arguments", [(), ("--chat",), ("--chat", "--no-think")])
def test_generate(smoke, arguments):
    words = (
        "generate",
        smoke / "sft",
        "def f(",
        "--max-tokens",
        8,
        "--temperature",
        0.5,
        *arguments,
    )
    first, second = cli(*words), cli(*words)
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout


def test_dry_run_changes_nothing(tmp_path):
    process = cli("run", "smoke", "--dry-run", "--out", tmp_path / "x", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert not list(tmp_path.iterdir())
    for name in MODELS:
        assert name in process.stdout


def test_help_needs_no_torch(tmp_path):
    process = cli("--help", PYTHONPROFILEIMPORTTIME="1")
    assert process.returncode == 0
    assert not re.search(r"\| +(torch|pydantic|rich)$", process.stderr, re.MULTILINE)
