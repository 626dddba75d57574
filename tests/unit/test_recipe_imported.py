"""Other trainers' configurations as recipes; the shipped recipe against the published ones."""

import sys
from pathlib import Path

import pytest
import yaml

from smollm3.cli import main
from smollm3.errors import UserError
from smollm3.recipe import load_recipe
from smollm3.recipe.imported import differences, import_recipe
from smollm3.recipe.imported.nanotron import source_name

PUBLISHED = Path(__file__).parents[1] / "support" / "published"
PRETRAINING = [
    PUBLISHED / f"{n}.yaml" for n in ("stage1", "stage2", "stage3", "long_32k", "long_64k")
]
POST_TRAINING = [PUBLISHED / f"{name}.yaml" for name in ("mid", "sft", "apo")]


def values(path):
    return yaml.safe_load(path.read_text())


@pytest.fixture
def written(tmp_path):
    """written(values, head) -> a file."""

    def write(content, head="", name="c.yaml"):
        path = tmp_path / name
        path.write_text(head + yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def test_the_shipped_recipe_is_the_published_one():
    """All that differs is known and has its reason: nothing of the network, the mixtures, the
    schedules, the batches or the optimizer of the five pretraining stages."""
    imported = import_recipe([*PRETRAINING, *POST_TRAINING], "published")
    found = differences(imported.recipe, load_recipe("smollm3-3b"))
    assert all(each.reason for each in found)
    assert {each.field for each in found} == {
        "stages.long_a.save_every",
        "stages.long_b.save_every", "stages.long_b.recompute",
        "stages.mid.packing", "stages.mid.tokens", "stages.mid.epochs", "stages.mid.lr.warmup",
        "stages.mid.recompute", "stages.mid.save_every",
        "stages.sft.tokens", "stages.sft.epochs", "stages.sft.lr.warmup", "stages.sft.recompute",
        "stages.sft.save_every",
        "stages.apo_1.steps", "stages.apo_1.epochs", "stages.apo_1.lr.warmup",
        "stages.apo_1.recompute",
        "stages.apo_2",
    }  # fmt: skip
    assert imported.recipe.seed == load_recipe("smollm3-3b").seed


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("data_stages", 2, "data", "dataset", "dataset_weights", 3), 0.123),
        (("optimizer", "clip_grad"), 0.5),
        (("optimizer", "learning_rate_scheduler", "learning_rate"), 3e-4),
        (("optimizer", "optimizer_factory", "adam_beta2"), 0.99),
        (("model", "model_config", "no_rope_layer"), 3),
        (("model", "init_method", "std"), 0.01),
        (("tokens", "micro_batch_size"), 6),
        (("parallelism", "dp"), 96),
    ],
)
def test_any_other_figure_is_a_difference(written, where, value):
    content = values(PRETRAINING[2])
    node = content
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    imported = import_recipe([written(content)], "x")
    found = differences(imported.recipe, load_recipe("smollm3-3b"))
    assert [each for each in found if each.reason is None], where


def test_files_of_one_run_give_its_stages_once():
    names = [list(import_recipe(PRETRAINING[:n], "x").recipe.stages) for n in (1, 2, 3)]
    assert [len(stages) - 1 for stages in names] == [1, 2, 3]  # beside the tokenizer
    assert import_recipe(PRETRAINING[:3], "x").values == import_recipe(PRETRAINING[2:3], "x").values


def test_the_schedule_of_a_run_is_cut_into_its_stages():
    stages = import_recipe(PRETRAINING[2:3], "x").recipe.stages
    one, two, three = list(stages.values())[1:]
    assert (one.lr.warmup, one.lr.decay) == (2000, "none")
    assert (two.lr.warmup, two.lr.decay) == (0, "none")
    assert (three.lr.decay, three.lr.decay_steps, three.lr.end) == ("linear", None, 0)
    alone = import_recipe(PRETRAINING[:1], "x").recipe.stages["stable"]
    assert (alone.steps, alone.lr.decay, alone.lr.decay_steps) == (4_720_000, "linear", 522_000)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/scratch/smollm3-data-part1/stack-edu-real-shuffled-C-Sharp", "stack-edu-c-sharp"),
        ("s3://x/short-context/infiwebmath-4plus/tokenized", "infiwebmath-4plus"),
        ("s3://x/fw2-hq-rus_Cyrl/", "fw2-rus"),
        ("finemath", "finemath-3plus"),
        ("x/2students", "tinygsm-mind-2students"),
        ("my/Own_Set", "own-set"),
    ],
)
def test_names_of_sources(path, name):
    assert source_name(path) == name


NANOTRON_MISTAKES = {
    "experts": (("model", "model_config", "moe_config"), {"n": 4}, "moe_config"),
    "a window": (("model", "model_config", "sliding_window_size"), 512, "sliding_window_size"),
    "no document masking": (("model", "model_config", "_use_doc_masking"), False, "doc_masking"),
    "pipelines": (("parallelism", "pp"), 2, "pp"),
    "decay of embeddings": (("optimizer", "weight_decay_exclude_named_params"), [], "embedding"),
    "another optimizer": (("optimizer", "optimizer_factory", "name"), "sgd", "optimizer_factory"),
    "a weight too few": (("data_stages", 0, "data", "dataset", "dataset_weights"), [1.0], "41 paths"),
    "a late start": (("data_stages", 0, "start_training_step"), 5, "rise from 1"),
    "a decay over two stages": (
        ("optimizer", "learning_rate_scheduler", "lr_decay_starting_step"), 4_000_000, "decay",
    ),
    "a warm-up over two stages": (
        ("optimizer", "learning_rate_scheduler", "lr_warmup_steps"), 3_600_000, "warm-up",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", NANOTRON_MISTAKES)
def test_what_has_no_counterpart_is_refused_by_name(written, mistake):
    where, value, word = NANOTRON_MISTAKES[mistake]
    content = values(PRETRAINING[2])
    node = content
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    with pytest.raises(UserError, match=word) as refused:
        import_recipe([written(content)], "x")
    assert "c.yaml:" in str(refused.value)


def test_two_paths_of_one_name(written):
    content = values(PRETRAINING[0])
    data = content["data_stages"][0]["data"]["dataset"]
    data["dataset_folder"][1] = data["dataset_folder"][0]
    with pytest.raises(UserError, match="fineweb-edu"):
        import_recipe([written(content)], "x")


def test_an_unknown_set_is_named(written):
    content = values(PRETRAINING[0])
    content["data_stages"][0]["data"]["dataset"]["dataset_folder"][1] = "/mine/own"
    imported = import_recipe([written(content)], "x")
    assert imported.values["sources"]["own"] == {"kind": "jsonl", "files": ["/mine/own"]}
    assert any(note.startswith("own:") for note in imported.notes)


def test_a_batch_that_no_file_gives(written):
    path = written(values(POST_TRAINING[0]))
    with pytest.raises(UserError, match="--gpus"):
        import_recipe([path], "x")
    assert import_recipe([path], "x", gpus=8).recipe.stages["mid"].batch == 16


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"lr_scheduler_type": "constant"}, {"warmup": 0, "decay": "none", "end": 0}),
        ({"lr_scheduler_type": "linear"}, {"warmup": 0.03, "decay": "linear", "end": 0}),
        ({"lr_scheduler_type": "cosine", "warmup_steps": 7}, {"warmup": 7, "decay": "cosine"}),
    ],
)
def test_schedules_of_the_trainer(written, change, expected):
    path = written(values(POST_TRAINING[0]) | change)
    lr = import_recipe([path], "x", gpus=1).recipe.stages["mid"].lr.model_dump()
    assert {key: lr[key] for key in expected} == expected


def test_dpo_and_sets_of_ones_own(written):
    content = values(POST_TRAINING[2]) | {"loss_type": "sigmoid", "max_steps": 10}
    content["dataset_mixture"]["datasets"] = [{"id": "me/pairs", "split": "train"}]
    content["dataset_mixture"]["seed"] = 5
    imported = import_recipe([written(content)], "x", gpus=1)
    stage = imported.recipe.stages["sigmoid"]
    assert (stage.loss, stage.beta, stage.steps, imported.recipe.seed) == ("dpo", 0.05, 10, 5)
    assert stage.from_ == "HuggingFaceTB/SmolLM3-3B-checkpoints@it-SFT"
    assert list(stage.mixture) == ["train"]
    assert any("equal" in note for note in imported.notes)


def test_neither(written):
    with pytest.raises(UserError, match="neither"):
        import_recipe([written({"a": 1})], "x")


def test_a_name_that_is_none_is_one_line():
    with pytest.raises(UserError, match="name"):
        import_recipe(PRETRAINING[:1], "no name")


def test_the_command(tmp_path, monkeypatch, capsys):
    def run(*more):
        words = ["recipe", "import", PRETRAINING[0], POST_TRAINING[0], "--name", "mine", *more]
        monkeypatch.setattr(sys, "argv", ["smollm3", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        return end.value.code, shown.out, shown.err

    monkeypatch.chdir(tmp_path)
    assert run()[0] == 0
    recipe = load_recipe("mine.yaml")
    assert list(recipe.stages) == ["tokenizer", "stable", "mid"]
    assert (tmp_path / "mine.yaml").read_text().startswith("# From stage1.yaml, mid.yaml.\n")
    code, _, error = run()
    assert (code, "exists" in error) == (2, True)
    code, out, _ = run("--compare", "smollm3-3b")
    assert code == 0
    assert out.endswith("fields differ\n")
