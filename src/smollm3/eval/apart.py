"""Tasks in which the harness has no part: each says what it needs before anything is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from smollm3.errors import UserError
from smollm3.eval import bfcl, bfcl_turns, mixeval, mt_bench, toolqa
from smollm3.eval.target import Ask, Settings, Target

if TYPE_CHECKING:
    from smollm3.eval.harness import Wanted

BFCL_TOKENS = 4096  # of an answer, reasoning included
BFCL = "bfcl"


NAMES = (
    mt_bench.NAME,
    mixeval.NAME,
    *toolqa.NAMES,
    BFCL,
    *(f"{BFCL}_{category}" for category in (*bfcl.CATEGORIES, *bfcl_turns.CATEGORIES)),
)


class Asking(Protocol):
    """Who is asked: `Written`, as a dict, of each request."""

    def answered(self, asked: Sequence[Ask]) -> list[dict[str, Any]]: ...
    def judged(self, judge: Target, asked: Sequence[Ask]) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class Apart:
    """metrics: of which each is the mean of the samples that have it. total: samples there would be
    without a limit. samples: asks, and gives them in the harness's form."""

    name: str
    metrics: Sequence[str]
    total: int
    version: float
    samples: Callable[[Asking], list[dict[str, Any]]]


def apart_of(wanted: Wanted, settings: Settings, skipped: dict[str, str]) -> list[Apart]:
    """Those of `wanted`. UserError for what they need and have not; or `skipped` gets why they are
    left out, where `wanted` says so."""
    found: list[Apart] = []
    for name in wanted.tasks:
        try:
            found += _of(name, wanted, settings)
        except UserError as e:
            if not wanted.skip:
                raise
            skipped[name] = str(e)
    return found


def _of(name: str, wanted: Wanted, settings: Settings) -> Iterator[Apart]:
    if name not in NAMES:
        return
    if not settings.chat:
        raise UserError(f"{name}: is of chats; add --chat")
    if name == mt_bench.NAME:
        bench, judge = mt_bench.read(wanted.data, wanted.limit), _judge(name, wanted)
        yield Apart(
            name,
            mt_bench.METRICS,
            2 * bench.total,
            1.0,
            lambda asking: mt_bench.samples(
                bench, settings, asking.answered, partial(asking.judged, judge)
            ),
        )
    elif name == mixeval.NAME:
        items, total = mixeval.read(wanted.data, wanted.limit)
        rates = _judge(name, wanted)
        yield Apart(
            name,
            mixeval.METRICS,
            total,
            1.0,
            lambda asking: mixeval.samples(
                items, settings, asking.answered, partial(asking.judged, rates)
            ),
        )
    elif name in toolqa.NAMES:
        for level in toolqa.LEVELS:
            if name in (toolqa.NAMES[0], f"toolqa_{level}"):
                yield _toolqa(level, wanted, settings)
    else:
        for category in _categories(name):
            yield _bfcl(category, wanted.limit, settings)


def _toolqa(level: str, wanted: Wanted, settings: Settings) -> Apart:
    asked = toolqa.read(wanted.data, level)
    assert wanted.data is not None  # or there were no questions
    files, tokens = toolqa.tables(wanted.data), settings.max_tokens or toolqa.ANSWER_TOKENS
    chosen = asked[: wanted.limit]
    return Apart(
        f"toolqa_{level}",
        toolqa.METRICS,
        len(asked),
        1.0,
        lambda asking: toolqa.samples(chosen, files, settings, tokens, asking.answered),
    )


def _bfcl(category: str, limit: int | None, settings: Settings) -> Apart:
    bench: Any = bfcl_turns if category in bfcl_turns.CATEGORIES else bfcl
    held, tokens = bench.questions(category), settings.max_tokens or BFCL_TOKENS
    return Apart(
        f"{BFCL}_{category}",
        ["accuracy"],
        len(held),
        4.0,
        lambda asking: bench.samples(held[:limit], settings, tokens, asking.answered),
    )


def _categories(name: str) -> list[str]:
    every = [*bfcl.CATEGORIES, *bfcl_turns.CATEGORIES]
    return every if name == BFCL else [name.removeprefix(f"{BFCL}_")]


def _judge(name: str, wanted: Wanted) -> Target:
    if wanted.judge is None:
        raise UserError(f"{name}: a judge rates the answers; add --judge URL")
    return wanted.judge
