"""Tokenizer files of strangers: no part makes a text grow without bound, and none ends the process.

Bound: a text of 10 kB is encoded and decoded in less than 3 s of processor time, or the file refused.
"""

import json
import time

import pytest

from smollm3.errors import UserError
from smollm3.tokenizer import Tokenizer

pytestmark = pytest.mark.xdist_group("attack")
TEXT = "the model a " * 800


def replace(pattern, content):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(name, *parts):
    return {"type": "Sequence", name: list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
TOKEN = {
    "id": 3,
    "content": "x" * (1 << 20),
    "special": True,
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
}
SPECIAL = {"<x>": {"id": "<x>", "ids": [3] * 1_000_000, "tokens": ["a"] * 1_000_000}}
HOSTILE = {
    "one long": {"normalizer": replace("a", "b" * 1_000_000)},
    "doubling": {"normalizer": sequence("normalizers", *[replace("a", "aa")] * 40)},
    "before": {"normalizer": {"type": "Prepend", "prepend": "b" * 10_000_000}},
    "deep": {"normalizer": sequence("normalizers", sequence("normalizers", *[replace("a", "aaa")] * 9))},
    "compiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA" * 1000}},
    "decoder": {"decoder": sequence("decoders", BYTES, replace("e", "b" * 1_000_000))},
    "processor": {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}], "pair": [], "special_tokens": SPECIAL}},
    "giant token": {"added_tokens": [TOKEN]},
    "backtracking": {"pre_tokenizer": sequence("pretokenizers", {"type": "Split", "pattern": {"Regex": "(a|a)*b|(\\w+\\s?)+!"}, "behavior": "Isolated", "invert": False}, BYTES)},
    "unknown": {"pre_tokenizer": {"type": "Python", "code": "1"}},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_parts_that_grow(tokenizer, name):
    content = json.loads(tokenizer.source)
    for key, value in HOSTILE[name].items():
        content[key] = [*content[key], *value] if isinstance(value, list) else value
    begun = time.process_time()
    try:
        loaded = Tokenizer(json.dumps(content), tokenizer._config, tokenizer.template)
        ids = loaded.encode(TEXT)
        assert len(loaded.decode(ids)) < 100 * len(TEXT)
    except UserError as e:
        assert "tokenizer" in str(e)
    assert time.process_time() - begun < 3


def test_usual_files_are_read(tokenizer):
    """Also of models that write one sign for a blank."""
    content = json.loads(tokenizer.source)
    blank = sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁"))
    for normalizer in (None, {"type": "NFC"}, blank):
        content["normalizer"] = normalizer
        assert Tokenizer(json.dumps(content), tokenizer._config, tokenizer.template).encode("the")
