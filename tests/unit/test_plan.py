"""The plan against published figures, against autograd's own memory, and by hand."""

from __future__ import annotations

import gzip
import io
import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from smollm3 import plan, units
from smollm3.checkpoint.config import to_json
from smollm3.data.spec import FileSource, Step
from smollm3.errors import UserError
from smollm3.files import write_json
from smollm3.model import ModelConfig, Transformer, nope_pattern
from smollm3.plan import timing
from smollm3.plan.costs import MEASURED
from smollm3.recipe import load_recipe
from smollm3.recipe.schema import Cluster, Recipe
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
        plan.stage_costs(recipe, hardware=plan.Hardware.of("a100", n))[1].seconds for n in (8, 16)
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
    # 2^27 logits at once over two ranks, four times in float32; the head, its gradient and two
    # blocks in bfloat16.
    head = 128_256 * 2048
    block = (3_075_098_624 - head) // 36
    assert memory.head == LOGITS * 16 / 2 + 2 * (2 * head + 2 * block) / 2


def test_pretraining_is_planned_as_published_and_long_context_on_its_96_gpus() -> None:
    gpus = plan.Hardware.of("h100", 96)
    costs = {c.name: c for c in plan.stage_costs(load_recipe("smollm3-3b"), hardware=gpus)}
    for name in ("long_a", "long_b"):
        layout = costs[name].layout
        assert layout is not None
        assert layout.size == 96


def test_a_split_that_cannot_work_is_refused_with_the_nearest_plan() -> None:
    gpus = plan.Hardware.of("h100", 8)
    for parallel, says in (
        ("tp=8", r"tp 8 does not divide.*nearest plan that works: .* on 8 H100"),
        (
            "shard=4",
            r"long_a.parallel: replicate 2 x shard 4 needs .* of the 80 GB.*micro_batch 1 on 8 H100",
        ),
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
                    "generator": "pairs",
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


def test_a_small_stage_is_measured_here() -> None:
    cost = cost_of()
    assert cost.basis == MEASURED
    assert cost.seconds is not None
    assert 0 < cost.seconds < 60
    assert cost.preparation > 0
    assert (cost.steps, cost.tokens_per_step, cost.tokens, cost.estimated) == (10, 128, 1280, False)


def test_a_pairs_side_is_as_wide_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 tokens of 10 pairs: 20 columns a side, of a context of 32, where that is known."""
    wide: list[tuple[int, int]] = []

    def seconds(config: ModelConfig, rows: int, context: int, **more: Any) -> float:
        wide.append((context, more["document"]))
        return 1.0

    monkeypatch.setattr(timing, "step_seconds", seconds)
    pairs = {"mixture": {"chat": 1}, "loss": "dpo"}
    for sizes in (None, {"chat": (10, 400)}, {"chat": (10, 4000)}):
        cost_of(sizes, **pairs)
    cost_of({"text": (10, 400)})
    assert wide == [(32, 32), (20, 20), (32, 32), (32, plan.TOKENS_PER_DOCUMENT)]


def test_the_recipes_own_hardware_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("smollm3-3b", ["hardware.gpus=8", "hardware.gpu=a100"])
    cost = plan.stage_costs(recipe)[1]
    assert cost.basis.startswith("8 x A100, 312 TFLOPS each")
    assert get_args(Cluster.model_fields["gpu"].annotation) == tuple(plan.GPUS)
    # Without any, this machine's GPUs; a GPU that is not known is measured like a CPU.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, expected in {
        "NVIDIA H100 80GB HBM3": "2 x H100",
        "NVIDIA L40S": "2 x L40S",
        "NVIDIA GeForce RTX 4090": "2 x RTX-4090",
        "NVIDIA A100-SXM4-80GB": "2 x A100",
        "Some GPU of 2031": None,
    }.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index, name=name: name)
        here = plan.Hardware.here()
        assert (here and str(here).split(",")[0]) == expected


def test_threads_are_those_of_the_recipe_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    hidden = Transformer.hidden

    def watched(self: Transformer, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return hidden(self, *args, **kwargs)

    monkeypatch.setattr(Transformer, "hidden", watched)
    before = torch.get_num_threads()
    recipe = small().model_copy(update={"threads": 2})
    plan.stage_costs(recipe)
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_more_processes_than_cores_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing.os, "cpu_count", lambda: 2)
    assert [timing.slowdown(p, t) for p, t in ((1, 1), (2, 1), (2, 2), (4, 3))] == [1, 1, 2, 6]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_large_step_follows_from_one_product(
    big: dict[str, plan.StageCost], bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """6 FLOPs for each of 2048 x 1024 weights and 32 tokens in 2 s of the processor: 201 MFLOP/s;
    two threads do twice that."""
    monkeypatch.setattr(timing, "_processor_seconds", lambda work: (work(), 2.0)[1])
    config = big["stage1"].model
    assert config is not None
    seconds = timing.step_seconds(config, 1, 64, bfloat16=bfloat16, threads=2, document=100)
    flops = config.flops_per_token(64) * 64
    assert seconds == pytest.approx(flops * 2 / (6 * 2048 * 1024 * 32) / 2)


def test_data_that_are_made_here_are_timed_by_a_sample() -> None:
    sources = small().sources
    few = timing.preparation_seconds("text", sources["text"], 0)
    many = sources["text"].model_copy(update={"documents": 50_000})
    more = timing.preparation_seconds("text", many, 0)
    assert few is not None
    assert more is not None
    assert more > 10 * few > 0
    assert timing.preparation_seconds("far", sources["far"], 0) is None


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
    assert unknown.unknown == ("size of far: known when the data are prepared",)
    assert unknown.untimed == ("far",)
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


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    recipe = small(steps=None, epochs=1).model_dump(by_alias=True)
    recipe["sources"]["text"] = {"kind": "text", "files": [str(tmp_path / "*.txt")]}
    cost = plan.stage_costs(Recipe.model_validate(recipe))[1]
    assert (cost.steps, cost.unknown) == (None, ("no file of text is there yet",))


def test_a_parent_that_cannot_be_had_has_unknown_cost() -> None:
    cost = cost_of(**{"from": "someone/model"})
    assert (cost.model, cost.memory, cost.flops) == (None, None, None)
    assert "someone/model" in cost.unknown[0]
    text = shown(small(**{"from": "someone/model"}))
    assert "not known: someone/model" in text
    assert re.search(r"all +\? +\? +\?", text)


def test_parents_are_sized_from_their_config_wherever_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub parent by its config.json alone; the published ones without the Hub too."""
    asked: list[list[str]] = []

    def download(repo: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        if repo != "someone/model":
            raise OSError("no network")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = ModelConfig(
        vocab_size=300,
        layers=2,
        hidden=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn=48,
        uses_rope=nope_pattern(2, 2),
        rope_theta=1e4,
        context=64,
    )
    write_json(tmp_path / "config.json", to_json(config, "float32"))
    assert cost_of(**{"from": "someone/model@v2"}).model == config
    assert cost_of(**{"from": "smollm2-135m"}).model.hidden == 576  # type: ignore[union-attr]
    published = cost_of(**{"from": "HuggingFaceTB/SmolLM3-3B"}).model
    assert published is not None
    assert published.parameters == 3_075_098_624
    assert asked == [["config.json"], ["config.json"]]


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


def test_the_table_marks_what_is_estimated() -> None:
    assert "≈ 391" in shown(small(steps=None, epochs=1))
    assert re.search(r"train +\? +\? +128", shown(small(steps=None, epochs=1, mixture={"far": 1})))
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


def test_step_time_has_a_loss_a_gradient_and_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed step is forward, backward and update over all rows at once."""
    seen: list[tuple[int, ...]] = []
    updates: list[int] = []
    original, step = F.cross_entropy, torch.optim.AdamW.step

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(logits.shape))
        return original(logits, targets)

    def counted(self: torch.optim.AdamW) -> None:
        updates.append(sum(p.grad is not None for g in self.param_groups for p in g["params"]))
        step(self)

    monkeypatch.setattr(F, "cross_entropy", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    cost_of(micro_batch=2)
    assert seen == [(64, 300)] * 2
    assert updates == [11] * 2  # embedding, final norm, and the nine of a layer


@pytest.mark.parametrize(("name", "more"), [("a.jsonl", 1), ("a.jsonl.gz", timing.PACKED)])
def test_files_are_timed_by_their_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: int
) -> None:
    """A second for whatever there is and one for each MB of lines: of a file of which only the
    beginning is prepared, and of one that is compressed about so well."""

    def prepared(name: str, source: FileSource, seed: int, tokenizer: object) -> float:
        size = Path(source.files[0]).stat().st_size
        assert size <= timing.SAMPLE_BYTES + 1000
        return 1 + size / 1e6

    monkeypatch.setattr(timing, "_prepared", prepared)
    line = json.dumps({"text": "word " * 100}) + "\n"
    data = line.encode() * 6000
    file = tmp_path / name
    file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    source = FileSource(kind="jsonl", files=[str(file)])
    seconds = timing.preparation_seconds("a", source, 0)
    assert seconds == pytest.approx(1 + more * file.stat().st_size / 1e6, rel=0.01)
    few = source.model_copy(update={"tokens": 1000.0})
    assert timing.preparation_seconds("a", few, 0) == pytest.approx(1.004, rel=0.01)
    filtered = source.model_copy(update={"steps": [Step(kind="gopher_quality")]})
    assert timing.preparation_seconds("a", filtered, 0) is None
