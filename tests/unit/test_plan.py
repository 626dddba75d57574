"""The plan against published figures, against autograd's own memory, and by hand."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from smollm3 import plan, units
from smollm3.errors import UserError
from smollm3.recipe import load_recipe
from smollm3.recipe.schema import Recipe
from smollm3.train.layout import Layout
from smollm3.train.losses import LOGITS
from smollm3.train.spec import LearningRate


@pytest.fixture(scope="module")
def big() -> dict[str, plan.StageCost]:
    return {cost.name: cost for cost in plan.stage_costs(load_recipe("smollm3-3b"))}


def test_published_size_batch_and_tokens(big: dict[str, plan.StageCost]) -> None:
    config = big["stage1"].model
    assert config is not None
    assert config.parameters == 3_075_098_624
    assert plan.kv_bytes_per_token(config) == 73_728
    for stage in ("stage1", "stage2", "decay", "long_a", "long_b"):
        assert big[stage].tokens_per_step == 2_359_296
    pretraining = sum(big[s].tokens or 0 for s in ("stage1", "stage2", "decay"))
    assert pretraining == 4_720_000 * 2_359_296
    assert pretraining / 1e12 == pytest.approx(11.136, abs=1e-3)


def test_flops_are_six_for_each_weight_and_token_plus_attention(
    big: dict[str, plan.StageCost],
) -> None:
    cost = big["stage1"]
    assert cost.model is not None
    assert cost.tokens is not None
    assert cost.flops is not None
    weights = 6 * 3_075_098_624 * cost.tokens
    # 12·L·H·D·T for scores and values, forward and backward; half of it under the causal mask
    attention = 6 * 36 * 16 * 128 * 4096 * cost.tokens
    assert cost.flops == pytest.approx(weights + attention, rel=1e-12)


def test_pretraining_takes_24_days_on_384_h100(big: dict[str, plan.StageCost]) -> None:
    """11.136T tokens / (384 x 14,000 tokens a second) = 23.97 days."""
    seconds = sum(big[s].seconds or 0 for s in ("stage1", "stage2", "decay"))
    assert seconds / 86_400 == pytest.approx(23.97, rel=0.05)
    assert "384 x H100" in big["stage1"].basis


def test_more_devices_take_less_time() -> None:
    recipe = load_recipe("smollm3-3b")
    one, two = (
        plan.stage_costs(recipe, hardware=plan.Hardware(devices=n))[1].seconds for n in (8, 16)
    )
    assert one is not None
    assert two == pytest.approx(one / 2)


def test_weights_gradients_and_moments_are_16_bytes_a_parameter(
    big: dict[str, plan.StageCost],
) -> None:
    memory = big["stage1"].memory
    assert memory is not None
    assert big["stage1"].layout == Layout(replicate=192, tp=2)
    assert memory.weights + memory.gradients + memory.moments == 16 * 3_075_098_624 / 2
    # 2^27 logits at once over two ranks x (2 + 4 + 4 + 4) bytes
    assert memory.working == LOGITS * 14 / 2


def test_pretraining_is_planned_as_published_and_long_context_on_its_96_gpus() -> None:
    gpus = plan.Hardware(devices=96)
    costs = {c.name: c for c in plan.stage_costs(load_recipe("smollm3-3b"), hardware=gpus)}
    for name in ("long_a", "long_b"):
        layout = costs[name].layout
        assert layout is not None
        assert layout.size == 96


def test_a_split_that_cannot_work_is_refused_with_the_nearest_plan() -> None:
    gpus = plan.Hardware(devices=8)
    for parallel, says in (
        ("tp=8", r"tp 8 does not divide.*nearest plan that works: .* on 8 H100"),
        ("shard=8", r"long_a.*parallel: shard 8 needs .* GB of the 80 GB.*recompute full"),
    ):
        recipe = load_recipe("smollm3-3b", [f"parallel.{parallel}"])
        with pytest.raises(UserError, match=says):
            plan.stage_costs(recipe, hardware=gpus)


def small(**changes: Any) -> Recipe:
    train = {
        "kind": "train",
        "mixture": {"text": 1},
        "context": 32,
        "batch": 4,
        "steps": 10,
        "lr": {"peak": 1e-3},
    }
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"layers": 1, "hidden": 16, "heads": 2, "kv_heads": 1, "ffn": 32},
            "sources": {
                "text": {"kind": "procedural", "generator": "web", "documents": 500},
                "chat": {
                    "kind": "procedural",
                    "generator": "chat",
                    "documents": 60,
                    "format": "preference",
                },
                "far": {"kind": "hub", "repo": "someone/something"},
            },
            "stages": {
                "tokenizer": {"kind": "tokenizer", "vocab": 300, "mixture": {"text": 1}},
                "train": train | changes,
            },
        }
    )


def cost_of(sizes: dict[str, tuple[int, int]] | None = None, **changes: Any) -> plan.StageCost:
    return plan.stage_costs(small(**changes), sizes=sizes)[1]


def test_a_small_stage_is_timed_here() -> None:
    cost = cost_of()
    assert cost.basis == "timed here"
    assert cost.seconds is not None
    assert 0 < cost.seconds < 60
    assert (cost.steps, cost.tokens_per_step, cost.tokens, cost.estimated) == (10, 128, 1280, False)


def test_tokens_round_up_to_whole_steps() -> None:
    assert cost_of(steps=None, tokens=1281).steps == 11


def test_epochs_are_estimated_until_the_data_are_prepared() -> None:
    guess = cost_of(steps=None, epochs=2)
    assert guess.estimated
    assert guess.steps == math.ceil(2 * 500 * plan.TOKENS_PER_DOCUMENT / 128)
    exact = cost_of(sizes={"text": (500, 12_800)}, steps=None, epochs=2)
    assert (exact.steps, exact.estimated) == (200, False)
    unknown = cost_of(steps=None, epochs=2, mixture={"far": 1})
    assert (unknown.steps, unknown.tokens, unknown.seconds) == (None, None, None)
    pairs = cost_of(steps=None, epochs=1, mixture={"chat": 1}, loss="dpo")
    assert (pairs.steps, pairs.tokens_per_step) == (
        15,
        256,
    )  # 60 pairs / 4; 4 pairs x 2 x 32 tokens


def test_files_on_this_machine_give_an_epoch(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_text("x" * 5_120)
    recipe = small(steps=None, epochs=1).model_dump(by_alias=True)
    recipe["sources"]["text"] = {"kind": "text", "files": [str(tmp_path / "*.txt")]}
    cost = plan.stage_costs(Recipe.model_validate(recipe))[1]
    assert (cost.steps, cost.estimated) == (10, True)  # 5,120 / 4 bytes a token / 128 a step


def test_micro_batches_and_processes_divide_the_rows_held_at_once() -> None:
    whole, parts = cost_of(), cost_of(micro_batch=1)
    assert whole.memory is not None
    assert parts.memory is not None
    assert whole.memory.activations == 4 * parts.memory.activations
    assert whole.flops == parts.flops


def test_a_parent_that_is_not_here_has_unknown_cost() -> None:
    cost = cost_of(**{"from": "someone/model"})
    assert (cost.model, cost.memory, cost.flops) == (None, None, None)
    assert "not on this machine" in cost.note


def shown(recipe: Recipe) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(plan.render(plan.stage_costs(recipe)))
    return out.getvalue()


def test_the_table_shows_every_stage_and_what_it_rests_on() -> None:
    text = shown(load_recipe("smollm3-3b"))
    for words in ("stage1", "8.14T", "2,359,296", "2e-4, 2,000 warm-up, constant", "384 x H100"):
        assert words in text
    for words in ("3,075,098,624 parameters", "73,728 bytes", "0.9 apo_soup + 0.1 mid"):
        assert words in text


def test_the_table_marks_what_is_guessed() -> None:
    assert "≈ 391" in shown(small(steps=None, epochs=1))
    assert "≈ ?" in shown(small(steps=None, epochs=1, mixture={"far": 1}))
    assert "≈" not in shown(small())


def test_rates_are_written_as_in_a_recipe() -> None:
    cosine = LearningRate(peak=2e-5, warmup=34, decay="cosine", end=0.1)
    assert plan.describe_rate(cosine) == "2e-5, 34 warm-up, cosine to 2e-6"
    wsd = LearningRate(peak=0.01, decay="linear", decay_steps=600)
    assert plan.describe_rate(wsd) == "0.01, linear to 0 over the last 600"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (units.count(950), "950"),
        (units.count(999.7), "1k"),
        (units.count(1_234_567), "1.23M"),
        (units.count(11.136e12), "11.1T"),
        (units.count(2.5e18), "2,500,000T"),
        (units.count(None), "?"),
        (units.size(6_150_197_248), "6.15 GB"),
        (units.duration(8.46), "8.5s"),
        (units.duration(59.96), "1m 00s"),
        (units.duration(151), "2m 31s"),
        (units.duration(11_100), "3h 05m"),
        (units.duration(24 * 86_400 + 7_000), "24d 2h"),
        (units.duration(None), "?"),
        (units.rate(2.5e-5), "2.5e-5"),
        (units.rate(0), "0"),
    ],
)
def test_units(said: str, expected: str) -> None:
    assert said == expected


@given(st.floats(min_value=1e-3, max_value=1e15))
def test_counts_keep_three_digits(n: float) -> None:
    text = units.count(n)
    scale = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert math.isclose(float(text.rstrip("kMBT").replace(",", "")) * scale, n, rel_tol=6e-3)


def test_step_time_has_a_loss_and_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed step is forward and backward over all rows at once."""
    seen: list[tuple[int, ...]] = []
    original = F.cross_entropy

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return original(logits, targets)

    monkeypatch.setattr(F, "cross_entropy", watched)
    cost_of(micro_batch=2)
    assert seen == [(64, 300), (64, 300)]
