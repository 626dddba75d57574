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
    assert told == [
        ("preparing data", i, 2, f"{name}: {documents} documents")
        for i, name in enumerate(("web", "more"))
        for documents in (0, 256, 300)
    ]
    told.clear()
    _prepare(inputs, ["web"], tokenizer, lambda *said: told.append(said))  # it is there already
    assert told == [("preparing data", 0, 1, "web: 0 documents")]
