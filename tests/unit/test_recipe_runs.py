"""A run over an old folder: what holds it to its recipe, and what does not."""

import json
from pathlib import Path

import pytest
import torch

from smollm3 import checkpoint
from smollm3.checkpoint.adapter import read_adapter
from smollm3.errors import UserError
from smollm3.files import new_folder, write_json
from smollm3.recipe.load import load_recipe_text
from smollm3.recipe.runner import Events, Run

RECIPE = """
name: t
sources:
  mine: {{kind: jsonl, files: ['{data}'], holdout: 0.2}}
stages:
  sft:
    kind: train
    from: {base}
    mixture: {{mine: 1}}
    packing: bfd
    context: 64
    batch: 4
    steps: 4
    save_every: 2
    lr: {{peak: 1e-3}}
  out: {{kind: export, to: ['hf:float32']}}
"""
TEXTS = [f"The model that answers question {i} is {i * i}." for i in range(40)]


@pytest.fixture
def place(tmp_path, tokenizer):
    from tests.support.noise import save_noise

    save_noise(tmp_path / "base", tokenizer)
    write_texts(tmp_path, TEXTS)
    return tmp_path


def write_texts(place, texts):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (place / "data.jsonl").write_text(lines)


def run(place, *overrides, **options):
    """(stages done before, stages made) of a run in <place>/run."""
    before, made = [], []
    nothing = lambda *_: None  # noqa: E731
    events = Events(before.append, nothing, nothing, lambda name, _: made.append(name), nothing)
    text = RECIPE.format(data=place / "data.jsonl", base=place / "base")
    Run(load_recipe_text(text, "t.yaml", overrides), place / "run", events).execute(**options)
    return before, made


def metrics_of(place):
    return json.loads((place / "run/sft/stage.json").read_text())["metrics"]


def fail_after(monkeypatch, steps):
    """Let training end with an error after so many steps."""
    from smollm3.train import loop

    real = loop.Trainer.step

    def step(self, k, stop=False):
        if k >= steps:
            raise UserError("something is wrong")
        return real(self, k, stop)

    monkeypatch.setattr(loop.Trainer, "step", step)


def test_what_is_done_is_not_done_again(place):
    assert run(place) == ([], ["sft", "out"])
    assert run(place) == (["sft", "out"], [])


def test_a_run_that_failed_before_its_first_checkpoint_takes_the_mended_recipe(place, monkeypatch):
    with monkeypatch.context() as patch:
        fail_after(patch, 1)
        with pytest.raises(UserError, match="something is wrong"):
            run(place)
    assert (place / "run/.work/sft/recipe.json").exists()
    assert run(place, "stages.sft.lr.peak=2e-3", "stages.sft.steps=6") == ([], ["sft", "out"])
    rows = (place / "run/sft/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_steps_that_were_saved_hold_a_run_to_what_decides_the_result(place, monkeypatch):
    with monkeypatch.context() as patch:
        fail_after(patch, 3)
        with pytest.raises(UserError, match="something is wrong"):
            run(place)
    with pytest.raises(UserError, match=r"stages\.sft\.lr\.peak was 0\.001, is 0\.002"):
        run(place, "stages.sft.lr.peak=2e-3")
    manner = ("micro_batch=2", "save_every=1", "keep_every=3", "recompute=full")
    assert run(place, *(f"stages.sft.{each}" for each in manner)) == ([], ["sft", "out"])
    assert run(place) == (["sft", "out"], [])  # nor do they make a finished stage another one


def test_the_same_bits_whatever_the_manner(place):
    run(place)
    weights = (place / "run/sft/model.safetensors").read_bytes()
    run(place, "stages.sft.save_every=1", redo=["sft"])
    assert (place / "run/sft/model.safetensors").read_bytes() == weights


def test_changed_data_under_a_finished_stage(place):
    run(place)
    write_texts(place, TEXTS)  # written again: the times differ, the content does not
    assert run(place) == (["sft", "out"], [])
    write_texts(place, [*TEXTS, "One more text, which was not there."])
    with pytest.raises(UserError, match=r"made from other inputs.*mine.*--redo sft"):
        run(place)
    assert run(place, redo=["sft"]) == ([], ["sft", "out"])
    (place / "data.jsonl").unlink()  # what is made stands, even without its data
    assert run(place) == (["sft", "out"], [])


def test_a_stage_folder_that_is_a_link_stays_one(place):
    (place / "large disk").mkdir()
    (place / "run").mkdir()
    (place / "run/sft").symlink_to(place / "large disk" / "sft")
    run(place)
    run(place, "stages.sft.steps=3", redo=["sft"])
    run(place, "stages.sft.steps=2", redo=["sft"])
    assert (place / "run/sft").is_symlink()
    assert json.loads((place / "large disk/sft/stage.json").read_text())["config"]["steps"] == 2
    assert [f.name for f in (place / "large disk").iterdir()] == ["sft"]


def test_a_new_folder_behind_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with new_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "new"


def test_the_parents_way_to_sample_and_its_ends_are_kept(place, tokenizer):
    file = place / "base" / "generation_config.json"
    own = {"do_sample": True, "temperature": 0.3, "min_p": 0.1, "repetition_penalty": 1.2}
    write_json(file, own)
    config = json.loads((place / "base/config.json").read_text())
    write_json(place / "base/config.json", config | {"eos_token_id": [5, 7]})
    assert {5, 7} <= set(checkpoint.load_tokenizer(place / "base").stop_ids)
    run(place)
    for folder in (place / "run/sft", place / "run/out/hf-float32"):
        kept = json.loads((folder / "generation_config.json").read_text())
        assert own.items() <= kept.items()
        assert {5, 7} <= set(kept["eos_token_id"])


def test_a_held_out_loss_an_early_end_and_the_best_weights(place):
    look = "stages.sft.validation={every: 1, patience: 2, rows: 3}"
    run(place, look, "stages.sft.lr.peak=0.5", "stages.sft.steps=30")  # it only gets worse
    record = json.loads((place / "run/sft/stage.json").read_text())
    rows = [json.loads(r) for r in (place / "run/sft/metrics.jsonl").read_text().splitlines()]
    losses = [row["held_out_loss"] for row in rows]
    best = losses.index(min(losses)) + 1
    assert record["metrics"]["best_step"] == best
    assert record["metrics"]["steps"] == len(rows) == best + 2 < 30
    assert record["metrics"]["held_out_loss"] == min(losses)
    assert record["tokens"]["mine"] == len(rows) * 4 * 64
    short = place / "short"
    short.mkdir()
    (short / "data.jsonl").write_text((place / "data.jsonl").read_text())
    (place / "base").rename(short / "base")
    run(short, "stages.sft.lr.peak=0.5", f"stages.sft.steps={best}")
    ours, same = (checkpoint.load_model(at / "run/sft") for at in (place, short))
    assert torch.equal(ours.embed.weight, same.embed.weight)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_weights_go_back_towards_the_parents(place, adapter):
    """As far as so much of what the held-out loss has gained stays, and no further."""
    steps = ["stages.sft.steps=6", "stages.sft.lr.peak=1e-2"]
    if adapter:
        steps.append(f"stages.sft.adapter={{kind: {adapter}, rank: 2}}")

    def ended(*validation):
        look = f"stages.sft.validation={{every: 6, rows: 8{''.join(validation)}}}"
        run(place, *steps, look, redo=["sft"])
        metrics = metrics_of(place)
        return checkpoint.load_model(place / "run/sft").state_dict(), metrics

    parent = checkpoint.load_model(place / "base").state_dict()
    best, before = ended()
    found = {retain: ended(f", retain: {retain}") for retain in (0.3, 0.9)}
    shares = [metrics["share_of_best"] for _, metrics in found.values()]
    assert 0 < shares[0] < shares[1] < 1
    # About the share of the way is the share of the gain, where so few steps are taken.
    (_, less), (_, more) = found.values()
    assert less["held_out_loss"] > more["held_out_loss"] > before["held_out_loss"]
    for weights, metrics in found.values():
        for name, value in weights.items():
            expected = parent[name].lerp(best[name], metrics["share_of_best"])
            torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)


def test_dora_goes_back_in_its_own_parameters(place):
    """Directions and lengths: on the line between the two weights, no DoRA lies."""
    adapter = "stages.sft.adapter={kind: dora, rank: 2, layers: [q, down], embeddings: true}"
    look = "stages.sft.validation={every: 4, rows: 8%s}"
    run(place, adapter, look % "", "stages.sft.lr.peak=1e-2")
    best = read_adapter(place / "run/sft/adapter")
    run(place, adapter, look % ", retain: 0.7", "stages.sft.lr.peak=1e-2", redo=["sft"])
    found = read_adapter(place / "run/sft/adapter")
    share = metrics_of(place)["share_of_best"]
    assert 0 < share < 1
    parent = checkpoint.load_model(place / "base").state_dict()
    for name, layer in found.layers.items():
        end, lengths = best.layers[name], parent[f"{name}.weight"].norm(dim=1)
        assert torch.equal(layer.a, end.a)
        torch.testing.assert_close(layer.b, end.b * share)
        torch.testing.assert_close(layer.magnitude, lengths.lerp(end.magnitude, share))
    name = "embed.weight"
    torch.testing.assert_close(found.whole[name], parent[name].lerp(best.whole[name], share))


def test_the_least_share_that_is_enough(place):
    """Against all tenths, one by one."""
    from smollm3.train import loop, validation

    losses, taken = {}, loop.Trainer._near_the_parent

    def near(self, best, step, retain):
        for tenths in range(11):
            began, ended = self.job.initial_weights(), validation.kept(Path(self.job.work), step)
            read = loop.interpolated(self.model, began, ended, tenths / 10)
            with torch.no_grad():
                loop.fill(dict(self.trained), read)
            losses[tenths] = self._held_out()["held_out_loss"]
        return taken(self, best, step, retain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_near_the_parent", near)
        look = "stages.sft.validation={every: 6, rows: 8, retain: 0.7}"
        run(place, "stages.sft.steps=6", "stages.sft.lr.peak=1e-2", look)
    metrics = metrics_of(place)
    enough = losses[10] + 0.3 * (losses[0] - losses[10])
    least = min(tenths for tenths, loss in losses.items() if loss <= enough)
    assert metrics["share_of_best"] == least / 10
    assert metrics["held_out_loss"] == pytest.approx(losses[least])


def test_without_a_gain_the_weights_stay(place):
    look = "stages.sft.validation={every: 1, patience: 2, rows: 3%s}"
    worse = ("stages.sft.lr.peak=0.5", "stages.sft.steps=30")
    run(place, look % "", *worse)
    best = checkpoint.load_model(place / "run/sft").state_dict()
    run(place, look % ", retain: 0.9", *worse, redo=["sft"])
    assert metrics_of(place)["share_of_best"] == 1
    for name, value in checkpoint.load_model(place / "run/sft").state_dict().items():
        assert torch.equal(value, best[name])


def test_each_source_has_its_held_out_loss(place):
    (place / "more.jsonl").write_text(
        (place / "data.jsonl").read_text().replace("question", "riddle")
    )
    run(
        place,
        "stages.sft.validation={every: 2, rows: 8}",
        f"sources.more={{kind: jsonl, files: ['{place}/more.jsonl'], holdout: 0.2}}",
        "stages.sft.mixture.more=1",
    )
    last = json.loads((place / "run/sft/metrics.jsonl").read_text().splitlines()[-1])
    mine, more = last["held_out_loss/mine"], last["held_out_loss/more"]
    assert min(mine, more) < last["held_out_loss"] < max(mine, more)
    assert "Loss on held-out rows of more" in (place / "run/report.html").read_text()


def test_looks_survive_a_stop(place, monkeypatch):
    look = ("stages.sft.validation={every: 1, rows: 3}", "stages.sft.steps=6")
    run(place, *look)
    whole = (place / "run/sft/model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        fail_after(patch, 5)
        with pytest.raises(UserError):
            run(place, *look, redo=["sft"])
    run(place, *look)
    assert (place / "run/sft/model.safetensors").read_bytes() == whole


def test_nothing_held_out_is_said(place):
    with pytest.raises(UserError, match=r"sources\.mine: nothing of it is held out"):
        run(place, "stages.sft.validation={every: 1}", "sources.mine.holdout=0")
