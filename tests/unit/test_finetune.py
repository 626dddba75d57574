"""`smollm3 finetune`: what it decides and why, the recipe as text, and a whole run of a tiny model."""

import json
from dataclasses import replace
from importlib import resources

import pytest
import torch
from click.testing import CliRunner
from tests.support.noise import save_noise

from smollm3 import checkpoint
from smollm3.checkpoint.adapter import read_adapter
from smollm3.cli import cli
from smollm3.config.yaml import parse_yaml
from smollm3.errors import UserError
from smollm3.eval.panel import TASKS, read_panel
from smollm3.model import ModelConfig, nope_pattern
from smollm3.recipe.edit import RecipeText
from smollm3.recipe.finetune import ADAPTERS, Machine, Wish, planned
from smollm3.recipe.finetune_console import check_same
from smollm3.recipe.load import load_recipe_text
from smollm3.train.spec import Parallel, TrainStage

CPU = Machine("CPU, 2 cores", 8 << 30, half=False, threads=1, is_cpu=True)
GPU = Machine("a card", 16 << 30, half=True, threads=1, is_cpu=False, host=64 << 30)


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """The planner's clock stands still: what it measures is tests/unit/test_plan.py's."""
    monkeypatch.setattr("smollm3.plan.timing.step_seconds", lambda *_, **__: 0.01)


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("base") / "tiny"
    save_noise(folder, tokenizer)
    return folder


def talk(i):
    return {
        "messages": [
            {"role": "user", "content": f"Question {i}"},
            {"role": "assistant", "content": f"It is {i}."},
        ]
    }


def pair(i):
    return {"prompt": f"Question {i}", "chosen": f"It is {i}.", "rejected": "No."}


ROWS = {
    "chat": talk,
    "preference": pair,
    "text": lambda i: {"text": f"The model that answers {i}."},
}


@pytest.fixture
def file(tmp_path):
    def write(form="chat", n=40, name=None):
        path = tmp_path / (name or f"{form}.jsonl")
        path.write_text("".join(json.dumps(ROWS[form](i)) + "\n" for i in range(n)))
        return str(path)

    return write


def plan(tmp_path, machine, *arguments, **options):
    text, said = planned(Wish(*arguments, **options), tmp_path / "cache", machine)
    return load_recipe_text(text, "finetune.yaml"), text, said


# the plan


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_each_kind_of_data_gets_a_recipe(base, file, tmp_path, form, machine):
    recipe, _, said = plan(tmp_path, machine, str(base), file(form))
    source, stage = ("pairs", "apo") if form == "preference" else ("mine", "sft")
    assert list(recipe.sources) == [source]
    assert recipe.sources[source].format == form
    assert list(recipe.stages) == [stage, "compare", "export"]
    assert "obeys/think" in recipe.stages["compare"].panel
    trained = recipe.stages[stage]
    assert trained.from_ == str(base)
    assert trained.loss == ("apo_zero" if form == "preference" else "assistant")
    assert trained.adapter.kind == "lora"
    assert trained.precision == ("bfloat16" if machine.half else "float32")
    [claim] = recipe.stages["compare"].claims
    assert (claim.model, claim.baseline_model) == (stage, str(base))
    assert any(line.startswith(f"{source}: 40 ") for line in said)
    assert any("held-out rows" in line for line in said)


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        ("", []),
        ("{{ tools }}", ["tool_json/no_think"]),
        ("{# <think> #}", ["obeys/think", "obeys/no_think"]),
    ],
)
def test_the_panel_asks_what_the_chat_template_can(
    base, tokenizer, file, tmp_path, template, asked
):
    """Where nothing can be lost, nothing is asked: it would only take time, and read like a result."""
    folder = tmp_path / "plain"
    save_noise(folder, tokenizer.with_template(template + CHATML))
    recipe, _, said = plan(tmp_path, CPU, str(folder), file())
    assert recipe.stages["compare"].panel == asked
    assert any(line.startswith("stages.compare.panel: ") for line in said)
    _, _, said = plan(tmp_path, CPU, str(base), file())
    assert not any("compare.panel" in line for line in said)


@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize(("steps", "share"), [(1, 1), (20, 1), (180, 1 / 3), (2000, 0.1)])
def test_few_steps_of_preferences_learn_at_a_higher_rate(
    base, file, tmp_path, adapter, steps, share
):
    pairs, wanted = file("preference"), (f"stages.apo.steps={steps}",)
    recipe, _, said = plan(
        tmp_path, GPU, str(base), file("chat"), pairs=pairs, overrides=wanted, adapter=adapter
    )
    sft, apo = (recipe.stages[name].lr.peak for name in ("sft", "apo"))
    assert apo == pytest.approx(share * sft, rel=0.02)  # two digits are written
    assert any(f"{share:.0%} of that for preferences" in line for line in said)


def test_conversations_then_preferences(base, file, tmp_path):
    recipe, text, _ = plan(tmp_path, CPU, str(base), file("chat"), pairs=file("preference"))
    assert list(recipe.stages) == ["sft", "apo", "compare", "export"]
    assert recipe.stages["apo"].from_ is None  # the stage above
    assert [c.metric for c in recipe.stages["compare"].claims] == ["loss/mine", "preference/margin"]
    shipped = (resources.files("smollm3") / "recipes/finetune.yaml").read_text()
    kept = [line for line in shipped.splitlines() if line in text.splitlines()]
    assert len(kept) > 30  # it is the shipped one but for the lines that were decided


def test_real_tasks_where_their_data_are_here(base, file, tmp_path, monkeypatch):
    """In the Hub's cache, or in a folder that is named; else they are left out, and it is said."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cached"))
    recipe, _, said = plan(tmp_path, CPU, str(base), file())
    assert "benchmarks" not in recipe.stages
    assert any("data of arc_easy, piqa, openbookqa are not" in line for line in said)
    folder = ("stages.benchmarks.data=somewhere",)
    asked, *_ = plan(tmp_path, CPU, str(base), file(), overrides=folder)
    assert asked.stages["benchmarks"].data == "somewhere"
    for path in TASKS.values():
        (tmp_path / "cached" / path.replace("/", "___")).mkdir(parents=True)
    recipe, *_ = plan(tmp_path, CPU, str(base), file())
    stage = recipe.stages["benchmarks"]
    assert (stage.tasks, stage.beside) == (list(TASKS), str(base))


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_each_adapter(base, file, tmp_path, adapter):
    recipe, _, said = plan(tmp_path, CPU, str(base), file(), adapter=adapter)
    found = recipe.stages["sft"].adapter
    expected = {"auto": ("lora", "own"), "qlora": ("lora", "nf4"), "full": None}
    got = found and (found.kind, found.base)
    assert got == expected.get(adapter, (adapter, "own"))
    [line] = [line for line in said if line.startswith("stages.sft.adapter")]
    assert "weights are trained" in line


def test_the_plan_follows_the_memory(base, file, tmp_path):
    def choice(memory, adapter="auto"):
        machine = replace(GPU, memory=memory)
        recipe, *_ = plan(tmp_path, machine, str(base), file(n=400), adapter=adapter)
        stage = recipe.stages["sft"]
        assert isinstance(stage, TrainStage)
        return stage.adapter.base, stage.recompute, stage.micro_batch

    assert choice(1 << 30) == ("own", "none", 4)
    seen = [choice(int(memory)) for memory in (8e6, 6e6, 4e6, 3e6, 2e6)]
    assert len(set(seen)) > 2
    assert seen[-1] != seen[0]
    with pytest.raises(UserError, match="training it needs .* take a smaller model"):
        choice(10_000)


def test_full_training_takes_moments_of_8_bits_before_it_gives_up(base, file, tmp_path):
    def moments(memory):
        machine = replace(GPU, memory=memory)
        recipe, *_ = plan(tmp_path, machine, str(base), file(n=400), adapter="full")
        return recipe.stages["sft"].optimizer.moments

    found = [moments(int(memory)) for memory in (64e6, 2e6, 1.8e6)]
    assert found[0] == "float32"
    assert "8bit" in found


@pytest.mark.parametrize("context", [256, 8192])
def test_a_context_of_ones_own(base, file, tmp_path, context):
    recipe, *_ = plan(tmp_path, CPU, str(base), file(), context=context)
    stage = recipe.stages["sft"]
    assert stage.context == context
    theta = stage.rope_theta
    assert theta is None if context <= 2048 else theta == pytest.approx(10_000 * 8, rel=0.05)


def test_what_is_set_is_a_line_of_the_recipe(base, file, tmp_path):
    wishes = (
        "stages.sft.lr.peak=5e-4",
        "stages.sft.clip=0.5",
        "stages.sft.adapter.rank=3",
        "seed=4",
    )
    recipe, text, _ = plan(tmp_path, CPU, str(base), file(), overrides=wishes)
    stage = recipe.stages["sft"]
    assert (stage.lr.peak, stage.clip, stage.adapter.rank, recipe.seed) == (5e-4, 0.5, 3, 4)
    assert "clip: 0.5  # said by --set" in text
    steps, *_ = plan(tmp_path, CPU, str(base), file(), overrides=("stages.sft.steps=7",))
    assert (steps.stages["sft"].steps, steps.stages["sft"].epochs) == (7, None)
    full, _, said = plan(tmp_path, CPU, str(base), file(), overrides=("stages.sft.adapter=",))
    assert full.stages["sft"].adapter is None
    assert full.stages["sft"].lr.peak == pytest.approx(1e-3)
    assert not any(line.startswith("stages.sft.adapter") for line in said)


def test_a_cpu_is_not_kept_for_hours(base, file, tmp_path, monkeypatch):
    monkeypatch.setattr("smollm3.recipe.finetune.LONGEST", 1e-3)
    recipe, _, said = plan(tmp_path, CPU, str(base), file())
    assert recipe.stages["sft"].steps == 10
    assert any("steps that all epochs need" in line for line in said)
    asked, *_ = plan(tmp_path, CPU, str(base), file(), overrides=("stages.sft.epochs=2",))
    assert asked.stages["sft"].epochs == 2


def test_what_a_card_has_no_room_for_waits_on_its_host(base, file, tmp_path, monkeypatch):
    """As the planner counts SmolLM3-3B, which is not here."""
    big = ModelConfig(128_256, 36, 2048, 16, 4, 128, 11_008, nope_pattern(36, 4), 5e4, 65_536)
    monkeypatch.setattr("smollm3.recipe.finetune.checkpoint.load_config", lambda _: big)
    monkeypatch.setattr("smollm3.recipe.finetune.find_spec", lambda name: None)  # no 8-bit moments
    monkeypatch.setattr("smollm3.plan.stage_costs", lambda *_, **__: [])

    def planned_for(machine, adapter, context):
        options = {"adapter": adapter, "context": context}
        recipe, _, said = plan(tmp_path, machine, str(base), file(), **options)
        return recipe.stages["sft"], "\n".join(said)

    stage, said = planned_for(GPU, "full", 4096)
    assert stage.parallel == Parallel(offload=True)
    assert "AdamW runs on the host" in said
    assert "of the host's 68.7 GB" in said
    stage, said = planned_for(GPU, "lora", 32_768)
    assert (stage.recompute, stage.parallel) == ("offload", None)
    stage, _ = planned_for(replace(GPU, memory=80 << 30), "lora", 32_768)
    assert stage.recompute == "full"
    for machine in (replace(GPU, host=16 << 30), replace(CPU, memory=16 << 30)):
        with pytest.raises(UserError, match="training it needs"):
            planned_for(machine, "full", 4096)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "it is empty"),
        ([{"text": "one"}] * 3, "3 rows"),
        ([{"foo": 1, "bar": 2}] * 9, "neither a text nor a conversation"),
        ([{"messages": []}] * 9, "no usable documents"),
        ([{"text": "the same"}] * 9, "different rows are needed"),
    ],
)
def test_data_that_cannot_be_used(base, tmp_path, rows, problem):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=problem):
        plan(tmp_path, CPU, str(base), str(path))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"adapter": "lore"}, "--adapter lore: take one of auto, lora"),
        ({"overrides": ("stages.sft.lr",)}, "write it as key.path=value"),
        ({"overrides": ("stages.sft.leer=1",)}, "unknown key"),
        ({"overrides": ("stagges.sft.lr=1",)}, "there is no 'stagges'"),
        ({"pairs": "chat"}, "no pairs of chosen and rejected"),
    ],
)
def test_wishes_that_cannot_be(base, file, tmp_path, options, problem):
    if "pairs" in options:
        options = {"pairs": file("chat", name="more.jsonl")}
    with pytest.raises(UserError, match=problem):
        plan(tmp_path, CPU, str(base), file(), **options)


def test_a_folder_and_a_name_that_is_none(base, file, tmp_path):
    (tmp_path / "mine").mkdir()
    file("text", name="mine/a.jsonl")
    assert plan(tmp_path, CPU, str(base), str(tmp_path / "mine"))[0].name == "mine"
    (tmp_path / "mine/a.jsonl").unlink()
    with pytest.raises(UserError, match="mine"):
        plan(tmp_path, CPU, str(base), str(tmp_path / "mine"))
    with pytest.raises(UserError, match=r"talks\.docx: no such file"):
        plan(tmp_path, CPU, str(base), "talks.docx")
    assert Wish("m", "/x/été talks.v2.jsonl").name == "t--talks"


@pytest.mark.parametrize("units", [{}, {"avx512_bf16": False, "avx2": True}, {"amx_bf16": True}])
def test_bfloat16_is_chosen_on_a_cpu_that_has_it(monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Machine.here().half == any(units.get(name) for name in ("avx512_bf16", "amx_bf16"))
    assert Machine.here().is_cpu


def test_a_base_in_this_folder_is_no_stage(base, file, tmp_path, monkeypatch):
    path = file()
    monkeypatch.chdir(base.parent)
    recipe, *_ = plan(tmp_path, CPU, base.name, path)
    assert recipe.stages["sft"].from_ == f"./{base.name}"
    assert Wish("smollm3-3b", "x").base == "smollm3-3b"


# the recipe as text


TEXT = """\
# a comment
name: x
list:
  - {a: 1, b: 2}  # the first
  - {a: 3}
deep:
  more: &m 5  # five
  flow: {p: {q: 1}}
last: *m
"""


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("name",), "y", "name: y"),
        (("list", 0), {"a": 9}, "  - {a: 9}  # the first"),
        (("list", 0, "b"), 7, "  - {a: 1, b: 7}  # the first"),
        (("deep", "more"), 6, "  more: &m 6  # five"),
        (("deep", "flow", "p", "q"), None, "  flow: {p: {q: null}}"),
        (("deep", "flow", "new", "er"), True, "  flow: {p: {q: 1}, new: {er: true}}"),
        (("deep", "fresh"), [1], "  fresh: [1]"),
        (("deep",), 1, "deep: 1"),
        (("brand", "new"), 1, "brand: {new: 1}"),
    ],
)
def test_one_line_changes(path, value, line):
    recipe = RecipeText(TEXT)
    if path == ("deep",):
        recipe.remove(("last",))
    recipe.set(path, value)
    assert line in recipe.text.splitlines()
    found = parse_yaml(recipe.text, "t")[0]
    for part in path:
        found = found[part]
    assert found == value
    assert "# a comment" in recipe.text
    recipe.set(path, value, "so it is")
    assert "# so it is" in recipe.text


@pytest.mark.parametrize("path", [("name",), ("list",), ("list", 1), ("deep", "flow"), ("last",)])
def test_a_key_goes_with_what_is_below(path):
    recipe = RecipeText(TEXT)
    before = parse_yaml(recipe.text, "t")[0]
    recipe.remove(path)
    node = before
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    assert parse_yaml(recipe.text, "t")[0] == before


# the verb


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A whole run through the command line."""
    place = tmp_path_factory.mktemp("run")
    (place / "talks.jsonl").write_text("".join(json.dumps(talk(i)) + "\n" for i in range(60)))
    outcome = CliRunner().invoke(
        cli,
        ["finetune", str(base), str(place / "talks.jsonl"), "--out", str(place / "mine"),
         "--set", "stages.sft.steps=12", "--set", "threads=1", "--set", "stages.sft.lr.peak=0.02",
         "--set", "stages.compare.max_tokens=8", "--set", "stages.compare.items=12"],
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output + str(outcome.exception)
    return place, outcome.output


def test_it_leaves_a_model_an_adapter_and_a_card(finished, base):
    place, output = finished
    out = place / "mine"
    assert "every line of it can be changed" in output
    assert (out / "finetune.yaml").exists()
    adapter = read_adapter(out / "sft/adapter")
    assert adapter.base == str(base)
    assert checkpoint.load_config(out).hidden == 32  # the run's final model
    [claim] = json.loads((out / "compare/scorecard.json").read_text())["claims"]
    assert claim["verdict"] == "holds"
    assert claim["difference"]["low"] < claim["difference"]["high"] < 0
    answers = json.loads((out / "compare/answers.json").read_text())
    assert len(answers) == 4
    assert list(answers[0]["answers"]) == [str(base), "sft"]
    assert all(a["expected"].startswith("It is ") for a in answers)
    assert all("Question" in a["prompt"] for a in answers)
    panel = read_panel(out / "compare")
    assert (panel.before, panel.after) == (str(base), "sft")
    assert [r.what for r in panel.rows] == ["obeys/think", "obeys/no_think", "tool_json/no_think"]
    assert all(row.low <= row.after - row.before <= row.high for row in panel.rows)
    assert "what it could before" in output
    assert any(a["answers"]["sft"] for a in answers)
    report = (out / "report.html").read_text()
    assert "Before and after" in report
    assert "What it could before" in report
    assert "Loss on held-out rows" in report
    card = (out / "export/hf-bfloat16/README.md").read_text()
    assert "## Data" in card
    assert "`talks.jsonl`" in card
    assert str(place) not in card
    assert "Held-out documents are likelier than before" in card
    assert "| tool_json/no_think | " in card


def test_again_does_nothing_and_changes_are_taken(finished, base, file):
    place, _ = finished
    arguments = ["finetune", str(base), str(place / "talks.jsonl"), "--out", str(place / "mine")]
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 0, again.output
    assert again.output.count("(done before)") == 3
    recipe = place / "mine/finetune.yaml"
    wish = Wish(str(base), file("text"))
    with pytest.raises(UserError, match="for another model or other data; take another --out"):
        check_same(recipe.read_text(), wish, recipe)


def test_a_dry_run_writes_nothing(base, file, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    path = file("chat")
    out = tmp_path / "out"
    outcome = CliRunner().invoke(cli, ["finetune", str(base), path, "--out", str(out), "--dry-run"])
    assert outcome.exit_code == 0, outcome.output
    assert not out.exists()
    assert len(sorted(tmp_path.rglob("*"))) == len(before) + 1
    assert "what each stage asks for" in outcome.output
    assert "kind: train" in outcome.output


def test_merge_makes_a_model(finished, base, tmp_path):
    place, _ = finished
    adapter, out = place / "mine/sft/adapter", tmp_path / "merged"
    with pytest.raises(UserError, match="is an adapter, not a model; give its base and --adapter"):
        checkpoint.locate(adapter)
    outcome = CliRunner().invoke(cli, ["merge", str(adapter), str(out)])
    assert outcome.exit_code == 0, outcome.output
    ours = dict(checkpoint.load_model(place / "mine").named_parameters())
    for name, weight in checkpoint.load_model(out).named_parameters():
        assert (weight - ours[name]).abs().max() < 2**-7 * weight.abs().max()
    again = CliRunner().invoke(cli, ["merge", str(adapter), str(out)])
    assert isinstance(again.exception, UserError)
