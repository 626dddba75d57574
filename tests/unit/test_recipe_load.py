"""Recipes: what they mean, and the one line a mistake gets."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.config.yaml import parse_yaml
from smollm3.errors import UserError
from smollm3.recipe import load_recipe, shipped_recipes
from smollm3.recipe.graph import downstream, final_model, model_parents, sources_of, tokenizer_of

GOOD = """\
name: t
model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 64}
sources:
  code: {kind: stdlib, part: code}
  talk: {kind: procedural, generator: chat, documents: 10, format: chat}
  pairs: {kind: procedural, generator: pairs, documents: 10, format: preference}
stages:
  tok: {kind: tokenizer, vocab: 512, mixture: {code: 1}}
  one:
    kind: train
    mixture: {code: 1e-3}
    context: 128
    batch: 4
    steps: 3
    lr: {peak: 1e-3, warmup: 2}
  two:
    kind: train
    carry: [optimizer]
    mixture: {code: 1, talk: 1}
    context: 128
    batch: 4
    tokens: 1_000
    lr: {peak: .5e-3}
  mix: {kind: merge, from: {one: 0.9, two: 0.1}}
  card:
    kind: eval
    claims: [{claim: c, metric: loss/code, model: mix, baseline_model: one, compare: ratio, at_most: 1}]
  out: {kind: export, to: [hf]}
"""


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "r.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_graph_of_a_recipe(recipe_file):
    recipe = load_recipe(recipe_file(GOOD))
    assert model_parents(recipe) == {
        "tok": [], "one": [], "two": ["one"], "mix": ["one", "two"], "card": ["mix", "one"],
        "out": ["mix"],
    }  # fmt: skip
    assert tokenizer_of(recipe, "one") == "tok"
    assert sources_of(recipe.stages["card"], recipe) == ["code"]
    assert final_model(recipe) == "mix"
    assert downstream(recipe, {"two"}) == {"two", "mix", "card", "out"}
    assert downstream(recipe, {"tok"}) == set(recipe.stages)
    assert downstream(recipe, {"card"}) == {"card"}


@pytest.mark.parametrize("name", ["smoke", "nano", "smollm3-3b"])
def test_shipped_recipes_load(name):
    assert name in shipped_recipes()
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("warmup: 2", "warmp: 2", ":15: stages.one.lr.warmp: unknown key; did you mean 'warmup'?"),
        ("{code: 1e-3}", "{codee: 1}", ":11: stages.one.mixture.codee: unknown source; did you mean 'code'?"),
        ("{code: 1e-3}", "{code: -1}", "stages.one.mixture.code: input should be greater than 0, not -1"),
        ("{code: 1e-3}", "{pairs: 1}", "stages.one.mixture.pairs: has format preference, which loss all cannot use"),
        ("kind: merge", "kind: merg", "stages.mix: unknown kind 'merg'; did you mean 'merge'?"),
        ("    steps: 3\n", "", "stages.one: give exactly one of tokens, steps and epochs"),
        ("    steps: 3\n", "    steps: 3\n    epochs: 1\n", "give exactly one of tokens, steps and epochs"),
        ("    batch: 4\n    steps", "    batch: 4\n    batch: 5\n    steps", ":14: key 'batch' is already on line 13"),
        ("part: code", "prt: code", "sources.code.prt: unknown key; did you mean 'part'?"),
        ("model: mix", "model: mx", "stages.card: 'mx' is not a stage above; did you mean 'mix'?"),
        ("loss/code", "loss/cod", "stages.card.claims: claim 'c': unknown metric 'loss/cod'; did you mean 'loss/code'?"),
        ("tok: {kind: tokenizer, vocab: 512, mixture: {code: 1}}", "tok: {kind: tokenizer, vocab: 512}", "needs a mixture to learn from"),
        ("model: {layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 64}\n", "", "stages.one: starts from nothing but the recipe has no `model`"),
        ("kind: train\n    mixture: {code: 1e-3}", "kind: train\n    from: two\n    mixture: {code: 1e-3}", "starts from 'two', which comes later"),
        ("carry: [optimizer]", "from: tok", "starts from 'tok', which makes no model"),
        ("    steps: 3\n", "    steps: 3\n    adapter: {}\n    parallel: {offload: true}\n", "stages.one: adapter: every process holds the whole model"),
        ("steps: 3\n", "steps: 3\n    optimizer: {moments: 8bit}\n    parallel: {shard: 2}\n", "stages.one: optimizer: moments: 8bit: every"),
        ("    steps: 3\n", "    steps: 3\n    compile: true\n    recompute: offload\n", "recompute: offload moves tensors, which no graph can; drop compile"),
        ("name: t\n", "name: t\nprocesses: 3\n", "stages.one.batch: 4 cannot be split over 3 processes"),
        ("lr: {peak: 1e-3, warmup: 2}", "lr: 3", "stages.one.lr: "),
        ("code: {kind: stdlib, part: code}", "code: {kind: jsonl, files: [x], steps: [{kind: minhash, options: {across: [talk]}}]}", "sources.code.steps: across: 'talk' is no source above 'code'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_with_its_place(recipe_file, old, new, message):
    assert old in GOOD
    with pytest.raises(UserError) as error:
        load_recipe(recipe_file(GOOD.replace(old, new, 1)))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert "r.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a: [1", "r.yaml:2"),
        ("- 1", "a recipe is a mapping"),
        ("1: 2", "the key 1 is not text"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("[" * 5000, "r.yaml"),
    ],
)
def test_not_a_recipe(recipe_file, text, message):
    with pytest.raises(UserError, match=".") as error:
        load_recipe(recipe_file(text))
    assert message in str(error.value)


def test_not_utf8_and_missing(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"name: \xff")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 6\)"):
        load_recipe(str(tmp_path / "x.yaml"))
    with pytest.raises(UserError, match="no such recipe file"):
        load_recipe(str(tmp_path / "y.yaml"))
    with pytest.raises(UserError, match="did you mean 'nano'"):
        load_recipe("nanno")


def test_overrides(recipe_file):
    file = recipe_file(GOOD)
    recipe = load_recipe(file, ["stages.one.lr.peak=2e-5", "seed=7", "chat.name=Ida"])
    assert recipe.stages["one"].lr.peak == 2e-5
    assert (recipe.seed, recipe.chat.name) == (7, "Ida")
    with pytest.raises(UserError, match=r"stages.one.lr.peek: unknown key; did you mean 'peak'"):
        load_recipe(file, ["stages.one.lr.peek=1"])
    with pytest.raises(UserError, match="write it as"):
        load_recipe(file, ["seed"])
    with pytest.raises(UserError, match="is inside a value"):
        load_recipe(file, ["name.x=1"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("1_000", 1000), ("no", "no"), ("on", "on"), ("true", True), ("~", None),
        ("010", 10), (".inf", float("inf")), ("1.", 1.0), ("2026-01-01", "2026-01-01"), ("1:30", "1:30"),
    ],
)  # fmt: skip
def test_yaml_scalars(text, value):
    parsed = parse_yaml(f"a: {text}", "t")[0]["a"]
    assert parsed == value
    assert type(parsed) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_yaml(x):
    assert parse_yaml(f"a: {x!r}", "t")[0]["a"] == x


@given(st.text(max_size=200))
def test_any_text_is_a_value_or_one_clear_line(text):
    try:
        parse_yaml(text, "t")
    except UserError as e:
        assert "\n" not in str(e)


def test_merge_keys_are_no_duplicates():
    value, _ = parse_yaml("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n", "t")
    assert value["b"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("stage", ["stage1", "stage2", "decay", "long_a", "long_b", "sft"])
def test_batch_a_billion_of_the_published_mixture_takes_milliseconds(stage):
    from smollm3.data import Mixture

    spec = load_recipe("smollm3-3b").stages[stage]
    mixture = Mixture(spec.mixture)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        samples = mixture.samples(10**9 * spec.batch, (10**9 + 1) * spec.batch)
        seconds.append(time.process_time() - started)
    assert len(samples) == spec.batch
    assert min(seconds) < 0.02


def test_the_published_budget():
    """4,720,000 steps of 2,359,296 tokens, and 42,000 more in the long-context stages."""
    stages = load_recipe("smollm3-3b").stages
    tokens = {
        name: stages[name].batch * stages[name].context
        for name in ("stage1", "stage2", "decay", "long_a", "long_b")
    }
    assert set(tokens.values()) == {2_359_296}
    steps = {name: stages[name].steps for name in tokens}
    assert steps["stage1"] + steps["stage2"] + steps["decay"] == 4_720_000
    assert sum(steps.values()) * 2_359_296 == pytest.approx(11.235e12, rel=1e-4)
