"""tiktoken gives the ids that tokenizers gives, or is not used."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3.data import encoder as encoder_module
from smollm3.data.encoder import same_merges, text_encoder

pytest.importorskip("tiktoken")

# Pieces that regular expressions and byte pairs treat apart: blanks, line ends, contractions,
# digits, marks that combine, scripts, emoji, control tokens spelled in text, private characters.
PIECES = [
    *(" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff"),
    *("'s", "'S", "'ll", "’s", "don't", "I'VE", "ſ", "K", "İ", "ß", "e\u0301", "\u0301"),
    *("1", "12", "1234", "٣", "²", "½", "Ⅻ", "१२", "𝟙", "한국어", "日本", "ไทย", "עברית", "مرحبا"),
    *("é", "🙂", "👩‍👩‍👧", "🇫🇷", "<|im_end|>", "<think>", "\x00", "\x7f", "\ue000", "\U000e0001"),
    *("word", "Word", "WORD", "_", "__", "-", "--", "...", "(", "){", "/*", "*/", "\\", "x=1;"),
]


@pytest.fixture(scope="module")
def exact(exact_tokenizer):
    return exact_tokenizer


@pytest.fixture(scope="module")
def fast(exact):
    encode = text_encoder(exact)
    assert encode != exact.encode_batch
    return encode


def test_mixed_pieces(exact, fast):
    rng = random.Random(0)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 60))) for _ in range(3000)]
    assert fast(texts) == exact.encode_batch(texts)


@settings(max_examples=300)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text(exact, fast, text):
    assert fast([text]) == exact.encode_batch([text])


def test_long_runs(exact, fast, monkeypatch):
    texts = ["a" * 20_000, "\n" * 20_000, " \n" * 5_000, "=" * 9_999, "é" * 5_000, ""]
    assert fast(texts) == exact.encode_batch(texts)
    asked = []
    monkeypatch.setattr(exact, "encode", lambda text: asked.append(len(text)) or [7])
    assert fast(["x" + " " * encoder_module._MANY]) == [[7]]
    assert asked == [encoder_module._MANY + 1]


@pytest.mark.slow
def test_every_character(exact, fast):
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(characters), 4096):
        texts = [
            f"a{c}a 1{c}1 !{c}! {c}\n {c} \r{c}'{c}s" for c in characters[start : start + 4096]
        ]
        assert fast(texts) == exact.encode_batch(texts)


def test_other_tokenizers_keep_their_own(tokenizer):
    assert text_encoder(tokenizer) == tokenizer.encode_batch  # trained here: no ignore_merges


def parts(merges, tokens):
    letters = [chr(0x100 + i) for i in range(256)]
    vocabulary = {token: i for i, token in enumerate([*letters, *tokens])}
    return {"model": {"vocab": vocabulary, "merges": merges}}


A, B, C = (chr(0x100 + i) for i in range(3))


@pytest.mark.parametrize(
    ("merges", "tokens", "same"),
    [
        ([[A, B], [A + B, C]], [A + B, A + B + C], True),
        ([f"{A} {B}", f"{A + B} {C}"], [A + B, A + B + C], True),
        ([[A + B, C], [A, B]], [A + B, A + B + C], False),  # not in the order of what they make
        ([[A, B], [B, C], [A + B, C]], [A + B, B + C, A + B + C], False),  # A + BC is missing
        ([[A, B], [B, C], [A + B, C], [A, B + C]], [A + B, B + C, A + B + C], True),
    ],
)
def test_when_ranks_are_merges(merges, tokens, same):
    assert same_merges(parts(merges, tokens)) == same


def test_an_added_text_token_is_no_rank(exact):
    source = json.loads(exact.source)
    added = {"id": 128256, "content": "    ", "special": False, "single_word": False}
    source["added_tokens"].append(added | {"lstrip": False, "rstrip": False, "normalized": False})
    assert encoder_module._only_control_added(json.loads(exact.source), exact)
    assert not encoder_module._only_control_added(source, exact)
