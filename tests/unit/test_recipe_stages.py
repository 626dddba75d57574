"""What a stage tells while it works."""

from smollm3.recipe.schema import Recipe
from smollm3.recipe.stages import StageInputs, _prepare


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
