"""Text as it comes: whole characters, and nothing of a stop text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smollm3.infer.text import StopTexts, TextStream


@given(
    text=st.text(max_size=12),
    ids=st.lists(st.integers(0, 291), max_size=40),
)
def test_pieces_are_whole_characters(tokenizer, text, ids):
    for tokens, clean in ((tokenizer.encode(text), True), (ids, False)):
        stream = TextStream(tokenizer)
        pieces = [*map(stream.push, tokens), stream.end()]
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special=True)
        if clean:
            assert "".join(pieces) == text
            assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_characters_come_as_soon_as_they_are_whole(tokenizer):
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("語ü!")  # bytes the tokenizer has not merged
    assert len(tokens) == 6
    assert [stream.push(token) for token in tokens] == ["", "", "語", "", "ü", "!"]


def test_an_endless_run_of_broken_bytes_is_not_decoded_again_and_again(tokenizer, monkeypatch):
    [first, *_] = tokenizer.encode("語")
    lengths = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **kw: lengths.append(len(ids)) or decode(ids, **kw)
    )
    stream = TextStream(tokenizer)
    pieces = [stream.push(first) for _ in range(200)]
    assert max(lengths) < 20
    assert "".join(pieces) + stream.end() == decode([first] * 200, skip_special=True)


@pytest.mark.parametrize(
    ("stops", "pieces", "shown"),
    [
        (["<end>"], ["a", "<e", "nd", ">", "b"], ["a", "", "", "", None]),
        (["<end>"], ["a<en", "x", "<"], ["a", "<enx", ""]),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
        (["ab", "b"], ["xa", "b"], ["x", ""]),
        ([], ["a", "b"], ["a", "b"]),
        (["é"], ["caf", "é!"], ["caf", ""]),
    ],
)
def test_stop_texts(stops, pieces, shown):
    stop = StopTexts(stops)
    for piece, expected in zip(pieces, shown, strict=True):
        if expected is None:
            assert stop.found
            return
        assert stop.push(piece) == expected


@given(
    pieces=st.lists(st.text("ab<", max_size=4), max_size=12),
    stops=st.lists(st.text("ab<", min_size=1, max_size=4), max_size=3),
)
def test_pieces_end_before_the_first_stop_text(pieces, stops):
    stop, shown = StopTexts(stops), ""
    for piece in pieces:
        shown += stop.push(piece)
        if stop.found:
            break
    else:
        shown += stop.end()
    whole = "".join(pieces)
    places = [whole.find(s) for s in stops if s in whole]
    if not stop.found:
        assert not places
        assert shown == whole
        return
    # The first to be complete as the text comes; of those complete at once, the one that begins first.
    assert whole.startswith(shown)
    assert any(whole.startswith(s, len(shown)) for s in stops)
    assert len(shown) >= min(places)
