"""Our engine, through its public interface, as the command line and the server use it."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

from protocol import peak_memory, serve, timed

import smollm3
from smollm3.infer import Generation, SamplingParams, load_engine
from smollm3.infer.backends import BLOCK
from smollm3.infer.blocks import block_keys, root
from smollm3.infer.constrain.grammars import Json

gc.set_threshold(50_000)  # as the command line does
TILE = 8  # blocks of a real prompt that are repeated to fill a long one


class Ours:
    def __init__(self) -> None:
        self.engine: Any = None
        self.long: list[int] = []

    def info(self) -> dict[str, Any]:
        backend = self.engine.backend
        return {"name": f"smollm3 ({backend.name})", "version": smollm3.__version__}

    def memory(self) -> dict[str, int]:
        return peak_memory()

    def open(
        self,
        model: str,
        context: int,
        threads: int = 2,
        cache: str | None = "bf16",
        speculate: bool = True,
        **settings: str,
    ) -> float:
        """Seconds. speculate: guess the next tokens from the text so far. settings: others of
        `load_engine`."""
        if self.engine:
            self.engine.close()
        return timed(lambda: self._open(model, threads, cache, speculate, settings))

    def _open(
        self, model: str, threads: int, cache: str, speculate: bool, settings: dict[str, str]
    ) -> None:
        self.engine = load_engine(
            model,
            kv_cache_dtype=cache,
            threads=threads,
            speculation=speculate,
            **settings,
        )

    def prefill(self, ids: list[int]) -> float:
        """Tokens a second, from ids to the first new token."""
        return len(ids) / timed(lambda: self._submit(ids, 1).result())

    def decode(self, prompts: list[list[int]], tokens: int) -> float:
        """Tokens a second of all prompts together, while all of them have had their first and none
        its last."""
        return rate([self._submit(ids, tokens + 1) for ids in prompts])

    def fill(self, places: int) -> None:
        """Have a prompt of `places` tokens in the cache of prefixes. Its keys and values are those
        of its beginning, repeated: time does not depend on what they are."""
        self.long = random.Random(0).choices(range(1000, 40_000), k=places)
        self._submit(self.long[: TILE * BLOCK], 1).result()
        keys = block_keys(self.long, root(""))
        worker, backend = self.engine._worker, self.engine.backend
        blocks = worker.blocks

        def copy() -> None:
            data = backend.export_blocks(list(blocks.find(keys[:TILE])))
            taken = []
            for i, key in enumerate(keys[TILE:]):
                block = blocks.take()
                backend.import_blocks([block], data[i % TILE : i % TILE + 1])
                blocks.publish(block, [key])
                taken.append(block)
            blocks.release(taken)

        worker.ask(copy).result()

    def decode_behind(self, places: int, tokens: int) -> float:
        """Tokens a second behind the prompt that `fill` made."""
        generation = self._submit([*self.long, 1000], tokens + 1)
        found = rate([generation])
        if generation.cached_tokens < places:
            raise ValueError(f"{generation.cached_tokens} of {places} tokens were in the cache")
        return found

    def answer(
        self, text: str, tokens: int, schema: dict[str, Any] | None = None, ignore_eos: bool = False
    ) -> float:
        """Tokens a second of an answer to `text`, of at most `tokens`, after its first; greedy."""
        engine = self.engine
        prompt = engine.tokenizer.render([{"role": "user", "content": text}]).ids
        constraint = Json(schema) if schema else None
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=ignore_eos)
        return rate([engine.submit(prompt, params, constraint=constraint)])

    def score(self, batch: list[list[int]]) -> list[list[float]]:
        """Log-probability of each token after the first."""
        return self.engine.score_batch(batch)

    def _submit(self, ids: list[int], tokens: int) -> Generation:
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        return self.engine.submit(ids, params)


def rate(generations: Sequence[Generation]) -> float:
    """Tokens a second of all together, from when each has its first until one has its last."""
    times: list[list[float]] = [[] for _ in generations]

    def read(n: int) -> None:
        times[n] += [time.perf_counter() for _ in generations[n]]

    readers = [threading.Thread(target=read, args=(n,)) for n in range(len(generations))]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    begin, end = max(t[0] for t in times), min(t[-1] for t in times)
    return sum(begin < at <= end for t in times for at in t) / (end - begin)


if __name__ == "__main__":
    serve(Ours())
