"""The report of a fake but realistic run: whole, unfinished, and with hostile text in it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smollm3.errors import UserError
from smollm3.report import model_card, write_report
from smollm3.report.chart import POINTS, Series, chart, smoothed, ticks

LR = {"peak": 4e-3, "warmup": 100, "decay": "none", "end": 0.0}
HOSTILE = "<script>alert('&amp;')</script><img src=x onerror=\"alert(1)\">{{ 7 * 7 }}"


def train_config(mixture: dict[str, float], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "mixture": mixture,
        "loss": "all",
        "context": 128,
        "batch": 16,
        "lr": LR,
    } | changes


STAGES: dict[str, dict[str, Any]] = {
    "tokenizer": {"kind": "tokenizer", "vocab": 1024, "mixture": {"web": 1}},
    "stage1": train_config({"web": 0.78, "code": 0.12, "maths": 0.10}),
    "stage2": train_config({"web": 0.66, "code": 0.16, "maths": 0.18}, carry=["optimizer", "data"]),
    "decay": train_config({"web": 48, "code": 20, "maths": 32}, carry=["optimizer", "data"]),
    "sft": train_config({"chat": 1}, loss="assistant", context=256),
    "apo": train_config({"pairs": 1}, loss="apo_zero", context=128),
    "final": {"kind": "merge", "from": {"apo": 0.9, "decay": 0.1}},
    "card": {"kind": "eval", "claims": []},
}
PARENTS = {
    "stage1": ["tokenizer"],
    "stage2": ["stage1"],
    "decay": ["stage2"],
    "sft": ["decay"],
    "apo": ["sft"],
    "final": ["apo", "decay"],
    "card": ["decay", "stage1", "sft", "final"],
}
STEPS = {"stage1": 2000, "stage2": 600, "decay": 600, "sft": 850, "apo": 160}
MACHINE = {
    "smollm3": "0.1.0",
    "python": "3.12.3",
    "torch": "2.13.0+cpu",
    "platform": "Linux",
    "cpu": "AMD EPYC 7763",
    "cores": 2,
    "instruction_set": "AVX2",
    "gpu": None,
    "processes": 2,
    "threads": 1,
}


def claim(text: str, metric: str, model: str, value: float, **changes: Any) -> dict[str, Any]:
    row = {
        "claim": text,
        "metric": metric,
        "model": model,
        "value": value,
        "low": value - 0.06,
        "high": value + 0.05,
        "n": 200,
        "baseline": None,
        "target": "≥ 90.0%",
        "verdict": "holds",
        "why": "",
    }
    return row | changes


CLAIMS = [
    claim(
        "More maths in the later stages lowers the loss on maths",
        "loss/maths",
        "decay",
        0.978,
        baseline=1.427,
        target="≤ baseline - 0.200",
    ),
    claim("Answers follow the mode", "adherence/think", "sft", 0.995),
    claim(
        "Reasoning at least doubles the accuracy on sums",
        "accuracy/sum/think",
        "sft",
        0.715,
        baseline=0.15,
        target="≥ 2 x baseline",
    ),
    claim("The merge keeps the sums", "accuracy/sum/think", "final", 0.31, verdict="fails"),
]


def sample(question: str, mode: str, right: bool, **changes: Any) -> dict[str, Any]:
    reasoning = "So Jan:5=5 Ana:8=13 Eva:6=19." if mode == "think" else None
    return {
        "question": question,
        "mode": mode,
        "answer": f"<think>\n{reasoning}\n</think>\n19" if reasoning else "19",
        "reasoning": reasoning,
        "content": "19" if right else "17",
        "tool_calls": [],
        "expected": "19",
        "right": right,
    } | changes


CALL = {"name": "set_alarm", "arguments": {"name": "Ana", "hour": 7}}
SAMPLES = [
    sample("Total of Jan:5 Ana:8 Eva:6?", "think", True),
    sample("Total of Jan:5 Ana:8 Eva:6?", "no_think", False),
    sample(
        "Wake Ana at:7.",
        "no_think",
        True,
        content="",
        tool_calls=[CALL],
        expected="set_alarm(name='Ana', hour=7)",
    ),
    sample(HOSTILE, "think", False, content=HOSTILE, reasoning=HOSTILE, answer=HOSTILE),
]


def metric_rows(stage: str, steps: int, start: float, end: float) -> list[dict[str, Any]]:
    rng = random.Random(stage)
    rows = []
    for step in range(1, steps + 1):
        done = step / steps
        loss = end + (start - end) * math.exp(-5 * done) + rng.gauss(0, 0.04 * end)
        row = {
            "step": step,
            "loss": loss,
            "lr": 4e-3 * min(1, step / 100) * (1 - done if stage in ("decay", "sft") else 1),
            "grad_norm": 0.8,
            "tokens": 1024,
            "seconds": 0.05,
            "skipped": False,
        }
        if stage == "apo":
            row |= {"lr": 3e-5, "margin": 0.4 * done, "accuracy": 0.5 + 0.25 * done}
        rows.append(row)
    return rows


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_stage(run: Path, name: str) -> None:
    folder = run / name
    steps = STEPS.get(name, 0)
    digest = hashlib.sha256(name.encode()).hexdigest()
    mixture = STAGES[name].get("mixture", {}) if steps else {}
    write(
        folder / "stage.json",
        {
            "name": name,
            "kind": STAGES[name]["kind"],
            "config": STAGES[name],
            "inputs": {
                "parents": dict.fromkeys(PARENTS.get(name, []), "0" * 64),
                "sources": {source: f"digest of {source}" for source in mixture},
            },
            "digest": digest,
            "metrics": {"resumed_under": [{"torch": ["2.12.0", "2.13.0+cpu"]}]}
            if name == "sft"
            else {},
            "tokens": {
                source: round(
                    steps * (8 if name == "apo" else 1024) * weight / sum(mixture.values())
                )
                for source, weight in mixture.items()
            },
            "environment": MACHINE,
            "seconds": 12.5 + steps / 20,
            "started": 1.79e9,
            "finished": 1.79e9 + steps / 20,
        },
    )
    if steps:
        ends = {"stage1": (7.0, 1.9), "stage2": (1.95, 1.7), "decay": (1.7, 1.4), "apo": (1, 0.8)}
        start, end = ends.get(name, (1.6, 0.16))
        rows = metric_rows(name, steps, start, end)
        if name == "stage1":
            rows[410] |= {"loss": None, "grad_norm": None, "skipped": True}
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
    if name == "card":
        write(folder / "scorecard.json", {"claims": CLAIMS, "metrics": {}, "environment": {}})
        write(folder / "samples.json", SAMPLES)


def fake_run(run: Path, done: list[str]) -> Path:
    """A run folder in which the stages `done` are finished."""
    recipe = {"name": "nano", "seed": 0, "processes": 2, "stages": STAGES}
    write(
        run / "run.json",
        {"name": "nano", "recipe": recipe, "order": list(STAGES), "final": "final"},
    )
    for name in done:
        write_stage(run, name)
    if "final" in done:
        write(
            run / "final" / "config.json",
            {
                "architectures": ["SmolLM3ForCausalLM"],
                "model_type": "smollm3",
                "vocab_size": 1024,
                "hidden_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "intermediate_size": 176,
                "hidden_act": "silu",
                "max_position_embeddings": 256,
                "rope_theta": 10000.0,
                "rms_norm_eps": 1e-6,
                "no_rope_layers": [1, 1, 1, 0],
                "tie_word_embeddings": True,
            },
        )
    meta = {"name": "code", "digest": "digest of code", "skipped": {"not UTF-8": 3}}
    write(run / "data" / "code-1234" / "meta.json", meta)
    old = meta | {"digest": "of another tokenizer", "skipped": {"too old": 9}}
    write(run / "data" / "code-9999" / "meta.json", old)
    return run


class Page(HTMLParser):
    """Elements, visible text and nesting of an HTML page."""

    VOID = frozenset({"meta", "br", "path", "img"})

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text.append(data)

    def all(self, tag: str, cls: str | None = None) -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (cls is None or cls in (attributes.get("class") or "").split())
        ]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(run: Path) -> tuple[Page, str]:
    html = write_report(run).read_text(encoding="utf-8")
    return Page(html), html


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str]:
    return page_of(fake_run(tmp_path_factory.mktemp("nano"), list(STAGES)))


def test_head_names_model_machine_and_totals(whole: tuple[Page, str]) -> None:
    words = whole[0].words
    assert "parameters 250,432" in words  # 1024·64 + 4·(64·16·12 + 3·64·176 + 128) + 64
    assert "AMD EPYC 7763, 2 cores" in words
    assert "smollm3 0.1.0, torch 2.13.0+cpu, Python 3.12.3" in words
    assert "tokens 4.15M" in words  # 4,050 steps of 1,024; pairs are not tokens
    assert "time 5m 10s" in words  # 8 x 12.5 s + 4,210 / 20 s
    assert "stages are done" not in words


def test_score_card_has_every_claim_with_its_numbers(whole: tuple[Page, str]) -> None:
    words = whole[0].words
    assert "3 of 4 claims hold" in words
    assert "0.978 0.918 to 1.028 200 1.427 ≤ baseline - 0.200" in words
    assert "71.5% 65.5% to 76.5% 200 15.0% ≥ 2 x baseline" in words
    assert "✗ fails The merge keeps the sums accuracy/sum/think of final 31.0%" in words


def test_curves_have_a_band_for_each_stage(whole: tuple[Page, str]) -> None:
    page, _ = whole
    figures = page.all("figure")
    assert len(figures) == 5  # loss and rate; preference: loss, accuracy, rate
    titles = [band["title"] for band in page.all("div", "band")]
    assert titles == ["stage1", "stage2", "decay", "sft"] * 2 + ["apo"] * 3
    widths = [
        float(re.search(r"width:([\d.]+)%", b["style"] or "")[1])
        for b in page.all("div", "band")[:4]
    ]  # type: ignore[index]
    assert widths == pytest.approx([100 * STEPS[s] / 4050 for s in titles[:4] if s], abs=0.01)
    points = json.loads(figures[0]["data-points"] or "")
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y, _ in points)
    assert points[0][2].startswith("stage1, step 1: ")
    assert points[-1][2].startswith("sft, step 850: 0.1")


def test_mixtures_are_shares_with_the_tokens_used(whole: tuple[Page, str]) -> None:
    page, _ = whole
    words = page.words
    assert "web 78.0% 1.6M 66.0% 406k 48.0% 295k" in words
    segments = [bar for bar in page.all("div") if (bar.get("class") or "").startswith("hue")]
    decay = [s["title"] for s in segments[6:9]]
    assert decay == ["web 48.0%", "code 20.0%", "maths 32.0%"]
    web = {s["class"] for s in segments if (s["title"] or "").startswith("web ")}
    assert len(web) == 1  # a source keeps its colour


def test_answers_stand_together_with_reasoning_folded(whole: tuple[Page, str]) -> None:
    page, html = whole
    words = page.words
    assert len(page.all("section", "question")) == 3
    assert "/think ✓ right reasoning So Jan:5=5 Ana:8=13 Eva:6=19." in words
    assert "/no_think ✗ expected 19" in words
    assert 'set_alarm (name="Ana", hour=7)' in words
    assert "<details open" not in html


def test_stages_and_lineage(whole: tuple[Page, str]) -> None:
    words = whole[0].words
    digest = hashlib.sha256(b"final").hexdigest()[:12]
    assert f"final merge apo, decay 12.5s {digest}" in words
    assert "stage1 train tokenizer 2.05M 2,000 1m 52s" in words
    assert "apo train sft 1,280 pairs 160 20.5s" in words


def test_warnings_tell_what_was_skipped(whole: tuple[Page, str]) -> None:
    words = whole[0].words
    assert "stage1: 1 of 2,000 steps left the weights as they were" in words
    assert "far too large): step 411" in words
    assert "sft: resumed under torch 2.13.0+cpu (was 2.12.0)" in words
    assert "code: 3 documents left out (not UTF-8)" in words
    assert "too old" not in words  # prepared for another tokenizer, read by no stage


def test_the_recipe_is_there_and_can_be_read_back(whole: tuple[Page, str]) -> None:
    page, _ = whole
    text = next(t for t in page.text if t.startswith("name: nano"))
    assert yaml.safe_load(text)["stages"] == STAGES


def test_text_of_a_model_is_never_markup(whole: tuple[Page, str]) -> None:
    page, html = whole
    assert page.words.count("<script>alert('&amp;')</script>") == 4  # question, three parts
    assert "{{ 7 * 7 }}" in html  # data are not template either
    assert page.all("img") == []
    assert len(page.all("script")) == 1


def test_the_file_asks_nobody_for_anything(whole: tuple[Page, str]) -> None:
    page, html = whole
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "onclick"} & set(attributes)
    assert not re.search(r"url\(|@import|https?://|eval\(|innerHTML", html)
    policy = page.all("meta")[2]["content"] or ""
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(html) < 300_000


def test_an_unfinished_run_shows_what_is_there(tmp_path: Path) -> None:
    run = fake_run(tmp_path, ["tokenizer", "stage1"])
    begun = run / ".work" / "stage2" / "metrics.jsonl"
    begun.parent.mkdir(parents=True)
    rows = [json.dumps(row) for row in metric_rows("stage2", 40, 1.9, 1.7)]
    begun.write_text("\n".join(rows) + '\n{"step": 41, "lo')  # killed in the middle of a row
    page, _ = page_of(run)
    assert "2 of 8 stages are done." in page.words
    assert "stage2 train at step 40" in page.words
    assert "sft train not run yet" in page.words
    assert [band["title"] for band in page.all("div", "band")] == ["stage1", "stage2"] * 2
    assert "Score card" not in page.words
    assert "Answers" not in page.words


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    page, _ = page_of(fake_run(tmp_path, []))
    assert "0 of 8 stages are done." in page.words
    assert page.all("figure") == []


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no run \(no run.json\)"):
        write_report(tmp_path)


def test_the_same_run_gives_the_same_report(tmp_path: Path) -> None:
    run = fake_run(tmp_path, list(STAGES))
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


# Charts


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_and_hold_the_range(low: float, width: float) -> None:
    first, last, values = ticks(low, low + width)
    slack = 1e-6 * max(abs(first), abs(last), 1e-9)
    assert first <= low + slack
    assert last >= low + width - slack
    assert 2 <= len(values) <= 12
    step = values[1] - values[0]
    assert float(f"{step:.3e}"[0]) in (1, 2, 5, 4, 9)  # 1, 2, 5 up to rounding
    assert all(b > a for a, b in itertools.pairwise(values))


def test_ticks_of_one_value_and_of_decimals() -> None:
    assert ticks(0.5, 0.5)[0] <= 0.5 < ticks(0.5, 0.5)[1]
    labels = [f"{tick:.4g}" for tick in ticks(0.9995, 0.9996)[2]]
    assert len(set(labels)) == len(labels)
    assert ticks(-0.7, -0.7)[0] <= -0.7 < ticks(-0.7, -0.7)[1]
    assert ticks(0, 0)[2][0] == 0
    assert ticks(0.0, 0.5)[2] == [0, 0.1, 0.2, 0.3, 0.4, 0.5]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=300), st.floats(-50, 50))
def test_smoothing_stays_within_the_values_and_moves_with_them(
    values: list[float], shift: float
) -> None:
    smooth = smoothed(values)
    assert len(smooth) == len(values)
    assert smooth[0] == pytest.approx(values[0])
    assert min(values) - 1e-9 <= min(smooth)
    assert max(smooth) <= max(values) + 1e-9
    moved = smoothed([value + shift for value in values])
    assert moved == pytest.approx([s + shift for s in smooth], abs=1e-6)


def test_long_stages_are_thinned_but_keep_their_ends() -> None:
    steps = list(range(1, 10_001))
    drawn = chart("x", [Series("a", steps, [float(s) for s in steps])], str)
    assert drawn is not None
    assert len(drawn.points) == POINTS
    assert drawn.points[0] == (0.01, 99.99, "a, step 1: 1.0")
    assert drawn.points[-1] == (100.0, 0.0, "a, step 10,000: 10000.0")


def test_values_that_are_no_numbers_are_left_out() -> None:
    series = [Series("a", [1, 2, 3], [1.0, math.nan, 2.0]), Series("b", [1], [math.inf])]
    drawn = chart("x", series, str, smooth=True)
    assert drawn is not None
    assert len(drawn.points) == 2
    assert chart("x", series[1:], str, smooth=True) is None
    assert chart("x", [], str, smooth=True) is None


def test_model_card_names_the_stages() -> None:
    text = model_card("nano", [{"stage": "sft", "digest": "ab" * 32}])
    header = yaml.safe_load(text.split("---")[1])
    assert header["library_name"] == "transformers"
    assert "| sft | `abababababab` |" in text


def test_the_card_names_licence_base_data_and_scores():
    from smollm3.data.spec import FileSource, HubSource

    sources = {
        "mine": FileSource(kind="jsonl", files=["/home/me/secret/talks.jsonl"], license="mit"),
        "hub": HubSource(kind="hub", repo="org/talks", files=["a.jsonl"]),
    }
    numbers = {"low": 1.5, "high": 2.5}
    claim = {
        "claim": "It fell",
        "metric": "loss/mine",
        "value": 2.0,
        "baseline": 3.0,
        "verdict": "holds",
    }
    claims = [claim | numbers | {"difference": {"low": -1.2, "high": -0.8}}]
    card = model_card(
        "x", [{"stage": "a", "digest": "0" * 64}], license="apache-2.0", base="org/base", sources=sources, claims=claims
    )  # fmt: skip
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["base_model"], head["datasets"]) == (
        "apache-2.0",
        "org/base",
        ["org/talks"],
    )
    assert "`talks.jsonl`" in card
    assert "secret" not in card
    assert "org/talks@main" in card
    assert "-1.200 to -0.800" in card
    plain = model_card("x", [])
    assert "license" not in plain
    assert "## Data" not in plain
    assert "base_model" not in model_card("x", [], base="a/folder/here")
