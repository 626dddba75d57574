"""A small mutational fuzzer: the same seed tries the same inputs.

An input whose outcome is new (another error message, numbers aside, or another result) joins the
pool that later inputs are made from. An input that breaks the target is kept in corpus/TARGET/.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from smollm3.errors import UserError

CORPUS = Path(__file__).parent / "corpus"
LONGEST = 500  # bytes of an input; or twice the longest seed
SECONDS = 2.0  # for one input
POOL = 500

NUMBERS = re.compile(r"\d+|0x[0-9a-f]+|'[^']*'|\"[^\"]*\"")
EXTREMES = [
    0,
    1,
    2**7,
    2**8 - 1,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
]
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 2**31, 2**53, 2**63, 2**64, 10**40, 10**400, -(10**400), 0.5, 1e308,
    5e-324, float("nan"), float("inf"), float("-inf"), "", "a", "../a", "/etc/passwd", "a\0b", "\ud800",
    "\x1b[2J\n", "x" * 5000, [], [[]], [None], [0, 1], [{}], {}, {"": {}}, {"a": None}, [[[[[[]]]]]],
]  # fmt: skip


class Broken(AssertionError):
    """An input on which the target fails otherwise than by a UserError."""


@dataclass(frozen=True)
class Target:
    """run: takes an input and returns what kind of result it was. words: parts worth inserting.
    form: "json" is mutated as a tree half of the time. executions: its share of the million."""

    name: str
    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    executions: int
    words: Sequence[bytes] = ()
    form: str = "bytes"

    @cached_property
    def longest(self) -> int:
        return max(LONGEST, *(2 * len(seed) for seed in self.seeds))

    def corpus(self) -> list[Path]:
        return sorted((CORPUS / self.name).glob("*"))


def fuzz(target: Target, seed: int, executions: int, seconds: float = float("inf")) -> int:
    """Run `target` on that many inputs, or as many as fit in the time; how many they were.

    Raises Broken with the name of the kept input.
    """
    rng = Random(f"{target.name}/{seed}")
    pool = [*target.seeds, *(path.read_bytes() for path in target.corpus())]
    outcomes: set[object] = set()
    end = time.monotonic() + seconds
    for done in range(executions):
        if time.monotonic() > end:
            return done
        data = mutate(rng, pool, target)
        outcome = attempt(target, data)
        if outcome not in outcomes and len(pool) < POOL:
            outcomes.add(outcome)
            pool.append(data)
    return executions


def attempt(target: Target, data: bytes) -> object:
    """The kind of outcome: a result, or the message of a UserError without what varies."""
    for clock in (time.monotonic, time.process_time):  # a busy machine only seems slow
        started = clock()
        outcome = _outcome(target, data)
        took = clock() - started
        if took <= SECONDS:
            return outcome
    raise Broken(f"{target.name}: {took:.1f} seconds ({keep(target, data)})")


def _outcome(target: Target, data: bytes) -> object:
    try:
        return target.run(data)
    except UserError as e:
        return NUMBERS.sub("#", str(e))
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise Broken(f"{target.name}: {type(e).__name__}: {e} ({keep(target, data)})") from e


def keep(target: Target, data: bytes) -> Path:
    path = CORPUS / target.name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def mutate(rng: Random, pool: Sequence[bytes], target: Target) -> bytes:
    data = bytearray(rng.choice(pool))
    if target.form == "json" and rng.random() < 0.7:
        try:
            text = json.dumps(_mutate_tree(rng, json.loads(data)))
            return text.encode()[: 4 * target.longest]
        except (ValueError, RecursionError):
            pass
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        _mutate_bytes(rng, data, pool, target.words)
    return bytes(data[: target.longest])


def _mutate_bytes(
    rng: Random, data: bytearray, pool: Sequence[bytes], words: Sequence[bytes]
) -> None:
    at = rng.randrange(len(data) + 1)
    some = min(int(rng.paretovariate(1)), 1000)
    match rng.randrange(8 if words else 7):
        case 0 if at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        case 1 if at < len(data):
            data[at] = rng.randrange(256)
        case 2:
            del data[at : at + some]
        case 3:
            data[at:at] = data[at : at + some] * rng.choice((1, 1, 2, 50))
        case 4:
            size = rng.choice((1, 2, 4, 8))
            data[at : at + size] = (rng.choice(EXTREMES) & (256**size - 1)).to_bytes(size, "little")
        case 5:
            other = rng.choice(pool)
            begin = rng.randrange(len(other) + 1)
            data[at : at + rng.choice((0, some))] = other[begin : begin + some]
        case 6 if rng.random() < 0.2:
            del data[at:]
        case 7:
            data[at : at + rng.choice((0, 0, some))] = rng.choice(words)


def _mutate_tree(rng: Random, tree: Any) -> Any:
    """A JSON value with a few of its nodes replaced, removed, repeated or moved."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = (
            node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        )
        for key in keys:
            places.append((node, key))
            walk(node[key])

    for _ in range(rng.choice((1, 1, 2, 4))):
        places.clear()
        walk(tree)
        if not places:
            return rng.choice(HOSTILE)
        node, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del node[key]
            case 1:
                other, at = rng.choice(places)
                node[key] = json.loads(json.dumps(other[at]))
            case 2 if isinstance(node, list):
                node[key:key] = [node[key]] * rng.choice((1, 2, 100))
            case 2:
                node[rng.choice([*node, "x", "\ud800", ""])] = rng.choice(HOSTILE)
            case 3 if isinstance(node[key], int | float) and abs(node[key]) < 2**62:
                node[key] = rng.choice(
                    (-node[key], node[key] + 1, node[key] * 2**20, str(node[key]))
                )
            case _:
                node[key] = rng.choice(HOSTILE)
    return tree
