"""What a stage tells while it works, and what its conversations are rendered with."""

import json

import pytest

from smollm3.checkpoint.config import to_json
from smollm3.errors import UserError
from smollm3.files import write_json
from smollm3.recipe.identity import load_tokenizer
from smollm3.recipe.schema import Recipe
from smollm3.recipe.stages import StageInputs, _model_config, _prepare
from smollm3.tokenizer import Tokenizer


def test_preparing_data_reports_its_documents(tokenizer, tmp_path):
    web = {"kind": "procedural", "generator": "web", "documents": 300}
    recipe = Recipe.model_validate(
        {"name": "t", "sources": {"web": web, "more": web}, "stages": {"out": {"kind": "export", "to": ["hf"]}}}
    )  # fmt: skip
    inputs = StageInputs("out", recipe, {}, {}, [], None, tmp_path, tmp_path)
    told = []
    _prepare(inputs, ["web", "more"], tokenizer, lambda *said: told.append(said))
    for i, name in enumerate(("web", "more")):
        said = [
            detail
            for what, done, of, detail in told
            if (what, done, of) == ("preparing data", i, 2)
        ]
        documents = [
            int(detail.removeprefix(f"{name}: ").removesuffix(" documents")) for detail in said
        ]
        assert documents == sorted(documents)
        assert (documents[0], documents[-1]) == (0, 300)
        assert len(documents) > 2
    told.clear()
    _prepare(inputs, ["web"], tokenizer, lambda *said: told.append(said))  # it is there already
    assert told == [("preparing data", 0, 1, "web: 0 documents")]


CHAT = {"name": "t", "stages": {"out": {"kind": "export", "to": ["hf"]}}}


@pytest.mark.parametrize("chat", [{}, {"name": "Bo", "maker": "Us"}])
def test_a_model_is_told_the_recipes_identity(tokenizer, tmp_path, chat):
    recipe = Recipe.model_validate(CHAT | ({"chat": chat} if chat else {}))
    asked = [{"role": "user", "content": "Who?"}]
    tokenizer.save(tmp_path / "ours")
    text = load_tokenizer(recipe, tmp_path / "ours").render_text(asked)
    assert ("You are Bo, made by Us." in text) == bool(chat)
    tokenizer.with_template("{{ messages[0].content }}").save(tmp_path / "theirs")
    if chat:
        with pytest.raises(
            UserError, match="chat: the template of .*theirs has no place for a name"
        ):
            load_tokenizer(recipe, tmp_path / "theirs")
    else:
        assert load_tokenizer(recipe, tmp_path / "theirs").render_text(asked) == "Who?"
    tokenizer.with_template("").save(tmp_path / "none")
    assert "system\n" in load_tokenizer(recipe, tmp_path / "none").render_text(asked)


def test_an_added_token_without_an_embedding_is_refused_before_training(make_job, tmp_path):
    job = make_job(tmp_path / "work")
    write_json(tmp_path / "model" / "config.json", to_json(job.model, "float32"))
    tokenizer = Tokenizer.load(job.tokenizer)
    inputs = StageInputs(
        "s",
        Recipe.model_validate(CHAT),
        {"m": tmp_path / "model"},
        {},
        [],
        None,
        tmp_path,
        tmp_path,
    )
    assert _model_config(job.stage, inputs, tokenizer) == job.model
    parts = json.loads(tokenizer.source)
    parts["added_tokens"].append(parts["added_tokens"][0] | {"id": 292, "content": "<|new|>"})
    more = Tokenizer(json.dumps(parts), tokenizer._config, tokenizer.template)
    with pytest.raises(UserError, match="model: its tokenizer has 293 entries, the model embeddi"):
        _model_config(job.stage, inputs, more)
