"""Prompts of a task, each as long as it may be: deterministic, one at a time.

Every task is a function of a number of units of its haystack (sentences, words, documents); the
number is found by measuring, from the one of the prompt before.
"""

from __future__ import annotations

import random
import string
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from smollm3.errors import UserError
from smollm3.eval.ruler import tasks as prompts
from smollm3.eval.ruler.sources import Question, essays, hotpotqa, squad, words
from smollm3.eval.ruler.tasks import DEPTHS, RulerTask

Count = Callable[[str], int]  # tokens of a prompt, with all that a model's template adds
FILLED = 0.97  # of the length, at least; where the haystack's unit is small enough
SEED = 42
ATTEMPTS = 20


@dataclass(frozen=True)
class Item:
    """prompt: without `prefix`, the beginning of the answer. outputs: references. tokens: of
    prompt and prefix, and room for the answer. depth: of the needle from 0 to 1, if there is one.
    """

    index: int
    prompt: str
    prefix: str
    outputs: list[str]
    tokens: int
    length: int
    depth: float | None = None


@dataclass(frozen=True)
class Files:
    """What a user names: a folder of essays (.txt), SQuAD and HotpotQA files."""

    essays: Path | None = None
    squad: Path | None = None
    hotpotqa: Path | None = None


@dataclass(frozen=True)
class _Draft:
    prompt: str
    prefix: str
    outputs: list[str]
    depth: float | None = None


_Make = Callable[[random.Random, int], _Draft]  # of units
_Sized = tuple[_Draft, int]


@dataclass(frozen=True)
class _Maker:
    """make: a draft of so many units; least: units without which there is no question; most: that
    the files have, None for any."""

    make: _Make
    least: int
    most: int | None = None


def generate(
    task: RulerTask, length: int, samples: int, count: Count, files: Files, seed: int = SEED
) -> Iterator[Item]:
    """Prompts of at most `length` tokens with the answer's, by `count`.

    UserError where a length is too small for the task, or the files have too little text for it.
    """
    units, room = 0, length - task.tokens
    for index in range(samples):
        maker = _maker(task, length, files, index)
        units = units or maker.least
        for attempt in range(ATTEMPTS):

            def measured(
                n: int, name: str = f"{seed}/{task.name}/{length}/{index}/{attempt}"
            ) -> _Sized:
                draft = maker.make(random.Random(name), n)  # noqa: B023
                return draft, count(draft.prompt + draft.prefix)

            units, draft, tokens = _fill(task, measured, maker, units, room, length)
            used = tokens + task.tokens
            if used >= FILLED * length:  # else other documents, of which more may fit
                break
        yield Item(index, draft.prompt, draft.prefix, draft.outputs, used, length, draft.depth)


def _fill(
    task: RulerTask,
    measured: Callable[[int], _Sized],
    maker: _Maker,
    guess: int,
    room: int,
    length: int,
) -> tuple[int, _Draft, int]:
    """The most units that fit, by secants: sizes are nearly linear in units."""
    low, (draft, tokens) = maker.least, measured(maker.least)
    if tokens > room:
        raise UserError(
            f"ruler {task.name}: {length} tokens are too few; the question alone takes "
            f"{tokens + task.tokens}"
        )
    best = low, draft, tokens
    high = maker.most + 1 if maker.most is not None else None
    n = max(guess, low + 1)
    while high is None or high - best[0] > 1:
        if high is not None:
            n = min(max(n, best[0] + 1), high - 1)
        draft, tokens = measured(n)
        if tokens > room:
            high = n
        else:
            best = n, draft, tokens
            if room - tokens <= (1 - FILLED) / 4 * length:
                break
        per_unit = max((tokens - 0.5) / n, 1e-9)
        step = max(int((room - best[2]) / per_unit * 0.98), 1)
        n = best[0] + step
    if best[2] + task.tokens < FILLED * length and maker.most is not None and best[0] == maker.most:
        raise UserError(
            f"ruler {task.name}: the files have text for {best[2] + task.tokens:,} tokens only, "
            f"not for {length:,}; name larger ones"
        )
    return best


def _maker(task: RulerTask, length: int, files: Files, index: int) -> _Maker:
    match task.kind:
        case "niah":
            return _niah(task, files)
        case "vt":
            return _Maker(_variables, 6)
        case "cwe":
            return _common_words(length)
        case "fwe":
            return _frequent_words(length)
        case "qa":
            questions = squad(files.squad) if task.haystack == "squad" else hotpotqa(files.hotpotqa)
            return _documents(
                questions.questions[index % len(questions.questions)], questions.texts
            )


# needles


def _niah(task: RulerTask, files: Files) -> _Maker:
    sentences = essays(files.essays) if task.haystack == "essay" else []
    count = task.keys * task.values

    def make(rng: random.Random, n: int) -> _Draft:
        keys = [_random(task.key, rng) for _ in range(task.keys)]
        values = {key: [_random(task.value, rng) for _ in range(task.values)] for key in keys}
        needles = [_needle(task, key, v) for key in keys for v in values[key]]
        rng.shuffle(needles)
        queried = rng.sample(keys, task.queried)
        places, total = _places(task, rng, n, count)
        context = _mixed(_straw(task, rng, n, sentences), needles, places)
        one = task.queried * task.values == 1
        query = (
            queried[0] if len(queried) == 1 else ", ".join(queried[:-1]) + f", and {queried[-1]}"
        )
        template, prefix, kind = prompts.NIAH, prompts.NIAH_PREFIX, str(task.value)
        if one:
            template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
            prefix = prefix.replace(" are", " is")
            kind = kind[:-1]
        glue = " " if task.haystack == "essay" else "\n"
        prompt = template.format(type=kind, context=glue.join(context), query=query)
        outputs = [value for key in queried for value in values[key]]
        depth = places[0] / max(total, 1) if one and count == 1 else None
        return _Draft(prompt, prefix.format(type=kind, query=query), outputs, depth)

    return _Maker(make, count)


def _straw(task: RulerTask, rng: random.Random, n: int, sentences: Sequence[str]) -> list[str]:
    match task.haystack:
        case "noise":
            return [prompts.NOISE] * n
        case "needle":
            return [
                _needle(task, _random(task.key, rng), _random(task.value, rng)) for _ in range(n)
            ]
        case _:  # the essays again and again, as often as needed
            whole, rest = divmod(n, len(sentences))
            return [*sentences] * whole + list(sentences[:rest])


def _places(task: RulerTask, rng: random.Random, n: int, count: int) -> tuple[list[int], int]:
    """Before which unit each needle goes, rising."""
    if task.haystack == "essay":
        depths = sorted(rng.sample(range(DEPTHS), count))
        return [n * depth // (DEPTHS - 1) for depth in depths], n
    return sorted(rng.sample(range(n), count)), n


def _mixed(straw: list[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    for place, needle in sorted(zip(places, needles, strict=True), key=lambda p: -p[0]):
        straw.insert(place, needle)
    return straw


def _needle(task: RulerTask, key: str, value: str) -> str:
    return prompts.NEEDLE.format(type=task.value, key=key, value=value)


def _random(kind: str, rng: random.Random) -> str:
    match kind:
        case "words":
            return f"{rng.choice(words().adjectives)}-{rng.choice(words().nouns)}"
        case "numbers":
            return str(rng.randint(10**6, 10**7 - 1))
        case _:
            return str(uuid.UUID(int=rng.getrandbits(128), version=4))


# variables


def _variables(rng: random.Random, n: int) -> _Draft:
    """One chain of four hops, behind a short example of the same."""
    example, prefix, names = _chain(rng, 10, letters=3)
    asked, asked_prefix, outputs = _chain(rng, n, letters=5)
    shown = f"{example}{prefix}{' '.join(names)}\n\n\n"
    return _Draft(shown + asked, asked_prefix, outputs)


def _chain(rng: random.Random, noises: int, letters: int) -> tuple[str, str, list[str]]:
    names: list[str] = []
    while len(names) < 5:
        name = "".join(rng.choices(string.ascii_uppercase, k=letters))
        if name not in names:
            names.append(name)
    value = str(rng.randint(10_000, 99_999))
    chain = [f"VAR {names[0]} = {value}"]
    chain += [f"VAR {b} = VAR {a} " for a, b in pairwise(names)]
    sentences = [f"{prompts.NOISE}\n"] * noises
    for shift, place in enumerate(sorted(rng.sample(range(noises), len(chain)))):
        sentences.insert(place + shift, chain[shift])
    context = " ".join(sentences).replace(". \n", ".\n")
    prompt = prompts.VT.format(context=context, query=value)
    return prompt, prompts.VT_PREFIX.format(count=len(names), query=value), names


# words


def _common_words(length: int) -> _Maker:
    short = length < 4096
    often, seldom = (6, 1) if short else (30, 3)
    example = (20, 3, 1) if short else (40, 10, 3)

    def make(rng: random.Random, n: int) -> _Draft:
        shown, shown_words = _word_list(rng, *example)
        asked, outputs = _word_list(rng, n, often, seldom)
        answer = " ".join(f"{i}. {word}" for i, word in enumerate(shown_words, 1))
        return _Draft(f"{shown}{prompts.CWE_PREFIX} {answer}\n{asked}", prompts.CWE_PREFIX, outputs)

    return _Maker(make, 11)


def _word_list(rng: random.Random, n: int, often: int, seldom: int) -> tuple[str, list[str]]:
    """n different words, ten of them often, the others seldom; and the ten."""
    chosen = words().different(rng, n)
    listed = chosen[:10] * often + chosen[10:] * seldom
    rng.shuffle(listed)
    context = " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))
    return prompts.CWE.format(context=context), chosen[:10]


def _frequent_words(length: int) -> _Maker:
    vocabulary = max(length // 50, 5)

    def make(rng: random.Random, n: int) -> _Draft:
        coded = {"..."}
        names = ["..."]  # the likeliest is noise
        while len(names) < vocabulary:
            name = "".join(rng.choices(string.ascii_lowercase, k=6))
            if name not in coded:
                coded.add(name)
                names.append(name)
        # Zipf's law with exponent 2: n / k² / ζ(2), and ζ(2) = π²/6.
        zeta = 1.6449340668482264
        listed = [w for k, w in enumerate(names, 1) for _ in range(int(n / (k * k) / zeta))]
        rng.shuffle(listed)
        return _Draft(prompts.FWE.format(context=" ".join(listed)), prompts.FWE_PREFIX, names[1:4])

    return _Maker(make, 60)  # of 60 the fourth word comes twice, the third four times


# documents


def _documents(question: Question, texts: Sequence[str]) -> _Maker:
    def make(rng: random.Random, n: int) -> _Draft:
        others = [i for i in range(len(texts)) if i not in question.support]
        # Those of the same article first: they are what makes it hard.
        near = [i for i in question.near if i not in question.support]
        far = [i for i in others if i not in set(near)]
        rng.shuffle(far)
        chosen = [*question.support, *[*near, *far][: n - len(question.support)]]
        rng.shuffle(chosen)
        context = "\n\n".join(f"Document {i}:\n{texts[t]}" for i, t in enumerate(chosen, 1))
        prompt = prompts.QA.format(context=context, query=question.text)
        return _Draft(prompt, prompts.QA_PREFIX, question.answers)

    return _Maker(make, len(question.support), len(texts))
