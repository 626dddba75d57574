"""Texts of strangers, for a terminal."""

from __future__ import annotations

# Characters that would move the cursor, colour the rest, or turn the text around.
_HIDDEN: dict[int, str] = {
    **dict.fromkeys((*range(32), *range(127, 160)), "\ufffd"),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
    ord("\n"): "\n",
    ord("\t"): "    ",
}


def visible(text: str) -> str:
    """The text without what a terminal would obey: a model may write anything."""
    return text.translate(_HIDDEN)
