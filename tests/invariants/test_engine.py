"""Whatever else runs, an answer is the same: batched, chunked, found, preempted, guessed, streamed.

Mostly on a backend that hashes what a token sees, so that one wrong place changes everything after
it; then on a tiny model.
"""

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.fake_backend import CONFIG, FakeBackend

from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.infer.backends import BLOCK
from smollm3.model import Transformer

SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=30, ignore_eos=True)
GREEDY = replace(SAMPLED, temperature=0)


@pytest.fixture
def make(tokenizer):
    """make(blocks=..., **options of Engine) -> an engine on a fake backend."""
    engines = []

    def engine(blocks=64, spread=8.0, **options) -> Engine:
        engines.append(Engine(FakeBackend(blocks, spread=spread), tokenizer, **options))
        return engines[-1]

    yield engine
    for each in engines:
        each.close()


@pytest.fixture(scope="module")
def tiny(tokenizer):
    model = Transformer(replace(CONFIG, layers=2, hidden=16, heads=4, kv_heads=2, head_dim=4,
                                uses_rope=(True, False), ffn=24))  # fmt: skip
    model.init_weights(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model


def prompts(n: int, seed: int = 0, longest: int = 150) -> list[list[int]]:
    """Of random lengths; half of them begin alike."""
    draw = random.Random(seed)
    common = [draw.randrange(274) for _ in range(longest)]
    made = []
    for _ in range(n):
        own = [draw.randrange(274) for _ in range(draw.randint(1, longest))]
        shared = draw.choice([0, draw.randrange(longest)])
        made.append((common[:shared] + own)[:longest])
    return made


def ids(engine, asked, params=SAMPLED) -> list[list[int]]:
    return [answer.ids for answer in engine.generate(asked, params)]


def drained(engine) -> None:
    """No request runs, waits or holds a block."""
    deadline = time.monotonic() + 60
    while (s := engine.stats()).running or s.waiting or s.blocks_used:
        assert time.monotonic() < deadline, s
        time.sleep(0.002)


class Guesses:
    """Guesses the right tokens now and then; `answers`: of each prompt, by its first token."""

    def __init__(self, answers, seed=0):
        self.answers = answers
        self.draw = random.Random(seed)

    def propose(self, ids, limit):
        for whole in self.answers:
            if whole[: len(ids)] == list(ids):
                guess = whole[len(ids) : len(ids) + self.draw.randint(0, limit)]
                if guess and self.draw.random() < 0.5:
                    guess[self.draw.randrange(len(guess))] = 11
                return guess
        return [1, 2, 3][:limit]


@pytest.fixture(scope="module")
def expected(tokenizer):
    """The answers of `prompts(12)`, each asked alone of an engine that has just started."""
    answers = {}
    for params in (SAMPLED, GREEDY):
        answers[params.temperature] = found = []
        for prompt in prompts(12):
            with Engine(FakeBackend(), tokenizer, max_num_batched_tokens=1000) as engine:
                found += ids(engine, [prompt], params)
    assert len({tuple(answer) for answer in answers[1.0]}) == 12
    return answers


@pytest.mark.parametrize("params", [SAMPLED, GREEDY])
@pytest.mark.parametrize(
    "how",
    [
        "batched",
        "chunked",
        "one token at a time",
        "few rows",
        "preempted",
        "found",
        "guessed",
        "all",
    ],
)
def test_an_answer_does_not_depend_on_how_it_is_computed(make, expected, how, params):
    answers = expected[params.temperature]
    asked = prompts(12)
    whole = [prompt + answer for prompt, answer in zip(asked, answers, strict=True)]
    options = {
        "batched": {},
        "chunked": {"max_num_batched_tokens": 40},
        "one token at a time": {"max_num_batched_tokens": 1},
        "few rows": {"max_num_seqs": 3},
        "preempted": {"blocks": 8},
        "found": {},
        "guessed": {"drafter": lambda: Guesses(whole)},
        "all": {
            "drafter": lambda: Guesses(whole, 1),
            "blocks": 9,
            "max_num_batched_tokens": 33,
            "max_num_seqs": 5,
        },
    }[how]
    engine = make(**options)
    assert ids(engine, asked, params) == answers
    if how in ("found", "all"):
        assert ids(engine, asked[::-1], params) == answers[::-1]
        assert engine.stats().cached_tokens > 200
    if how in ("preempted", "all"):
        assert engine.stats().preemptions > 0
    if how in ("guessed", "all"):
        stats = engine.stats()
        assert stats.draft_tokens > stats.accepted_tokens > 50
    drained(engine)


def test_streamed_is_whole(make):
    engine = make()
    params = replace(SAMPLED, stop=["zz", "e"], ignore_eos=False)
    for prompt in prompts(8):
        [whole] = engine.generate([prompt], params)
        generation = engine.submit(prompt, params)
        steps = list(generation)
        assert [step.id for step in steps] == whole.ids
        assert "".join(step.text for step in steps) == whole.text
        assert [step.logprob for step in steps] == whole.logprobs
        assert generation.result() == whole
        assert list(generation) == steps  # again, from the first
        assert "".join(engine.stream(prompt, params)) == whole.text
        assert not any(stop in whole.text for stop in params.stop)


def test_choices_are_answers_to_seeds_of_their_own(make):
    engine = make()
    asked = prompts(3)
    together = engine.generate(asked, replace(SAMPLED, n=4, seed=5))
    assert len(together) == 12
    for i, prompt in enumerate(asked):
        for j, params in enumerate(replace(SAMPLED, n=4, seed=5).choices()):
            assert together[4 * i + j].ids == ids(engine, [prompt], params)[0]
    assert len({tuple(answer.ids) for answer in together}) == 12


def test_salts_share_nothing(make):
    engine = make()
    prompt = list(range(100))
    cached = []
    for salt in ("a", "b", "a", ""):
        generation = engine.submit(prompt, SAMPLED, cache_salt=salt)
        generation.result()
        cached.append(generation.cached_tokens)
    assert cached == [0, 0, 96, 0]
    assert engine.submit(prompt, SAMPLED).prompt_tokens == 100


def test_scores_are_the_same_in_chunks_and_behind_a_known_beginning(make, monkeypatch):
    monkeypatch.setattr("smollm3.infer.worker.STEP_LOGITS", 20 * CONFIG.vocab_size)
    engine, backend = make(max_num_batched_tokens=50), FakeBackend()
    asked = prompts(6)
    for ids_T, scores in zip(asked, engine.score_batch(asked), strict=True):
        rows = [torch.from_numpy(backend.logits_after(ids_T[: t + 1])) for t in range(len(ids_T))]
        expected = [float(r.log_softmax(-1)[i]) for r, i in zip(rows, ids_T[1:], strict=False)]
        assert scores == pytest.approx(expected, abs=1e-5)
        for first in (1, len(ids_T) // 2 or 1, len(ids_T)):
            assert engine.score(ids_T, first) == pytest.approx(scores[first - 1 :], abs=1e-5)
    assert max(len(batch.wanted_R) for batch in engine.backend.batches) <= 20
    assert engine.stats().cached_tokens > 0
    drained(engine)
    rows = engine.logprobs(asked[0])
    assert rows.shape == (len(asked[0]), CONFIG.vocab_size)
    assert rows.exp().sum(-1) == pytest.approx(1, abs=1e-4)
    assert rows[np.arange(len(asked[0]) - 1), asked[0][1:]] == pytest.approx(
        engine.score(asked[0]), abs=1e-5
    )
    with pytest.raises(UserError, match="first: "):
        engine.score([1, 2], 0)


# from everywhere at once


def test_threads_ask_at_once(make, expected):
    engine = make(blocks=20)
    found = {}

    def ask(i, prompt):
        found[i] = ids(engine, [prompt])[0]

    threads = [
        threading.Thread(target=ask, args=(i, prompt)) for i, prompt in enumerate(prompts(12))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [found[i] for i in range(12)] == expected[1.0]
    drained(engine)


def test_event_loops_ask_at_once(make, expected):
    engine = make()

    async def ask(prompt):
        return [step.id async for step in engine.submit(prompt, SAMPLED)]

    async def ask_all():
        return await asyncio.gather(*map(ask, prompts(12)))

    assert asyncio.run(ask_all()) == expected[1.0]

    async def give_up():
        task = asyncio.create_task(ask(prompts(1)[0]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        # The engine is held behind the first token, or it could be done before it is told.
        given_up = threading.Event()
        engine.backend.fail = lambda batch: len(batch.ids_N) > 1 or given_up.wait(60)
        generation = engine.submit([5, 6], SAMPLED)
        async for _ in generation:
            break
        generation.cancel()
        given_up.set()
        return [step async for step in generation]

    assert len(asyncio.run(give_up())) < 30
    drained(engine)

    async def fails():
        engine.backend.fail = lambda batch: 1 / 0
        async for _ in engine.submit([1], SAMPLED):
            raise AssertionError

    with pytest.raises(RuntimeError, match="division by zero"):
        asyncio.run(fails())


def test_a_reader_on_a_loop_that_is_gone_harms_nobody(make):
    engine = make()
    hold = threading.Event()
    engine.backend.fail = lambda batch: hold.wait(5)

    async def start(generation):
        asyncio.get_running_loop().create_task(anext(aiter(generation)))
        await asyncio.sleep(0.01)
        asyncio.get_running_loop().stop()

    loop = asyncio.new_event_loop()
    generation = engine.submit([1], SAMPLED)
    first = loop.create_task(start(generation))
    loop.run_forever()
    assert first.done()
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False
    loop.close()
    hold.set()
    assert len(generation.result().ids) == 30


# what goes wrong


def test_a_failing_step_fails_its_requests_alone(make, expected):
    engine = make(max_num_seqs=2)
    asked = prompts(12)

    def fail(batch):
        if asked[3][0] in batch.ids_N[batch.positions_N == 0].tolist() and len(batch.starts) == 2:
            raise MemoryError("no room")

    answers = expected[1.0]
    engine.generate(asked[:1], replace(SAMPLED, max_tokens=1))
    engine.backend.fail = fail
    bad = engine.submit(asked[3], SAMPLED)
    with pytest.raises(RuntimeError, match="MemoryError: no room"):
        bad.result()
    with pytest.raises(RuntimeError, match="MemoryError: no room"):
        list(bad)
    assert ids(engine, asked[4:7]) == answers[4:7]
    assert engine.stats().failed == 1
    drained(engine)


class Broken:
    """A constraint or drafter that fails in one of its methods."""

    finished = False

    def __init__(self, where):
        self.where = where

    def __getattr__(self, name):
        def method(*_):
            if name == self.where:
                raise ValueError(f"broken in {name}")
            return {"mask": None, "fitting": 0}.get(name, [])

        return method


@pytest.mark.parametrize("where", ["mask", "accept", "forced", "propose", "fitting"])
def test_a_failing_hook_fails_its_request_alone(make, expected, where):
    drafters = iter([Broken("none"), Broken(where), *[Broken("none")] * 9])
    engine = make(drafter=lambda: next(drafters))
    asked = prompts(12)
    one = engine.submit(asked[0], SAMPLED)
    bad = engine.submit(asked[1], SAMPLED, constraint=Broken(where))
    other = engine.submit(asked[2], SAMPLED)
    with pytest.raises(RuntimeError, match=f"broken in {where}"):
        bad.result()
    assert [one.result().ids, other.result().ids] == [expected[1.0][0], expected[1.0][2]]
    drained(engine)


def test_a_mistake_in_planning_does_not_end_the_engine(make, expected, monkeypatch):
    engine = make()
    scheduler = engine._worker._scheduler
    monkeypatch.setattr(scheduler, "plan", lambda draft: 1 / 0)
    with pytest.raises(RuntimeError, match="division by zero"):
        engine.generate([[1]], SAMPLED)
    assert ids(engine, prompts(12)[:2]) == expected[1.0][:2]
    drained(engine)


def test_logits_that_are_no_numbers_fail_their_request(make, expected):
    engine = make()
    asked = prompts(12)
    plain = engine.backend._logits

    def logits(batch, s, position):
        row = plain(batch, s, position)
        return row * np.nan if position == len(asked[1]) + 3 and s == 1 else row

    engine.backend._logits = logits
    with engine.together():
        one, bad = [engine.submit(p, SAMPLED) for p in asked[:2]]
    with pytest.raises(UserError, match="not finite"):
        bad.result()
    assert one.result().ids == expected[1.0][0]


@pytest.mark.parametrize(
    ("prompt", "params", "problem"),
    [
        ([], {}, "empty"),
        ("", {}, "empty"),
        ("\ud800", {}, "surrogate"),
        ([1] * 400, {}, "fills the model's context of 400"),
        ([1] * 401, {}, "401 tokens do not fit"),
        ([300], {}, "from 0 to 299"),
        ([1], {"logit_bias": {300: 1.0}}, "logit_bias: .* from 0 to 299"),
        ([1], {"stop_token_ids": [300]}, "stop_token_ids: .* from 0 to 299"),
        ([1], {"n": 2}, "n: this gives one answer, not 2"),
        ([1] * 100, {"max_tokens": 200}, "need 10 blocks of the cache, which has 8"),
    ],
)
def test_bad_requests_are_refused_and_others_served(make, expected, prompt, params, problem):
    engine = make(blocks=8)
    going = engine.submit(prompts(12)[0], SAMPLED)
    with pytest.raises(UserError, match=problem):
        engine.submit(prompt, SamplingParams(**params))
    assert going.result().ids == expected[1.0][0]


# constraints


class Spelling:
    """Even tokens, then 7 and 9 wherever a token is a multiple of 4, at most so many."""

    def __init__(self, most=200):
        self.ids: list[int] = []
        self.due: list[int] = []
        self.most = most
        self.masks = 0

    @property
    def finished(self):
        return len(self.ids) >= self.most

    def mask(self):
        self.masks += 1
        allowed = np.zeros(320, bool)
        allowed[self.due[:1] if self.due else slice(0, 300, 2)] = True
        return np.packbits(allowed, bitorder="little").view(np.int32)

    def accept(self, token):
        assert self.due[:1] in ([], [token])
        self.ids.append(token)
        self.due = self.due[1:] or ([7, 9] if token % 4 == 0 and not self.due else [])

    def forced(self):
        return list(self.due)

    def fitting(self, ids):
        return len(ids)

    def rollback(self, n):
        raise AssertionError("masks follow what is accepted, so nothing is taken back")


@pytest.mark.parametrize("params", [SAMPLED, GREEDY])
@pytest.mark.parametrize("idle", [True, False])
def test_constraints_and_guesses_go_together(make, params, idle):
    """The same answer with masks made beside the model or after it, alone and with guesses."""
    asked = prompts(8)
    answers = []
    for prompt in asked:
        constraint = Spelling()
        generation = make(max_num_draft_tokens=0).submit(prompt, params, constraint=constraint)
        answers.append(generation.result().ids)
        assert constraint.ids == answers[-1]
    whole = [prompt + answer for prompt, answer in zip(asked, answers, strict=True)]
    engine = make(drafter=lambda: Guesses(whole), blocks=20)
    engine._worker._cpu_is_idle = idle
    going = [engine.submit(prompt, params, constraint=Spelling()) for prompt in asked]
    sources = [step.source for generation in going for step in generation]
    assert [generation.result().ids for generation in going] == answers
    assert all(sources.count(source) > 20 for source in ("sampled", "draft", "forced"))
    for generation in going:
        steps = list(generation)
        forced = [i for i, step in enumerate(steps) if step.source == "forced"]
        assert {steps[i].id for i in forced} == {7, 9}
    drained(engine)


def test_a_finished_constraint_ends_the_answer(make):
    engine = make()
    answer = engine.submit([1], SAMPLED, constraint=Spelling(5)).result()
    assert (answer.finish_reason, len(answer.ids)) == ("stop", 5)
    with pytest.raises(UserError, match="thinking_budget: goes with"):
        engine.submit([1], SAMPLED, constraint=Spelling(), thinking_budget=3)


# cancelling


def test_cancelling(make):
    engine = make(max_num_seqs=1)
    began, hold = threading.Event(), threading.Event()
    engine.backend.fail = lambda batch: (began.set(), hold.wait(10))
    running, waiting = engine.submit([1] * 50, SAMPLED), engine.submit([2] * 50, SAMPLED)
    began.wait(10)
    for generation in (waiting, running):
        generation.cancel()
        assert generation.result().finish_reason == "cancelled"  # at once
        assert generation.result().ids == []
        generation.cancel()
    hold.set()
    drained(engine)
    assert engine.stats().cancelled == 2
    assert len(engine.backend.batches) == 1
    generation = engine.submit([3], SAMPLED)
    for count, _ in enumerate(generation, 1):
        if count == 5:
            generation.cancel()
    assert len(generation.result().ids) >= 5
    generation.result()
    done = engine.submit([3], GREEDY)
    assert done.result().finish_reason == "length"
    done.cancel()
    assert done.result().finish_reason == "length"


def test_what_nobody_can_read_is_cancelled(make):
    engine = make()
    engine.backend.fail = lambda batch: time.sleep(0.005)
    for _ in engine.stream([1], replace(SAMPLED, max_tokens=300)):
        break
    engine.submit([1], replace(SAMPLED, max_tokens=300))
    gc.collect()
    drained(engine)
    assert engine.stats().cancelled == 2


def churn(engine, n, longest, new, seed=0) -> None:
    """n requests of random lengths from several threads, a third of them cancelled."""

    def work(part):
        draw = random.Random(seed + part)
        going = []
        for _ in range(n // 4):
            length = draw.randint(1, longest)
            prompt = [draw.choice([5, 6, 7]) for _ in range(length)]
            params = replace(SAMPLED, max_tokens=draw.randint(1, new), seed=draw.randrange(9))
            going.append(
                (engine.submit(prompt, params, cache_salt=draw.choice("ab")), draw.random())
            )
            if len(going) > 6:
                finish(*going.pop(draw.randrange(len(going))))
        for each in going:
            finish(*each)

    def finish(generation, chance):
        if chance < 0.2:
            generation.cancel()
        elif chance < 0.35:
            for _ in generation:
                break
            generation.cancel()
        generation.result()

    before = engine.stats()
    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drained(engine)
    stats = engine.stats()
    cancelled, finished = stats.cancelled - before.cancelled, stats.finished - before.finished
    assert cancelled > n // 20
    assert finished + cancelled == n
    blocks = engine._worker.blocks
    assert blocks.available == blocks.count
    assert sum(blocks._users) == 0
    assert not engine._worker._jobs


def test_a_thousand_requests_leak_no_block(make):
    engine = make(blocks=9, max_num_seqs=16, drafter=lambda: Guesses([]))
    churn(engine, 1000, 120, 20)
    assert engine.stats().preemptions > 0


@pytest.mark.slow
def test_a_thousand_requests_of_a_model_leak_no_block(tiny, tokenizer):
    with Engine(TorchBackend(tiny, blocks=40), tokenizer, max_num_seqs=24) as engine:
        churn(engine, 1000, 200, 40)


# the life of an engine


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("smollm3")]


def fails(ask) -> None:
    with pytest.raises(UserError, match="the engine is closed"):
        ask()


def test_closing_ends_the_thread_and_what_waits(make):
    engine = make(max_num_seqs=1)
    hold = threading.Event()
    engine.backend.fail = lambda batch: hold.wait(5)
    going = [engine.submit([1], SAMPLED) for _ in range(3)]
    read = threading.Thread(target=fails, args=(lambda: list(going[2]),))
    read.start()
    timer = threading.Timer(0.05, hold.set)
    timer.start()
    engine.close()
    timer.join()
    read.join(5)
    assert not read.is_alive()
    assert engine.backend.closed
    for generation in going:
        with pytest.raises(UserError, match="the engine is closed"):
            generation.result()
    engine.close()
    with pytest.raises(UserError, match="the engine is closed"):
        engine.submit([1])
    with pytest.raises(UserError, match="the engine is closed"):
        engine.score([1, 2])


def test_a_dropped_engine_ends_its_thread(tokenizer):
    before = threads()
    engine = Engine(FakeBackend(), tokenizer)
    engine.generate([[1]], SAMPLED)
    assert len(threads()) > len(before)
    backend, gone = engine.backend, weakref.ref(engine)
    generation = engine.submit([1], SAMPLED)
    del engine
    gc.collect()
    assert len(generation.result().ids) == 30  # an answer keeps it alive
    assert gone() is not None
    del generation
    gc.collect()
    assert gone() is None
    assert backend.closed
    assert len(threads()) <= len(before)


@pytest.mark.parametrize("ending", ["", "1 / 0"])
def test_a_program_ends_while_its_engine_runs(ending):
    """At once, without a word of threads, and with the program's own exit code."""
    program = f"""
from smollm3.chat import default_template
from smollm3.infer import Engine, SamplingParams
from smollm3.tokenizer import Tokenizer
from tests.support.fake_backend import FakeBackend
import time
engine = Engine(FakeBackend(), Tokenizer.train(["a b"], 280, default_template()))
engine.backend.fail = lambda batch: time.sleep(0.01)
going = [engine.submit([i], SamplingParams(max_tokens=300, ignore_eos=True)) for i in range(3)]
for step in going[0]:
    break
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == bool(ending)
    assert "hread" not in done.stderr
    assert done.stderr.count("Traceback") == bool(ending)


def test_a_forked_process_is_told(make, monkeypatch):
    engine = make()
    monkeypatch.setattr("os.getpid", lambda: -1)
    for ask in (lambda: engine.submit([1]), lambda: engine.score([1, 2])):
        with pytest.raises(UserError, match="forked"):
            ask()


def test_stats(make):
    with make(blocks=10, max_num_batched_tokens=64) as engine:
        engine.generate([list(range(100)), [1, 2, 3]], replace(SAMPLED, max_tokens=5))
        drained(engine)
        s = engine.stats()
        assert (s.prefill_tokens, s.decode_tokens, s.cached_tokens) == (103, 10, 0)
        assert s.steps == len(s.recent) == 6
        assert [(r.prefill_tokens, r.decode_tokens) for r in s.recent] == [
            (64, 0), (39, 2), (0, 2), (0, 2), (0, 2), (0, 2),
        ]  # fmt: skip
        assert 0 < s.model_seconds < s.seconds
        assert sum(r.seconds for r in s.recent) == pytest.approx(s.seconds)
        assert (s.blocks, s.blocks_used, s.blocks_free, s.blocks_cached) == (10, 0, 5, 5)
        assert (s.finished, s.failed, s.cancelled, s.preemptions) == (2, 0, 0, 0)
        assert s.block_bytes == 4 * BLOCK


# saved prefixes


@pytest.fixture
def saved(make, tmp_path):
    """(engine, path of a prefix of 96 of its 100 ids, the ids)"""
    engine = make(identity=lambda: "weights 1")
    prompt = [(7 * i) % 270 for i in range(100)]
    assert engine.save_prefix(prompt, tmp_path / "deep" / "p.safetensors") == 96
    drained(engine)
    return engine, tmp_path / "deep" / "p.safetensors", prompt


def test_a_saved_prefix_starts_at_once(make, saved, monkeypatch):
    monkeypatch.setattr("smollm3.infer.prefix.AT_ONCE", 2 * FakeBackend.block_bytes)
    engine, path, prompt = saved
    expected = ids(engine, [prompt])
    fresh = make(identity=lambda: "weights 1", blocks=9)
    assert fresh.load_prefix(path) == prompt[:96]
    assert fresh.stats().blocks_cached == 3
    generation = fresh.submit(prompt, SAMPLED)
    assert generation.result().ids == expected[0]
    assert generation.cached_tokens == 96
    fresh.load_prefix(path)  # again: what is known stays
    drained(fresh)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert engine.submit(prompt, SAMPLED, cache_salt="other").result()
    engine.save_prefix(prompt, path, cache_salt="s")
    salted = make(identity=lambda: "weights 1")
    salted.load_prefix(path)
    cached = [salted.submit(prompt, SAMPLED, cache_salt=salt) for salt in ("", "s")]
    assert [g.result() and g.cached_tokens for g in cached] == [0, 96]


def test_the_thread_rests_while_a_prefix_holds_all_blocks(make, expected):
    """As one does that is being read from a disk."""
    engine = make(blocks=9)
    worker, scheduler = engine._worker, engine._worker._scheduler
    plans, plan = [], scheduler.plan
    scheduler.plan = lambda draft: plans.append(draft) or plan(draft)
    blocks = worker.ask(lambda: [worker.blocks.take() for _ in range(9)]).result()
    going = [engine.submit(prompt, SAMPLED) for prompt in prompts(12)[:2]]
    going[1].cancel()
    time.sleep(0.1)
    assert len(plans) < 5  # one for each message
    worker.ask(lambda: worker.blocks.release(blocks)).result()
    assert going[0].result().ids == expected[1.0][0]
    drained(engine)


def test_a_prefix_that_does_not_fit_is_refused(make, saved, tmp_path):
    _, path, prompt = saved
    other = make(identity=lambda: "weights 2")
    with pytest.raises(UserError, match="saved with another model"):
        other.load_prefix(path)
    same = make(identity=lambda: "weights 1", blocks=2)
    with pytest.raises(UserError, match="needs 3 blocks of the cache, of whose 2 now 2 are free"):
        same.load_prefix(path)
    same = make(identity=lambda: "weights 1")
    with pytest.raises(UserError, match="no such file"):
        same.load_prefix(tmp_path / "none")
    damaged = tmp_path / "damaged"
    for content in (b"", path.read_bytes()[:-1], b"x" * 300):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match="damaged: not a whole saved prefix"):
            same.load_prefix(damaged)
    from safetensors.numpy import save_file

    save_file({"ids": np.zeros(96, np.int32)}, damaged)
    with pytest.raises(UserError, match="not a saved prefix of this version"):
        same.load_prefix(damaged)
    origin = {"format": "smollm3 prefix 1", "origin": same.origin(), "salt": ""}
    for bad in (np.zeros(95, np.int32), np.full(96, 300, np.int32), np.zeros((3, 32), np.int32)):
        save_file({"ids": bad, "blocks": np.zeros((3, 128), np.uint8)}, damaged, origin)
        with pytest.raises(UserError, match="do not fit each other"):
            same.load_prefix(damaged)
    drained(same)
    assert same.stats().blocks_cached == 0
    with pytest.raises(UserError, match="fewer than 32 tokens"):
        same.save_prefix([1, 2], path)
    with pytest.raises(UserError, match="only for a model that is on disk"):
        make().save_prefix(prompt, path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises((UserError, OSError)):
        same.save_prefix(prompt, blocked / "p")
    drained(same)


# a tiny model


@settings(max_examples=4)
@given(
    seed=st.integers(0, 1000), tokens=st.sampled_from([7, 64, 512]), blocks=st.sampled_from([9, 60])
)
def test_a_model_answers_the_same_whatever_else_runs(tiny, tokenizer, seed, tokens, blocks):
    """Greedy tokens wherever the likeliest two differ by more than 1e-4; sampled ones as well."""
    asked = prompts(6, seed)
    for params in (replace(GREEDY, logprobs=2, max_tokens=20), replace(SAMPLED, max_tokens=20)):
        with Engine(TorchBackend(tiny, blocks=20), tokenizer) as engine:
            alone = [
                engine.submit(p, params, cache_salt=str(i)).result() for i, p in enumerate(asked)
            ]
            assert not engine.stats().cached_tokens
        whole = [p + a.ids for p, a in zip(asked, alone, strict=True)]
        guesses = partial(Guesses, whole, seed)
        options = {"max_num_batched_tokens": tokens, "drafter": guesses}
        with Engine(TorchBackend(tiny, blocks=blocks), tokenizer, **options) as engine:
            for _ in range(2):
                for a, b in zip(alone, engine.generate(asked, params), strict=True):
                    same = next(
                        (
                            i
                            for i, pair in enumerate(zip(a.ids, b.ids, strict=True))
                            if len({*pair}) > 1
                        ),
                        None,
                    )
                    if same is not None and params.temperature == 0:
                        (_, first), (_, second) = a.top_logprobs[same]
                        assert first - second < 1e-4
                    elif params.temperature:
                        assert same is None
                    assert a.logprobs[:same] == pytest.approx(b.logprobs[:same], abs=1e-4)
            assert engine.stats().accepted_tokens > 0


def test_a_model_of_another_size_takes_no_prefix(tiny, tokenizer, tmp_path):
    prompt = [(7 * i) % 270 for i in range(100)]
    named = {"identity": lambda: "tiny"}
    with Engine(TorchBackend(tiny, blocks=20), tokenizer, **named) as engine:
        expected = engine.generate([prompt], GREEDY)
        engine.save_prefix(prompt, tmp_path / "p")
    with Engine(TorchBackend(tiny, blocks=20), tokenizer, **named) as engine:
        engine.load_prefix(tmp_path / "p")
        generation = engine.submit(prompt, GREEDY)
        assert generation.result().ids == expected[0].ids
        assert generation.cached_tokens == 96
    narrow = Transformer(tiny.config)
    narrow.load_state_dict(tiny.state_dict())
    narrow.bfloat16()
    with Engine(TorchBackend(narrow, blocks=20), tokenizer, **named) as engine:
        assert engine.generate([prompt], GREEDY)
        with pytest.raises(UserError, match="another model, dtype"):
            engine.load_prefix(tmp_path / "p")
