"""The nano suite on real data with models whose answers are known, and the judging of claims."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from tests.support.said import said

from smollm3 import checkpoint
from smollm3.chat import Message, ToolCall, default_template
from smollm3.data import Shard, documents, prepare
from smollm3.data.spec import Source
from smollm3.data.synthetic import TASKS, is_held_out, items
from smollm3.errors import UserError
from smollm3.eval import Claim, EvalStage, check_claims, evaluate, show, table
from smollm3.eval.measure import Measure, difference, ratio, share
from smollm3.eval.nano import DATE, MODES, Answer, Suite, known_metrics
from smollm3.eval.scorecard import _judged
from smollm3.infer import Engine, Generation, load_engine
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.tokenizer import Tokenizer

# Intervals


def test_wilson_interval_by_hand() -> None:
    """p = 0.8, n = 10: centre (0.8 + 1.9208/10)/1.38415, half 1.96·sqrt(0.016 + 0.0096)/1.384."""
    measure = share([True] * 8 + [False] * 2)
    assert measure.value == 0.8
    assert (measure.low, measure.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
@example([False] * 7)  # the lower bound rounds to -3.6e-17
def test_wilson_interval_holds_the_share(hits: list[bool]) -> None:
    measure = share(hits)
    assert 0 <= measure.low <= measure.value <= measure.high <= 1
    assert measure.low < measure.high
    more = share(hits * 4)
    assert more.high - more.low < measure.high - measure.low


def test_ratio_is_by_token_with_the_error_of_documents() -> None:
    """Two documents: 10 nats in 4 tokens, 2 nats in 2: r = 2, residuals 2 and -2,
    half = 1.96·sqrt(2/1·8)/6."""
    measure = ratio([10.0, 2.0], [4, 2])
    assert measure.value == 2.0
    assert measure.high - 2 == pytest.approx(1.959964 * 4 / 6)
    assert measure.n == 2


def test_ratio_of_equal_documents_is_certain() -> None:
    assert ratio([3.0, 6.0], [1, 2]).numbers() == {"value": 3.0, "low": 3.0, "high": 3.0, "n": 2}


# Differences


def test_a_difference_of_paired_shares_by_hand() -> None:
    """10 pairs, 5 won, 1 lost, 4 equal. With half a pair of each kind: 5.5 and 1.5 of 12, mean
    4/12, variance 7/12 - 1/9 = 0.4722, half 1.96·sqrt(0.4722/12) = 0.3888."""
    wins, losses = [(True, False)] * 5, [(False, True)]
    ours, theirs = zip(*wins, *losses, *[(True, True)] * 4, strict=True)
    measure = difference(share(ours), share(theirs))
    assert measure.value == pytest.approx(0.4)
    assert (measure.low, measure.high) == pytest.approx((1 / 3 - 0.3888, 1 / 3 + 0.3888), abs=1e-4)


def test_what_is_hard_for_both_is_no_difference() -> None:
    """Documents of very different losses, each 0.1 nats a token lower: paired, that is certain."""
    counts = [10] * 6
    high = [10.0 * level for level in (1, 9, 2, 8, 3, 7)]
    low = [total - 1.0 for total in high]
    paired = difference(ratio(low, counts), ratio(high, counts))
    assert (paired.low, paired.high) == pytest.approx((-0.1, -0.1))
    alone = difference(ratio(low, counts), ratio(high[:-1], counts[:-1]))
    assert alone.low < -1 < 1 < alone.high


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_no_number_of_equal_answers_is_certain(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = zip(*pairs, strict=True)
    measure = difference(share(ours), share(theirs))
    assert measure.low < measure.high
    opposite = difference(share(theirs), share(ours))
    assert (measure.low, measure.value) == pytest.approx((-opposite.high, -opposite.value))
    more = difference(share(ours * 4), share(theirs * 4))
    assert more.high - more.low < measure.high - measure.low


@pytest.mark.parametrize(("n", "m"), [(60, 60), (60, 90)])
def test_an_interval_of_95_percent_holds_the_truth_about_as_often(n: int, m: int) -> None:
    """Shares of 0.9 and 0.7 with a shared half: 1,000 draws; 0.95 ± 3 standard errors of 0.007."""
    rng = Random(0)
    held = 0
    for _ in range(1000):
        shared = [rng.random() for _ in range(max(n, m))]
        ours = [u < 0.9 for u in shared[:n]]
        theirs = [(u if rng.random() < 0.5 else rng.random()) < 0.7 for u in shared[:m]]
        measure = difference(share(ours), share(theirs))
        held += measure.low <= 0.2 <= measure.high
    # What is paired but compared as unpaired (m > n) gets too wide an interval, never too narrow.
    assert 0.93 <= held / 1000 <= (0.97 if n == m else 1)


# A real model and real data

SOURCES: dict[str, dict[str, Any]] = {
    "maths": {"kind": "procedural", "generator": "maths", "documents": 60, "holdout": 0.3},
    "chat": {
        "kind": "procedural",
        "generator": "chat",
        "documents": 60,
        "format": "chat",
        "holdout": 0.3,
    },
    "pairs": {
        "kind": "procedural",
        "generator": "pairs",
        "documents": 30,
        "format": "preference",
        "holdout": 0.3,
    },
}


@pytest.fixture(scope="module")
def heldout(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Shard]:
    cache = tmp_path_factory.mktemp("data")
    shards = {}
    for name, raw in SOURCES.items():
        source: Any = TypeAdapter(Source).validate_python(raw)
        folder = prepare(name, source, tokenizer, cache, seed=0).folder
        shards[name] = Shard.open(folder, split="heldout")
    return shards


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    source: Any = TypeAdapter(Source).validate_python(SOURCES["maths"])
    texts = [document.text or "" for document in documents(source, seed=0)]
    return Tokenizer.train(texts, 400, default_template("Tiny", None, None))


def make_model(tokenizer: Tokenizer, context: int = 1024) -> Transformer:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        layers=2,
        hidden=32,
        heads=2,
        kv_heads=1,
        head_dim=16,
        ffn=48,
        uses_rope=nope_pattern(2, 2),
        rope_theta=1e4,
        context=context,
    )
    model = Transformer(config)
    model.init_weights(0)
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for name, context in (("short", 512), ("long", 1024)):
        checkpoint.save_model(make_model(tokenizer, context), tokenizer, folder / name)
    return {name: folder / name for name in ("short", "long")}


def stage(*claims: dict[str, Any], **changes: Any) -> EvalStage:
    return EvalStage.model_validate(
        {"kind": "eval", "items": 6, "documents": 5, "max_tokens": 8, "samples": 2}
        | {"claims": list(claims)}
        | changes
    )


def claim(metric: str, model: str = "long", **changes: Any) -> dict[str, Any]:
    judged = changes if {"at_least", "at_most"} & set(changes) else changes | {"at_least": 0.01}
    return {"claim": "It can", "metric": metric, "model": model} | judged


def test_a_score_card_of_every_metric(models: dict[str, Path], heldout: dict[str, Shard]) -> None:
    formats = {name: shard.format for name, shard in heldout.items()}
    metrics = known_metrics(formats)
    assert len(metrics) == 2 + 2 * len(TASKS) + 6 + 2 + 2
    told: list[str] = []
    card = evaluate(
        stage(*(claim(metric) for metric in metrics)),
        models,
        heldout,
        seed=0,
        progress=lambda what, done, of, detail: told.append(f"{what} {done}/{of} {detail}"),
    )
    assert card.pop("panel") is None
    assert json.loads(json.dumps(card)) == card
    assert list(card) == ["claims", "metrics", "samples", "answers", "environment"]
    assert list(card["metrics"]) == ["long"]
    assert list(card["metrics"]["long"]) == metrics
    for row, metric in zip(card["claims"], metrics, strict=True):
        assert (row["metric"], row["model"]) == (metric, "long")
        assert row["low"] <= row["value"] <= row["high"]
        assert row | card["metrics"]["long"][metric] == row
    numbers = card["metrics"]["long"]
    # An untrained model knows nothing: log(vocabulary) nats a token.
    assert numbers["loss/maths"]["value"] == pytest.approx(math.log(400), abs=0.1)
    assert numbers["loss/maths"]["n"] == 5
    assert numbers["accuracy/sum/think"] == numbers["accuracy/sum/think"] | {"value": 0, "n": 6}
    assert numbers["adherence/think"]["value"] == 0
    assert numbers["tool_json"]["n"] == 12  # both modes
    assert told[0] == f"measuring 0/{len(metrics)} loss/maths of long"
    assert len(told) == len(metrics)
    assert [s["mode"] for s in card["samples"]] == ["think", "no_think"] * 2
    assert len({s["question"] for s in card["samples"]}) == 2


def test_the_same_seed_gives_the_same_card(
    models: dict[str, Path], heldout: dict[str, Shard]
) -> None:
    wanted = stage(claim("loss/maths"), claim("accuracy/sum/think"))
    assert evaluate(wanted, models, heldout, 3) == evaluate(wanted, models, heldout, 3)


def test_each_model_is_loaded_once(
    models: dict[str, Path], heldout: dict[str, Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Path] = []

    def load(path: Path, dtype: str | None) -> Engine:
        loaded.append(path)
        return load_engine(path, dtype)

    monkeypatch.setattr("smollm3.eval.scorecard.load_engine", load)
    difference = {"baseline_model": "short", "compare": "difference", "at_most": 0}
    card = evaluate(
        stage(claim("loss/maths", **difference), claim("loss/chat", **difference), samples=0),
        models,
        heldout,
        0,
    )
    assert sorted(loaded) == sorted(models.values())
    assert card["samples"] == []


def test_models_of_different_context_read_the_same_tokens(
    models: dict[str, Path], heldout: dict[str, Shard]
) -> None:
    """Same weights, so the same loss although one could read more of each document."""
    suites = [
        Suite(load_engine(models[name]), stage(claim("loss/maths")), heldout, 0, window=40)
        for name in ("short", "long")
    ]
    short, long = (suite.measure("loss/maths") for suite in suites)
    assert short == long
    whole = Suite(load_engine(models["long"]), suites[0].stage, heldout, 0, window=1024)
    assert whole.measure("loss/maths").value != short.value


def test_loss_is_mean_nll_of_the_tokens_that_are_trained_on(
    models: dict[str, Path], heldout: dict[str, Shard]
) -> None:
    """Recomputed one document at a time through `score`."""
    engine = load_engine(models["long"])
    suite = Suite(engine, stage(claim("loss/chat")), heldout, 0, window=1024)
    for name in ("maths", "chat"):
        shard = heldout[name]
        total = tokens = 0.0
        for i in range(5):
            ids = shard.tokens[shard.document(i)].tolist()
            mask = (
                [1] * len(ids)
                if shard.masks is None
                else [int(m) & 1 for m in shard.masks[shard.document(i)]]
            )
            scores = engine.score(ids)
            total -= sum(s for s, m in zip(scores, mask[1:], strict=True) if m)
            tokens += sum(mask[1:])
        assert suite.measure(f"loss/{name}").value == pytest.approx(total / tokens, rel=1e-5)


def test_too_few_held_out_documents(models: dict[str, Path], heldout: dict[str, Shard]) -> None:
    with pytest.raises(UserError, match=r"sources.maths: fewer than 2 held-out documents"):
        evaluate(stage(claim("loss/maths"), documents=1), models, heldout, 0)
    suite = Suite(load_engine(models["long"]), stage(claim("loss/maths")), heldout, 0, window=4)
    with pytest.raises(UserError, match="fewer than 2 held-out pairs of at most 4 tokens"):
        suite.measure("preference/margin")


# A model whose answers are written by the test


class Scripted:
    """Stands in for the engine: answers each held-out item by a function of the item."""

    def __init__(self, tokenizer: Tokenizer, n: int, answer: Callable[[Any, str], str]) -> None:
        self.tokenizer = tokenizer
        self.config = SimpleNamespace(context=10_000)
        self.written = {}
        for task in TASKS:
            for item in items(task, n, 0, held_out=True):
                self.written[item.question] = item
        self.answer = answer

    together = staticmethod(nullcontext)

    def submit(self, prompt: list[int], params: Any, **options: Any) -> Generation:
        assert params.temperature == 0
        text = self.tokenizer.decode(prompt)
        item = next(i for question, i in self.written.items() if question in text)
        mode = "no_think" if "<think>" in text.rpartition("<|im_start|>")[2] else "think"
        answer = self.tokenizer.encode_markup(self.answer(item, mode))
        ended = answer[-1:] == [self.tokenizer.stop_ids[0]]
        shown = self.tokenizer.decode(answer, skip_special=True)
        return said([shown], "stop" if ended else "length")


def perfect(item: Any, mode: str) -> str:
    think = f"<think>\n{item.reasoning}\n</think>\n" if mode == "think" else ""
    call = f"<tool_call>\n{json.dumps(item.tool_call)}\n</tool_call>" if item.tool_call else ""
    return f"{think}{item.answer}{call}<|im_end|>"


def scripted(tokenizer: Tokenizer, answer: Callable[[Any, str], str], n: int = 6) -> Suite:
    engine: Any = Scripted(tokenizer, n, answer)
    return Suite(engine, stage(claim("tool_json")), {}, 0, window=1024)


def value(suite: Suite, metric: str) -> float:
    return suite.measure(metric).value


def test_perfect_answers_score_one(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, perfect)
    for metric in known_metrics({}):
        assert suite.measure(metric).value == 1, metric
    for sample in suite.samples():
        assert sample["right"]
        assert (sample["reasoning"] is not None) == (sample["mode"] == "think")


def test_a_question_that_does_not_fit_is_not_answered(
    models: dict[str, Path], tokenizer: Tokenizer
) -> None:
    """Long questions are wrong, the others are still asked."""
    suite = scripted(tokenizer, perfect)
    asked = items("tool", 6, 0, held_out=True)
    lengths = [
        len(
            tokenizer.render(
                [{"role": "user", "content": item.question}], tools=list(item.tools), date=DATE
            ).ids
        )
        for item in asked
    ]
    limit = sorted(lengths)[3]
    suite.engine.config.context = limit  # type: ignore[misc]
    answers = suite.answers("tool", "think", 6)
    assert [a.right for a in answers] == [length < limit for length in lengths]
    assert any(a.right for a in answers)
    assert not all(a.adheres for a in answers)


def test_samples_of_tools_show_the_call(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, perfect)
    suite.stage = stage(claim("tool_json"), samples=len(TASKS))
    samples = suite.samples()
    assert len(samples) == 2 * len(TASKS)
    [call] = samples[-1]["tool_calls"]
    assert samples[-1]["expected"].startswith(f"{call['name']}(")


def test_an_answer_in_the_wrong_mode(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, lambda item, mode: perfect(item, "think"))
    assert value(suite, "adherence/think") == 1
    assert value(suite, "adherence/no_think") == 0
    assert (value(suite, "obeys/think"), value(suite, "obeys/no_think")) == (1, 0)
    assert value(suite, "accuracy/sum/no_think") == 1  # right, if not as asked


def test_an_answer_that_never_ends_does_not_adhere(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, lambda item, mode: perfect(item, mode).removesuffix("<|im_end|>"))
    assert value(suite, "adherence/think") == value(suite, "adherence/no_think") == 0
    assert value(suite, "obeys/think") == value(suite, "obeys/no_think") == 1  # so far it is right


def test_nearly_right_is_wrong(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, lambda item, mode: "1" + perfect(item, "no_think"))
    assert value(suite, "accuracy/sum/no_think") == 0


@pytest.mark.parametrize(
    ("change", "valid", "right"),
    [
        (lambda call: call, 1, 1),
        (lambda call: call | {"name": "unheard_of"}, 0, 0),
        (lambda call: call | {"arguments": {}}, 1, 0),
        (lambda call: None, 0, 0),
    ],
)
def test_tool_calls(
    tokenizer: Tokenizer, change: Callable[[Any], Any], valid: int, right: int
) -> None:
    def answer(item: Any, mode: str) -> str:
        call = change(item.tool_call)
        return (
            f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>" if call else "No.<|im_end|>"
        )

    suite = scripted(tokenizer, answer)
    assert value(suite, "tool_json") == valid
    assert value(suite, "tool_right") == right


def test_two_calls_are_not_the_one_that_was_asked_for() -> None:
    item = items("tool", 1, 0, held_out=True)[0]
    assert item.tool_call is not None
    call = ToolCall(item.tool_call["name"], item.tool_call["arguments"])
    once = Answer(item, "think", "", Message("assistant", tool_calls=(call,)), True)
    twice = Answer(item, "think", "", Message("assistant", tool_calls=(call, call)), True)
    assert (once.right, twice.right) == (True, False)


def test_questions_are_held_out(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, perfect)
    for mode in MODES:
        assert all(is_held_out(a.item.question) for a in suite.answers("sum", mode, 6))


def test_margins_and_the_share_of_pairs_whose_chosen_answer_is_likelier(
    heldout: dict[str, Shard],
) -> None:
    """With a log-probability of -n at place n the shorter answer is likelier."""

    class ByPlace:
        def score_batch(self, batch: list[list[int]], firsts: list[int]) -> list[list[float]]:
            assert min(firsts) > 1  # a question has no logits
            return [[-p for p in range(n, len(ids))] for n, ids in zip(firsts, batch, strict=True)]

    shard = heldout["pairs"]
    engine: Any = ByPlace()
    suite = Suite(engine, stage(claim("loss/maths"), documents=50), heldout, 0, window=10_000)
    masks = [shard.masks[shard.document(i)] & 1 for i in range(shard.documents)]  # type: ignore[index]
    lengths = [int(mask.nonzero()[0].sum()) for mask in masks]
    margins = [r - c for c, r in zip(lengths[::2], lengths[1::2], strict=True)]
    share, margin = (suite.measure(f"preference/{name}") for name in ("accuracy", "margin"))
    assert (share.value, share.n) == (sum(m > 0 for m in margins) / len(margins), len(margins))
    assert margin.value == pytest.approx(sum(margins) / len(margins))
    assert margin.n == share.n
    # Each pair is compared with itself: what a better model adds to all of them is no doubt.
    better = ratio([m + 0.5 for m in margins], [1] * len(margins))
    assert difference(better, margin).low == pytest.approx(0.5)


# Claims


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("loss/math", "unknown metric 'loss/math'; did you mean 'loss/maths'?"),
        ("acuracy/sum/think", "did you mean 'accuracy/sum/think'?"),
        ("adherence/thinking", "did you mean 'adherence/think'?"),
        ("loss/pairs", "unknown metric 'loss/pairs'"),
    ],
)
def test_an_unknown_metric_names_the_nearest(metric: str, message: str) -> None:
    formats = {"maths": "text", "pairs": "preference"}
    with pytest.raises(UserError) as error:
        check_claims(stage(claim(metric)), ["long"], formats)
    assert message in str(error.value)
    assert "claim 'It can'" in str(error.value)


def test_margin_needs_preference_data_and_claims_need_their_models() -> None:
    with pytest.raises(UserError, match="unknown metric 'preference/margin'"):
        check_claims(stage(claim("preference/margin")), ["long"], {"maths": "text"})
    with pytest.raises(UserError, match="unknown model 'longer'; there are short, long"):
        check_claims(stage(claim("tool_json", "longer")), ["short", "long"], {})
    wrong = claim("tool_json", baseline_metric="loss/x", compare="ratio", at_least=2)
    with pytest.raises(UserError, match="unknown metric 'loss/x'"):
        check_claims(stage(wrong), ["long"], {})


def hits(value: float, n: int = 200) -> Measure:
    return share([i < round(value * n) for i in range(n)])


def judged(measured: Measure, baseline: Measure, **bound: Any) -> dict[str, Any]:
    numbers = {"m": {"tool_json": measured}, "base": {"tool_json": baseline}}
    compared = {} if bound.get("compare", "value") == "value" else {"baseline_model": "base"}
    given = Claim(claim="c", metric="tool_json", model="m", **(compared | bound))
    row = _judged(given, numbers, {"tool_json": 0.1})
    assert row["baseline"] == (baseline.value if compared else None)
    assert (row["value"], row["n"]) == (measured.value, measured.n)
    assert bool(row["why"]) == (row["verdict"] == "not shown")
    return row


@pytest.mark.parametrize(
    ("measured", "baseline", "bound", "verdict", "target"),
    [
        (0.97, 0, {"at_least": 0.9}, "holds", "≥ 90.0%"),
        (0.92, 0, {"at_least": 0.9}, "not shown", "≥ 90.0%"),
        (0.88, 0, {"at_least": 0.9}, "not shown", "≥ 90.0%"),
        (0.8, 0, {"at_least": 0.9}, "fails", "≥ 90.0%"),
        (0.04, 0, {"at_most": 0.1}, "holds", "≤ 10.0%"),
        (0.2, 0, {"at_most": 0.1}, "fails", "≤ 10.0%"),
        (0.9, 0.5, {"at_least": 0.25, "compare": "difference"}, "holds", "≥ baseline + 25.0%"),
        (0.75, 0.5, {"at_least": 0.25, "compare": "difference"}, "not shown", "≥ baseline + 25.0%"),
        (0.3, 0.75, {"at_most": -0.25, "compare": "difference"}, "holds", "≤ baseline - 25.0%"),
        (0.5, 0.5, {"at_most": 0, "compare": "difference"}, "not shown", "≤ baseline"),
        (0.5, 0.5, {"at_least": 0, "compare": "difference"}, "not shown", "≥ baseline"),
        (0.9, 0.3, {"at_least": 2, "compare": "ratio"}, "holds", "≥ 2 x baseline"),
        (0.6, 0.3, {"at_least": 2, "compare": "ratio"}, "not shown", "≥ 2 x baseline"),
        (0.3, 0.3, {"at_least": 2, "compare": "ratio"}, "fails", "≥ 2 x baseline"),
        # A baseline of nothing: some more is more, the same nothing is not.
        (0.3, 0, {"at_least": 2, "compare": "ratio"}, "holds", "≥ 2 x baseline"),
        (0, 0, {"at_least": 2, "compare": "ratio"}, "not shown", "≥ 2 x baseline"),
        # Better than the baseline, but no better than the commonest answer (10%).
        (0.09, 0, {"at_least": 0, "compare": "difference"}, "not shown", "≥ baseline"),
    ],
)
def test_judging(
    measured: float, baseline: float, bound: dict[str, Any], verdict: str, target: str
) -> None:
    row = judged(hits(measured), hits(baseline), **bound)
    assert (row["verdict"], row["target"]) == (verdict, target)


def test_a_loss_above_the_uniform_guess_shows_nothing() -> None:
    """The merge of a model that lost long documents: lower than before, and still noise."""
    row = {"claim": "c", "metric": "loss/x", "model": "m", "baseline_model": "base"}
    given = Claim(**row, compare="difference", at_most=0)
    losses = {level: ratio([level * 9, level * 11], [9, 11]) for level in (5.0, 7.5, 8.0)}

    def verdict(measured: float) -> tuple[str, str]:
        numbers = {"m": {"loss/x": losses[measured]}, "base": {"loss/x": losses[8.0]}}
        judged = _judged(given, numbers, {"loss/x": math.log(1024)})
        return judged["verdict"], judged["why"]

    assert verdict(5.0) == ("holds", "")
    assert verdict(7.5) == (
        "not shown",
        "no better than a uniform guess over the vocabulary: 6.931",
    )


def test_chance(tokenizer: Tokenizer) -> None:
    suite = scripted(tokenizer, perfect)
    suite.engine.config.vocab_size = 400
    assert suite.chance("loss/maths") == math.log(400)
    answers = [item.answer for item in items("mod", suite.stage.items, 0, held_out=True)]
    assert suite.chance("accuracy/mod/think") == max(map(answers.count, answers)) / len(answers)
    assert suite.chance("preference/accuracy") == 0.5
    assert suite.chance("preference/margin") is None
    assert suite.chance("tool_json") == suite.chance("adherence/think") == 0


def test_claims_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="exactly one of at_least and at_most"):
        Claim(claim="c", metric="tool_json", model="m", at_least=1, at_most=2)
    with pytest.raises(ValidationError, match="goes with a baseline"):
        Claim(claim="c", metric="tool_json", model="m", at_least=1, compare="ratio")
    for bound in ({"at_least": 0}, {"at_most": 1}):
        with pytest.raises(ValidationError, match="every model reaches this"):
            Claim(claim="c", metric="tool_json", model="m", **bound)
    with pytest.raises(ValidationError, match="every model reaches this"):
        Claim(claim="c", metric="loss/x", model="m", at_least=0)
    assert Claim(claim="c", metric="loss/x", model="m", at_most=1).at_most == 1


def test_losses_and_shares_are_shown_differently() -> None:
    assert show("loss/maths", 1.42749) == "1.427"
    assert show("accuracy/sum/think", 0.715) == "71.5%"


def test_the_table_for_the_terminal() -> None:
    row = {"claim": "It adds", "metric": "accuracy/sum/think", "model": "sft", "value": 0.715}
    row |= {"low": 0.65, "high": 0.77, "n": 200, "baseline": 0.15, "target": "≥ 2 x baseline"}
    row["why"] = ""
    covered = {"verdict": "not shown", "why": "the interval covers the target"}
    others = [row | {"verdict": "fails", "baseline": None}, row | covered]
    card = {"claims": [row | {"verdict": "holds"}, *others]}
    out = io.StringIO()
    Console(file=out, width=140).print(table(card))
    text = out.getvalue()
    assert "1 of 3 claims hold, 1 is not shown, 1 fails" in text
    assert "accuracy/sum/think of sft" in text
    assert "65.0% to 77.0%" in text
    assert "the interval covers the target" in text
    assert text.count("15.0%") == 2
    assert text.count("✓") == text.count("✗") == text.count("–") == 1
