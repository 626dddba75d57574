"""Many requests on our kernels, some of them bad or given up: nothing is left of any, and whatever
goes on beside an answer, its bits stay."""

import gc
import math
import os
import random
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.invariants.test_engine import GREEDY, SAMPLED, Guesses, churn, drained, prompts
from tests.support.fake_backend import CONFIG, FakeBackend

from smollm3.checkpoint import save_model
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams
from smollm3.infer.constrain.masks import Grammar, Json, Regex
from smollm3.infer.generation import Channel, Generation
from smollm3.infer.jobs import AnswerJob, Reading
from smollm3.infer.scheduler import Sequence
from smollm3.model import Transformer

MiB = 1 << 20


@pytest.fixture(scope="module")
def native(tokenizer, tmp_path_factory):
    """native(blocks, threads, **options of Engine) -> an engine of a tiny model on the kernels."""
    pytest.importorskip("smollm3_kernels", reason="the CPU kernels are not installed")
    from smollm3.infer.backends.native import NativeBackend

    model = Transformer(replace(CONFIG, layers=2, hidden=32, heads=4, kv_heads=2, ffn=64,
                                uses_rope=(True, False)))  # fmt: skip
    model.init_weights(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(8)
    folder = tmp_path_factory.mktemp("model")
    save_model(model, tokenizer, folder)

    def make(blocks=64, threads=1, **options) -> Engine:
        backend = NativeBackend(
            folder, model.config, blocks=blocks, dtype="q4_0", threads=threads, weight_cache=False
        )
        return Engine(backend, tokenizer, **options)

    return make


@pytest.mark.parametrize("params", [SAMPLED, GREEDY])
def test_kernels_answer_with_the_same_bits_whatever_else_runs(native, params):
    asked = prompts(10)
    params = replace(params, logprobs=3)
    with native() as engine:
        alone = [engine.submit(p, params, cache_salt=str(i)).result() for i, p in enumerate(asked)]
    assert len({tuple(answer.ids) for answer in alone}) > 5
    whole = [prompt + answer.ids for prompt, answer in zip(asked, alone, strict=True)]
    for options in (
        {},
        {"blocks": 8},
        {
            "max_num_batched_tokens": 33,
            "blocks": 9,
            "max_num_seqs": 5,
            "drafter": lambda: Guesses(whole, 1),
        },
    ):
        with native(**options) as engine:
            for _ in range(2):  # the second time behind known beginnings
                assert engine.generate(asked, params) == alone
            stats = engine.stats()
            assert stats.cached_tokens >= 64
            assert (stats.preemptions > 0) == (engine.backend.blocks < 10)
            assert (stats.accepted_tokens > 50) == ("drafter" in options)
            drained(engine)


# what nobody can be given

BAD = [
    lambda e: e.submit([]),
    lambda e: e.submit(""),
    lambda e: e.submit("\udcff"),
    lambda e: e.submit([1] * 400),
    lambda e: e.submit([1] * 500),
    lambda e: e.submit([-1]),
    lambda e: e.submit([300]),
    lambda e: e.submit("a", SamplingParams(temperature=math.nan)),
    lambda e: e.submit("a", SamplingParams(top_p=math.nan)),
    lambda e: e.submit("a", SamplingParams(max_tokens=-1)),
    lambda e: e.submit("a", SamplingParams(logit_bias={999: 1.0})),
    lambda e: e.submit([1] * 200, SamplingParams(max_tokens=200)),
    lambda e: e.submit("a", constraint=Json({"allOf": [{"type": "null"}, {"type": "string"}]})),
    lambda e: e.submit("a", constraint=Json({"type": "tensor"})),
    lambda e: e.submit("a", constraint=Regex("(")),
    lambda e: e.submit("a", constraint=Grammar("start: nothing")),
    lambda e: e.chat([{"role": "nobody", "content": "x"}]),
    lambda e: e.score([1, 2], 0),
    lambda e: e.load_prefix("nowhere"),
]


def test_bad_requests_one_after_another_disturb_nobody(native):
    asked = prompts(6)
    params = replace(SAMPLED, max_tokens=60)
    with native() as engine:
        expected = engine.generate(asked, params)
    with native(blocks=12, identity=lambda: "tiny") as engine:
        going = [engine.submit(prompt, params) for prompt in asked]
        for ask in BAD:
            with pytest.raises(UserError) as refused:
                ask(engine)
            assert "\n" not in str(refused.value)
        assert [generation.result() for generation in going] == expected
        drained(engine)
        assert engine.stats().finished == len(asked)


# what is left of a thousand requests


def left() -> Counter:
    """What there is of requests in memory."""
    gc.collect()
    kinds = {AnswerJob, Reading, Sequence, Channel, Generation}
    return Counter(type(x) for x in gc.get_objects() if type(x) in kinds)


def test_nothing_is_left_of_requests(tokenizer):
    before = left()
    with Engine(FakeBackend(40), tokenizer, max_num_seqs=16) as engine:
        engine.backend.batches = deque(maxlen=1)
        churn(engine, 400, 60, 12)
        kept = engine.submit([1], SAMPLED)
        assert left()[AnswerJob] == 1 + before[AnswerJob]
        del kept
        engine.score_batch(prompts(8))
        engine._worker.ask(lambda: None).result()  # the step is over
        assert left() - before == Counter()


def resident() -> int:
    """Bytes of memory that this process holds."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's /proc")
def test_memory_stays_where_it_is(native):
    draw = random.Random(0)
    guesses = [[draw.randrange(270) for _ in range(300)] for _ in range(3)]
    with native(blocks=30, threads=2, max_num_seqs=24, drafter=lambda: Guesses(guesses)) as engine:
        churn(engine, 400, 200, 40)
        before = resident()
        churn(engine, 1000, 200, 40, seed=1)
        grown = resident() - before
        assert engine.stats().preemptions > 0
    if "LD_PRELOAD" not in os.environ:  # a sanitizer keeps what is freed for a while
        assert grown < 3 * MiB  # 0.6 when this was written
