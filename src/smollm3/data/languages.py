"""The language of a text by its commonest words, or its script: enough to count by."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_WORD = re.compile(r"\w+")
# The commonest words of SmolLM3's languages, most of which no other of them has.
LANGUAGES = {
    name: frozenset(words.split())
    for name, words in {
        "en": "the of and to in is that it for was on are with as be this by not from or have",
        "fr": "le la les des et est une dans qui pour pas sur au avec ce il sont du vous nous",
        "de": "der die das und ist nicht ein eine zu den mit von auf für dem sich auch es wird",
        "es": "el los las y en que del por una con para es como más pero sus le está son muy",
        "it": "il di che è per non una sono con del della le gli anche più come nel alla ma si",
        "pt": "o os as e que do da em um uma não para com é por mais como dos no na ao são",
    }.items()
}


def language(text: str) -> str | None:
    """The one of SmolLM3's six languages whose commonest words a text uses most; None for too few
    words to tell."""
    words = Counter(_WORD.findall(text.lower()))
    scores = {name: sum(words[w] for w in common) for name, common in LANGUAGES.items()}
    best, second = sorted(scores, key=lambda name: -scores[name])[:2]
    if scores[best] < 3 or scores[best] <= scores[second]:
        return None
    return best


def script(text: str) -> str | None:
    """The script of most of a text's first letters, as Unicode names it (CYRILLIC, CJK, ...); None
    for Latin ones, and without letters."""
    letters = [c for c in text[:500] if c.isalpha()]
    scripts = Counter(unicodedata.name(c, "?").split()[0] for c in letters)
    most = scripts.most_common(1)
    return most[0][0] if most and most[0][0] != "LATIN" else None
