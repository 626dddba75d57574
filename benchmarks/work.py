"""The work that engines are compared on: the rows of the table of benchmarks/peers.py."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One engine's part in an item. settings: for its `open`. target: ours is to be at least so
    many times as fast. model: where it is another than the item's. axes: settings to sweep.
    arguments: added to the item's. beside: busy loops that run beside it."""

    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    target: float | None = None
    model: str | None = None
    axes: Sequence[str] = ()
    beside: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)


Asked = tuple[str, dict[str, Any]]  # a worker's method and its arguments


@dataclass(frozen=True)
class Item:
    """One row of the table: what the contenders are asked, each in its turn of each round.

    context: tokens they must hold. prepare: asked once, after opening. fresh: a process for each
    reading, which is then the seconds from its start to the answer; else tokens a second.
    """

    title: str
    model: str
    contenders: Mapping[str, Contender]
    context: int
    ask: Callable[[int], Asked]
    prepare: Asked | None = None
    fresh: bool = False
    rounds: int = 5


def random_ids(count: int, seed: int) -> list[int]:
    """Ids that every model here has and none of them control tokens."""
    # As a text: a negative number would give what its absolute value does.
    return random.Random(str(seed)).choices(range(1000, 40_000), k=count)


def prefill(count: int) -> Callable[[int], Asked]:
    return lambda n: ("prefill", {"ids": random_ids(count, n)})


def decode(streams: int, tokens: int) -> Callable[[int], Asked]:
    """The prompts differ in every round: no engine finds them in a cache."""

    def ask(n: int) -> Asked:
        prompts = [random_ids(32, 100 * n + s) for s in range(streams)]
        return "decode", {"prompts": prompts, "tokens": tokens}

    return ask


def behind(places: int, tokens: int) -> Callable[[int], Asked]:
    return lambda n: ("decode_behind", {"places": places, "tokens": tokens})


def answer(**arguments: Any) -> Callable[[int], Asked]:
    return lambda n: ("answer", arguments)


CORES = os.cpu_count() or 1
# Guessing ahead is for text that repeats: random weights soon do, and would flatter us.
PLAIN = {"speculate": False}
PREFILL_AXES = ("flash", "repack", "ubatch", "threads")
DECODE_AXES = ("flash", "repack", "threads")


def plain_work(
    kind: str, title: str, work: str, llama: float, openvino: float | None = None
) -> Item:
    """Prefill of 512 or decoding of one stream, against llama.cpp and, where it can, OpenVINO."""
    model = "smollm2-135m" if kind == "smollm2-135m" else f"smollm3-3b:{kind}"
    small = model == "smollm2-135m"
    twin = None if small else f"llama-3b:{kind}"
    axes = PREFILL_AXES if work == "prefill" else DECODE_AXES
    contenders = {
        "ours": Contender("ours", PLAIN),
        "llama.cpp": Contender("llama.cpp", target=llama, axes=axes),
    }
    if small or kind == "q4_0":
        contenders["OpenVINO"] = Contender("OpenVINO", model=twin, target=openvino)
    if (kind, work) == ("q4_0", "decode"):
        contenders["plain read"] = Contender("plain read", target=0.85)
    ask = prefill(512) if work == "prefill" else decode(1, 128 if small else 24)
    # One stream waits for memory, which the neighbours use as well: the noisiest of all.
    return Item(title, model, contenders, 1024, ask, rounds=9 if work == "decode" else 5)


def behind_16k(ours: str, theirs: str) -> Item:
    return Item(
        f"3B Q4_0 decode behind 16k tokens, {ours} cache against {theirs}",
        "smollm3-3b:q4_0",
        {
            "ours": Contender("ours", {**PLAIN, "cache": ours}),
            "llama.cpp": Contender(
                "llama.cpp", {"cache": theirs}, target=1.15, axes=("flash", "threads")
            ),
        },
        16_384 + 128,
        behind(16_384, 12),
        prepare=("fill", {"places": 16_384}),
    )


RECORD = {
    "order": 48213, "customer": "Marta Oliveira", "email": "marta.oliveira@example.org",
    "status": "pending", "items": [
        {"sku": "A-1001", "name": "ceramic teapot", "quantity": 1, "price": 34.5},
        {"sku": "B-2040", "name": "linen tablecloth", "quantity": 2, "price": 18.25},
        {"sku": "C-3377", "name": "set of six glasses", "quantity": 1, "price": 22.0},
    ],
    "address": {"street": "Rua das Flores 12", "city": "Porto", "postcode": "4050-262"},
}  # fmt: skip
REWRITE = (
    "Rewrite this JSON with the status changed to shipped. Change nothing else.\n\n"
    + json.dumps(RECORD, indent=2)
)
PEOPLE = {
    "type": "array", "minItems": 8, "maxItems": 8, "items": {
        "type": "object", "additionalProperties": False, "required": ["name", "age", "city"],
        "properties": {
            "name": {"type": "string", "maxLength": 30},
            "age": {"type": "integer", "minimum": 1, "maximum": 99},
            "city": {"type": "string", "maxLength": 30},
        },
    },
}  # fmt: skip
DESCRIBE = "Write a JSON list of eight people with name, age and city."

ITEMS = {
    "prefill-q4_0": plain_work("q4_0", "3B Q4_0 prefill 512", "prefill", 2.0, 1.2),
    "decode-q4_0": plain_work("q4_0", "3B Q4_0 decode, one stream", "decode", 1.0),
    "streams-q4_0": Item(
        "3B Q4_0 decode, 8 streams together",
        "smollm3-3b:q4_0",
        {
            "ours": Contender("ours", PLAIN),
            "llama.cpp": Contender(
                "llama.cpp",
                {"streams": 8},
                target=2.0,
                axes=("flash", "repack", "unified", "threads"),
            ),
        },
        128,
        decode(8, 16),
    ),
    "prefill-q8_0": plain_work("q8_0", "3B Q8_0 prefill 512", "prefill", 1.8),
    "decode-q8_0": plain_work("q8_0", "3B Q8_0 decode", "decode", 1.0),
    "prefill-q4_k_m": plain_work("q4_k_m", "3B Q4_K_M prefill 512", "prefill", 1.8),
    "decode-q4_k_m": plain_work("q4_k_m", "3B Q4_K_M decode", "decode", 1.0),
    "behind-16k-bf16": behind_16k("bf16", "f16"),
    "behind-16k-int8": behind_16k("int8", "q8_0"),
    "prefill-135m": plain_work("smollm2-135m", "SmolLM2-135M Q4_1 prefill 512", "prefill", 2.0),
    "decode-135m": plain_work("smollm2-135m", "SmolLM2-135M Q4_1 decode", "decode", 1.1),
    "copy-135m": Item(
        "SmolLM2-135M, JSON rewritten with one field changed, against its own plain decode",
        "smollm2-135m",
        {
            "ours": Contender("ours", {"speculate": True}),
            "ours, plain": Contender("ours", PLAIN, target=2.0),
        },
        2048,
        answer(text=REWRITE, tokens=300),
    ),
    "json-135m": Item(
        "SmolLM2-135M, JSON of a schema, against unconstrained",
        "smollm2-135m",
        {
            "ours": Contender("ours", PLAIN, arguments={"schema": PEOPLE}),
            "ours, unconstrained": Contender(
                "ours", PLAIN, target=0.95, arguments={"ignore_eos": True}
            ),
        },
        2048,
        answer(text=DESCRIBE, tokens=200),
    ),
    "busy-q4_0": Item(
        "3B Q4_0 decode beside a busy loop for each core",
        "smollm3-3b:q4_0",
        {
            "ours": Contender("ours", PLAIN, beside=CORES),
            "ours, alone": Contender("ours", PLAIN, target=0.25),  # half of the half that is left
            "llama.cpp": Contender("llama.cpp", beside=CORES),
        },
        128,
        decode(1, 16),
    ),
    "threads-q4_0": Item(
        "3B Q4_0 decode with two threads for each core",
        "smollm3-3b:q4_0",
        {
            "ours": Contender("ours", {**PLAIN, "threads": 2 * CORES}),
            "ours, a thread a core": Contender("ours", PLAIN, target=0.9),
        },
        128,
        decode(1, 16),
    ),
    "start-3b": Item(
        "3B Q4_0, from the start of a process to the first token, not for the first time",
        "smollm3-3b:q4_0",
        {"ours": Contender("ours", PLAIN), "llama.cpp": Contender("llama.cpp")},
        1024,
        prefill(8),
        fresh=True,
    ),
}
