"""Invented data sets in the forms of real ones, an engine to be evaluated, and who watches."""

import gzip
import json
import random
from concurrent.futures import Future
from dataclasses import asdict

from smollm3.eval.target import EngineTarget, Settings, Written
from smollm3.infer import Engine
from tests.support.fake_backend import FakeBackend

WORDS = [
    "the",
    "model",
    "that",
    "answers",
    "a",
    "question",
    "was",
    "été",
    "日本",
    "and",
    "it",
    "goes",
]


def text(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


def rows_hellaswag(n=5, seed=0, words=3):
    rng = random.Random(seed)
    return [
        {
            "activity_label": text(rng, 2),
            "ctx_a": f"{text(rng, words)}.",
            "ctx_b": text(rng, 1),
            "endings": [text(rng, rng.randint(1, 3)) for _ in range(4)],
            "label": str(rng.randrange(4)),
        }
        for _ in range(n)
    ]


def rows_piqa(n=4, seed=1):
    rng = random.Random(seed)
    return [
        {
            "goal": text(rng, 3),
            "sol1": text(rng, 3),
            "sol2": text(rng, 2),
            "label": rng.randrange(2),
        }
        for _ in range(n)
    ]


def rows_gsm8k(n=4, seed=2):
    rng = random.Random(seed)
    return [
        {"question": text(rng, 4), "answer": f"{text(rng, 3)}\n#### {rng.randrange(99)}"}
        for _ in range(n)
    ]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = lines.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def data_folder(folder):
    write(folder / "hellaswag/validation.jsonl.gz", rows_hellaswag())
    write(folder / "piqa/validation.jsonl.gz", rows_piqa())
    write(folder / "gsm8k/test.jsonl.gz", rows_gsm8k())
    return folder


def fake_engine(tokenizer, name="fake"):
    """Whose answers are a hash of all that a token may see."""
    return Engine(FakeBackend(blocks=512), tokenizer, identity=lambda: name)


def fake_target(tokenizer, settings=None):
    return EngineTarget(fake_engine(tokenizer), "fake", settings or Settings())


class Saying(EngineTarget):
    """Whose answer is `says` of what is asked."""

    def __init__(self, engine, name, settings, says):
        super().__init__(engine, name, settings)
        self.says = says

    def origin(self):
        return self.name

    def answer(self, ask):
        future = Future()
        future.set_result(asdict(Written(self.says(ask), "stop", 1)))
        return future


class Calling(Saying):
    """Whose answer is a text, or a list of calls (name, arguments); 100 answers at most."""

    left = 100

    def answer(self, ask):
        self.left -= 1
        assert self.left, "asked without an end"
        said = self.says(ask)
        calls = [] if isinstance(said, str) else [{"name": n, "arguments": a} for n, a in said]
        future = Future()
        future.set_result(asdict(Written(said if not calls else "", "stop", 1, calls)))
        return future


class Watching:
    """Keeps what it is told; `stop_after` items it raises KeyboardInterrupt, as Ctrl-C does."""

    def __init__(self, stop_after=None):
        self.seen = []
        self.stop_after = stop_after

    def progress(self, what, done, total, fresh):
        self.seen.append((what, done, total, fresh))
        if self.stop_after is not None and fresh >= self.stop_after:
            raise KeyboardInterrupt
