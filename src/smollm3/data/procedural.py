"""Sources that are made on the spot: short web-like text, maths, long documents, chat, pairs.

Row `index` of a generator depends on (seed, generator, index, options) alone. The texts are what a
very small model can learn something from: they repeat, so that copying pays; they state facts that
the questions of `synthetic` use; and never a question that is held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

from smollm3.data import synthetic
from smollm3.data.words import LANGUAGES, NAMES, WORDS, Language
from smollm3.errors import UserError

Options = Mapping[str, Any]


def _language(options: Options) -> tuple[str, Language]:
    name = options.get("language", "en")
    if name not in LANGUAGES:
        raise UserError(f"options.language: no {name!r}; there are {', '.join(LANGUAGES)}")
    return name, LANGUAGES[name]


def _sentence(rng: Random, words: Language) -> str:
    a, b = rng.sample(NAMES, 2)
    w, v = rng.sample(words.things, 2)
    return rng.choice(words.stories).format(
        a=a, b=b, w=w, v=v, p=rng.choice(words.places), n=words.numbers[rng.randint(2, 12)]
    )


def _story(rng: Random, words: Language) -> str:
    return " ".join(_sentence(rng, words) for _ in range(rng.randint(4, 8)))


def _repeated(rng: Random, words: Language) -> str:
    """A list of words, again and again: the densest lesson in copying."""
    chosen = rng.sample((*words.things, *WORDS, *NAMES), rng.randint(4, 12))
    return "\n".join([" ".join(chosen)] * rng.randint(2, 4))


def _recall(rng: Random) -> str:
    n = rng.randint(4, 7)
    facts = [
        f"{name}: {word}."
        for name, word in zip(rng.sample(NAMES, n), rng.sample(WORDS, n), strict=True)
    ]
    return "\n".join("Words: " + " ".join(rng.sample(facts, n)) for _ in range(rng.randint(2, 3)))


def _number_facts(rng: Random, name: str, words: Language) -> str:
    lines: list[str] = []
    while len(lines) < 5:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        if synthetic.is_held_out(synthetic.language_question(name, a, b)):
            continue
        one, other, total = words.numbers[a], words.numbers[b], words.numbers[a + b]
        lines.append(
            rng.choice(
                (
                    words.fact.format(a=one, b=other, c=total),
                    f"{words.question.format(a=one, b=other)} So {a}+{b}={a + b}.",
                    f"{one}:{a} {other}:{b} {total}:{a + b}",
                )
            )
        )
    return "\n".join(lines)


def web(rng: Random, options: Options) -> dict[str, Any]:
    """Short text in one language (option `language`): lists, stories, facts to recall, numbers."""
    name, words = _language(options)
    draw = rng.random()
    # Most are lists: with 30% of them a model of 64 channels learnt to copy only after some 3,000
    # steps of 1,024 tokens, and without it no reasoning is of use; with 60% after 1,500.
    if draw < 0.6:
        text = _repeated(rng, words)
    elif draw < 0.7:
        text = _story(rng, words)
    elif draw < 0.85:
        text = _recall(rng)
    else:
        text = _number_facts(rng, name, words)
    return {"text": text + "\n"}


def maths(rng: Random, options: Options) -> dict[str, Any]:
    """Sums, last digits, and the tasks of `synthetic` worked out on paper."""
    draw = rng.random()
    if draw < 0.2:
        pairs = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(8)]
        text = "\n".join(f"{a}+{b}={a + b}\n{a + b}-{b}={a}" for a, b in pairs)
    elif draw < 0.4:
        lines = []
        for _ in range(8):
            a, b, sign = rng.randint(0, 9), rng.randint(0, 9), rng.choice("+-*")
            value = a + b if sign == "+" else a - b if sign == "-" else a * b
            lines.append(f"Last digit of {a}{sign}{b}={value % 10}")
        text = "\n".join(lines)
    else:
        return {"text": synthetic.worked(rng, rng.choice(("sum", "mod", "ops")))}
    return {"text": text + "\n"}


def longdoc(rng: Random, options: Options) -> dict[str, Any]:
    """About `words` words (option, 300) of mixed-language filler in which the words of six people
    are told and retold: knowing them means looking far back."""
    n = 6
    people = list(zip(rng.sample(NAMES, n), rng.sample(WORDS, n), strict=True))
    sentences, length = [], 0
    while length < options.get("words", 300):
        if rng.random() < 0.3:
            sentence = "Word of {}: {}.".format(*rng.choice(people))
        else:
            sentence = _sentence(rng, rng.choice(list(LANGUAGES.values())))
        sentences.append(sentence)
        length += len(sentence.split())
    return {"text": " ".join(sentences) + "\n"}


GENERATORS: dict[str, tuple[str, Callable[[Random, Options], dict[str, Any]]]] = {
    "web": ("text", web),
    "maths": ("text", maths),
    "longdoc": ("text", longdoc),
    "chat": ("chat", synthetic.chat_row),
    "pairs": ("preference", synthetic.pair_row),
}
_OPTIONS = {
    "web": {"language"},
    "maths": set(),
    "longdoc": {"words"},
    "chat": {"tasks", "think", "name", "turns"},
    "pairs": {"tasks", "think"},
}


def rows(
    generator: str, form: str, n: int, seed: int, options: Options, first: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows first..n-1 of a generator in the columns that files have; `form` is the source's
    `format`. A wrong generator, option or format is a UserError."""
    if generator not in GENERATORS:
        raise UserError(f"no generator {generator!r}; there are {', '.join(GENERATORS)}")
    made, make = GENERATORS[generator]
    if made != form:
        raise UserError(f"generator {generator} makes {made}, not {form}; set format: {made}")
    if unknown := sorted(set(options) - _OPTIONS[generator]):
        known = ", ".join(sorted(_OPTIONS[generator])) or "none"
        raise UserError(f"generator {generator} has no option {unknown[0]!r} (known: {known})")
    for index in range(first, n):
        yield make(Random(f"{seed}/{generator}/{index}"), options)
