"""The rebuilt SmolLM3 tokenizer against transformers on generated text and ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from smollm3.tokenizer import CONTROL, Tokenizer

CONTROL_IDS = set(range(128000, 128256))
BLOCKS = [
    (0x20, 0x7E),  # ASCII
    (0xA0, 0x24F),  # Latin
    (0x370, 0x3FF),  # Greek
    (0x400, 0x4FF),  # Cyrillic
    (0x590, 0x5FF),  # Hebrew
    (0x600, 0x6FF),  # Arabic, with its digits
    (0x900, 0x97F),  # Devanagari
    (0xE00, 0xE7F),  # Thai
    (0x300, 0x36F),  # combining marks
    (0x2000, 0x206F),  # spaces, joiners, direction marks
    (0x3040, 0x30FF),  # kana
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7A3),  # Hangul
    (0xE000, 0xE0FF),  # private use
    (0x1D400, 0x1D7FF),  # mathematical letters
    (0x1F300, 0x1FAFF),  # emoji
]
WORDS = [
    "don't",
    "I'LL",
    "ſ's",
    "1234567",
    "x=1;\r\n",
    "    return",
    "…",
    "ﬁ",
    "İ",
    "Ⅷ",
    "²³",
    "٣٤٥",
]
EMOJI = ["👩‍👩‍👧‍👦", "🇫🇷", "👍🏽", "❤️", "#️⃣"]
BLANKS = [
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\n\n\n",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\x0b",
    "\x85",
]
script = st.sampled_from(BLOCKS).flatmap(
    lambda block: st.text(
        st.characters(min_codepoint=block[0], max_codepoint=block[1]), max_size=12
    )
)
plain = st.one_of(
    script,
    script,
    st.sampled_from(WORDS + EMOJI),
    st.lists(st.sampled_from(BLANKS), max_size=4).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
control = st.sampled_from([*CONTROL, "<|reserved_special_token_42|>"])
broken = control.flatmap(lambda token: st.integers(1, len(token)).map(lambda n: token[:n]))
plain_texts = st.lists(plain, max_size=8).map("".join)
texts = st.lists(st.one_of(plain, plain, control, broken), max_size=10).map("".join)
many = settings(max_examples=300)


@pytest.fixture(scope="module")
def ours(exact_tokenizer: Tokenizer) -> Tokenizer:
    return exact_tokenizer


@pytest.fixture(scope="module")
def theirs(smollm3_tokenizer: Path) -> Any:
    return AutoTokenizer.from_pretrained(smollm3_tokenizer)


def test_the_settings_agree(ours: Tokenizer, theirs: Any) -> None:
    assert theirs.is_fast
    assert len(theirs) == ours.vocab_size
    assert theirs.bos_token is None
    assert theirs.eos_token_id in ours.stop_ids
    assert theirs.pad_token_id == ours.pad_id
    assert theirs.chat_template == ours.template


@many
@given(text=texts)
def test_markup_encodes_alike(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode_markup(text)
    assert ids == theirs.encode(text)
    assert ours.decode(ids) == theirs.decode(ids) == text


@many
@given(text=texts)
def test_text_never_becomes_a_control_token(ours: Tokenizer, theirs: Any, text: str) -> None:
    ids = ours.encode(text)
    assert not set(ids) & CONTROL_IDS
    assert ours.decode(ids) == theirs.decode(ids) == text


@many
@given(text=plain_texts.filter(lambda text: not any(token in text for token in CONTROL)))
def test_text_without_control_tokens_encodes_alike(ours: Tokenizer, theirs: Any, text: str) -> None:
    assert ours.encode(text) == theirs.encode(text)


@many
@given(
    ids=st.lists(
        st.one_of(st.integers(0, 128255), st.integers(0, 300), st.integers(128000, 128255)),
        max_size=12,
    ),
    skip=st.booleans(),
)
def test_any_ids_decode_alike(ours: Tokenizer, theirs: Any, ids: list[int], skip: bool) -> None:
    """Halves of characters too: both say U+FFFD."""
    assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
