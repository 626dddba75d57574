"""The exact SmolLM3 tokenizer, rebuilt from the ranks inside `llama-models`."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from smollm3.chat import default_template
from smollm3.errors import UserError
from smollm3.files import sha256_file
from smollm3.tokenizer import Tokenizer
from smollm3.tokenizer import build as tokenizer_build
from smollm3.tokenizer.build import CONTROL_TOKENS, PIECES, read_ranks, tokenizer_json


def test_it_is_the_published_file(smollm3_tokenizer: Path) -> None:
    file = smollm3_tokenizer / "tokenizer.json"
    assert file.stat().st_size == 17_208_819
    assert sha256_file(file) == "7b6a500b662a34eb3f0374db856ba4ad7de4c81040571d78dc0d357238930005"
    assert "llama_models" not in sys.modules


@pytest.fixture(scope="module")
def tokenizer(exact_tokenizer: Tokenizer) -> Tokenizer:
    return exact_tokenizer


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The quick brown fox", [791, 4062, 14198, 39935]),
        ("1234567890", [4513, 10961, 16474, 15]),
        ("I'm testing SmolLM3.", [40, 2846, 7649, 4487, 337, 11237, 18, 13]),
        ("camelCase42HTTP", [94421, 4301, 2983, 9412]),
        ("你好，SmolLM3！", [57668, 53901, 3922, 10902, 337, 11237, 18, 6447]),
        ("Hello   world\nnext", [9906, 256, 1917, 198, 3684]),
        ("user", [882]),
        ("assistant", [78191]),
        ("\n", [198]),
        ("", []),
    ],
)
def test_published_encodings(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == tokenizer.encode_markup(text) == ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("token", "index", "special"),
    [
        ("<|begin_of_text|>", 128000, True),
        ("<|end_of_text|>", 128001, True),
        ("<think>", 128002, False),
        ("</think>", 128003, False),
        ("<|finetune_right_pad_id|>", 128004, True),
        ("<|reserved_special_token_2|>", 128005, True),
        ("<|start_header_id|>", 128006, True),
        ("<|python_tag|>", 128010, True),
        ("<|im_start|>", 128011, True),
        ("<|im_end|>", 128012, True),
        ("<tool_response>", 128013, False),
        ("</tool_call>", 128016, False),
        ("</code>", 128018, False),
        ("<|reserved_special_token_11|>", 128019, True),
        ("<|reserved_special_token_247|>", 128255, True),
    ],
)
def test_control_tokens(tokenizer: Tokenizer, token: str, index: int, special: bool) -> None:
    assert tokenizer.encode_markup(token) == [index]
    assert tokenizer.decode([index], skip_special=True) == ("" if special else token)
    assert not set(tokenizer.encode(f"a {token} b")) & set(range(128000, 128256))


def test_settings(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == PIECES + CONTROL_TOKENS == 128256
    assert tokenizer.bos is None
    assert tokenizer.stop_ids == (128012, 128001)
    assert tokenizer.end_of_text_id == 128001
    assert tokenizer.pad_id == 128004
    assert tokenizer.template == default_template()


def ranks(tmp_path: Path, lines: list[bytes]) -> Path:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def line(piece: bytes, rank: int) -> bytes:
    return base64.b64encode(piece) + b" %d" % rank


@pytest.mark.parametrize(
    "bad", [b"", b"!!!! 2", b"YQ==", b"YQ== two", b"YQ== 3", b"YQ== 2 2", b"\xff\xfe 2"]
)
def test_damaged_ranks_are_named(tmp_path: Path, bad: bytes) -> None:
    path = ranks(tmp_path, [line(b"a", 0), line(b"b", 1), bad, line(b"c", 3)])
    with pytest.raises(UserError, match=r"tokenizer\.model: line 3: .*pip install --no-deps"):
        read_ranks(path)


def test_another_vocabulary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ranks(tmp_path, [line(bytes([i]), i) for i in range(256)])
    monkeypatch.setattr(tokenizer_build, "packaged_file", lambda package, name: path)
    with pytest.raises(UserError, match="gives another tokenizer"):
        tokenizer_build.build(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_build, "PACKAGE", "no_such_models")
    with pytest.raises(UserError, match="pip install --no-deps no-such-models"):
        tokenizer_build.build(tmp_path)


def test_merges_come_from_ranks() -> None:
    """Every pair of pieces that makes a piece, in the order of what it makes, then of its parts."""
    pieces = [b"a", b"b", b"c", b"ab", b"bc", b"abc", b"\xc3", b"abcd"]
    merges = json.loads(tokenizer_json(pieces))["model"]["merges"]
    assert merges == [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]
    assert json.loads(tokenizer_json(pieces))["model"]["vocab"]["Ã"] == 6
