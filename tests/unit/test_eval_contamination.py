"""Items that stand in training data are found, whatever their letters and signs."""

import json

import pytest

from smollm3.errors import UserError
from smollm3.eval.contamination import ItemIndex, documents, grams

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def test_grams_are_words_in_a_row():
    assert list(grams("A b, c!", 2)) == ["a b", "b c"]
    assert list(grams("A b", 3)) == ["a b"]
    assert list(grams("...", 3)) == []


def test_an_item_is_found_where_thirteen_words_are():
    index = ItemIndex([ITEM, "short one", ITEM.replace("seven", "other")])
    assert index.short == 1
    near = f"Before. {ITEM.upper().replace(' ', ', ')} after"
    assert index.found_in(near) == {0}
    assert index.found_in(" ".join(ITEM.split()[:12])) == set()
    found = index.overlap([near, "short one", "nothing"])
    assert (found.items, found.of_items, found.documents, found.of_documents) == ((0,), 3, 1, 3)
    assert list(index.clean([near, "nothing"])) == ["nothing"]


def test_documents_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("all of it")
    row = {"messages": [{"role": "user", "content": "hi"}], "n": 3}
    (tmp_path / "b.jsonl").write_text(json.dumps(row) + "\n\n")
    assert list(documents([tmp_path / "a.txt"])) == ["all of it"]
    assert list(documents([tmp_path / "b.jsonl"])) == ["user\nhi"]
    (tmp_path / "c.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"c\.jsonl:1: not valid JSON"):
        list(documents([tmp_path / "c.jsonl"]))
