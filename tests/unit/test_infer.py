import datetime
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smollm3 import load_engine
from smollm3.checkpoint import save_model
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, engine, sampler
from smollm3.infer.cache import DenseCache
from smollm3.infer.params import PUBLISHED, model_params
from smollm3.infer.sampler import least_kept, sample, uniform
from smollm3.infer.text import TextStream
from smollm3.model import ModelConfig, Transformer, nope_pattern

CONFIG = ModelConfig(
    vocab_size=300,
    layers=4,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=48,
    uses_rope=nope_pattern(4, 4),
    rope_theta=10_000.0,
    context=96,
)
GREEDY = SamplingParams(temperature=0, max_tokens=24)
TODAY = datetime.date(2025, 7, 8)


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG)
    model.init_weights(0)
    with torch.no_grad():  # far from flat, so that answers differ and end at different times
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(6)
    return model


@pytest.fixture(scope="module")
def tiny(model, tokenizer):
    return Engine(model, tokenizer)


@pytest.fixture(scope="module")
def roomy(model, tokenizer):
    """The same weights, with a context that takes our template byte by byte."""
    wide = Transformer(replace(CONFIG, context=2048))
    wide.load_state_dict(model.state_dict())
    return Engine(wide, tokenizer)


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (n,), generator=draw).tolist()
    return [torch.randint(274, (k,), generator=draw).tolist() for k in lengths]


# one forward pass for many is as many for one


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(max_tokens=24, temperature=1.3, top_k=9)]
)
def test_batched_is_alone(tiny, params):
    together = tiny.generate(prompts(20), params)
    for prompt, answer in zip(prompts(20), together, strict=True):
        [alone] = tiny.generate([prompt], params)
        assert (alone.ids, alone.text, alone.finish_reason) == (
            answer.ids, answer.text, answer.finish_reason,
        )  # fmt: skip
        assert alone.logprobs == pytest.approx(answer.logprobs, abs=1e-4)


def test_rows_end_at_different_steps(tiny):
    """The moves of the last row into a free one are really met above."""
    ends = tiny.generate(prompts(40), SamplingParams(max_tokens=50, temperature=2.0))
    assert len({len(a.ids) for a in ends}) > 5
    assert {a.finish_reason for a in ends} == {"stop", "length"}


@pytest.mark.parametrize(("rows", "tokens"), [(3, 8192), (128, 50), (1, 1)])
def test_group_sizes_change_nothing(tiny, monkeypatch, rows, tokens):
    expected = tiny.generate(prompts(9), GREEDY)
    scores = tiny.score_batch(prompts(9))
    monkeypatch.setattr(engine, "MAX_ROWS", rows)
    monkeypatch.setattr(engine, "PASS_TOKENS", tokens)
    monkeypatch.setattr(engine, "PASS_LOGITS", 1000)
    monkeypatch.setattr(engine, "CACHE_BYTES", 100 * tokens)
    assert [a.ids for a in tiny.generate(prompts(9), GREEDY)] == [a.ids for a in expected]
    for a, b in zip(tiny.score_batch(prompts(9)), scores, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@given(lengths=st.lists(st.integers(1, 30)), tokens=st.integers(1, 60), rows=st.integers(1, 5))
def test_groups(lengths, tokens, rows):
    groups = list(engine._groups(lengths, tokens, rows))
    assert [x for group in groups for x in lengths[group]] == lengths
    for group in groups:
        part = lengths[group]
        assert 1 <= len(part) <= rows
        assert len(part) == 1 or len(part) * max(part) <= tokens


def test_cache_is_a_full_pass(tiny):
    """Log-probabilities on the way equal those of one pass over the whole without a cache."""
    params = SamplingParams(temperature=1.5, max_tokens=30)
    for prompt, answer in zip(prompts(8), tiny.generate(prompts(8), params), strict=True):
        scores = tiny.score(prompt + answer.ids)
        assert answer.logprobs == pytest.approx(scores[len(prompt) - 1 :], abs=1e-5)


def test_greedy_takes_the_likeliest(tiny, model):
    [answer] = tiny.generate([[5, 6, 7]], GREEDY)
    ids = [5, 6, 7]
    for token in answer.ids:
        assert token == model(torch.tensor([ids]))[0, -1].argmax().item()
        ids.append(token)


def test_score_is_the_log_softmax(tiny, model):
    for ids, scores in zip(prompts(6), tiny.score_batch(prompts(6)), strict=True):
        logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
        expected = [logprobs[t, ids[t + 1]].item() for t in range(len(ids) - 1)]
        assert scores == pytest.approx(expected, abs=1e-5)
    assert tiny.score([3]) == []
    assert tiny.score_batch([]) == []


def test_cache_size_of_the_3b():
    big = ModelConfig(
        128256, 36, 2048, 16, 4, 128, 11008, nope_pattern(36, 4), rope_theta=5e6, context=65536
    )
    assert DenseCache.bytes_per_place(big, torch.bfloat16) == 73_728


# what ends an answer


def test_stop_tokens(tiny, tokenizer, model):
    first = tiny.generate([[9, 8]], SamplingParams(temperature=0, max_tokens=5))[0].ids
    ending = Engine(model, tokenizer)
    ending.stop_ids = frozenset([first[2]])
    [answer] = ending.generate([[9, 8]], GREEDY)
    assert answer.finish_reason == "stop"
    assert answer.ids == first[: first.index(first[2]) + 1]
    assert len(answer.logprobs) == len(answer.ids)
    assert answer.text == tokenizer.decode(answer.ids[:-1], skip_special=True)
    assert "".join(ending.stream([9, 8], GREEDY)) == answer.text
    assert tiny.stop_ids == {*tokenizer.stop_ids, tokenizer.end_of_text_id}


def test_the_context_is_the_limit(tiny):
    [answer] = tiny.generate([[1] * 90], SamplingParams(temperature=0, max_tokens=50))
    assert (answer.finish_reason, len(answer.ids)) == ("length", 6)
    assert len(tiny.score([1] * 96)) == 95
    for bad, problem in (
        ([1] * 96, "fills the model's context of 96"),
        ([1] * 97, "97 tokens do not fit"),
        ([], "empty"),
        ("", "empty"),
        ([1, 300], "from 0 to 299"),
        ([-1, 3], "from 0 to 299"),
    ):
        with pytest.raises(UserError, match=problem):
            tiny.generate([[1], bad])
    with pytest.raises(UserError, match="empty"):
        tiny.score([])
    assert tiny.generate([]) == []


def test_text_prompts_are_only_text(tiny, tokenizer):
    text = "été <|im_end|>"
    [a], [b] = (tiny.generate([p], GREEDY) for p in (text, tokenizer.encode(text)))
    assert a == b
    assert tokenizer.stop_ids[0] not in tokenizer.encode(text)


def test_params_for_each(tiny):
    each = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 7, 3)]
    answers = tiny.generate([[5], [6, 7], [8]], each)
    assert [len(a.ids) for a in answers] == [1, 7, 3]
    with pytest.raises(ValueError, match="shorter"):
        tiny.generate([[5], [6]], each[:1])


# streams and chats


def test_streamed_is_whole(tiny):
    params = SamplingParams(temperature=2.0, max_tokens=40, seed=3)
    for prompt in prompts(4):
        pieces = list(tiny.stream(prompt, params))
        assert "".join(pieces) == tiny.generate([prompt], params)[0].text
        assert all(pieces)


@given(
    text=st.text(max_size=12),
    ids=st.lists(st.integers(0, 291), max_size=12),
)
def test_pieces_are_whole_characters(tokenizer, text, ids):
    for tokens, clean in ((tokenizer.encode(text), True), (ids, False)):
        stream = TextStream(tokenizer)
        pieces = [piece for token in tokens for piece in stream.push(token)]
        pieces += stream.end()
        assert "".join(pieces) == tokenizer.decode(tokens, skip_special=True)
        if clean:
            assert "".join(pieces) == text
            assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_characters_come_as_soon_as_they_are_whole(tokenizer):
    stream = TextStream(tokenizer)
    tokens = tokenizer.encode("語ü!")  # bytes the tokenizer has not merged
    assert len(tokens) == 6
    assert [list(stream.push(token)) for token in tokens] == [[], [], ["語"], [], ["ü"], ["!"]]


def test_chat_renders_generates_and_parses(roomy, tokenizer):
    messages = [{"role": "user", "content": "hi"}]
    params = SamplingParams(temperature=1.2, max_tokens=20)
    for think in (True, False):
        options = {"enable_thinking": think, "date": TODAY}
        ids = tokenizer.render(messages, **options).ids
        [answer] = roomy.generate([ids], params)
        message = roomy.chat(messages, params=params, **options)
        assert message == tokenizer.parse(answer.ids)
        pieces = roomy.chat_stream(messages, params=params, **options)
        assert "".join(pieces) == answer.text


def test_chat_tells_the_day(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(tiny.tokenizer, "render", lambda messages, **kw: seen.append(kw) or 1 / 0)
    for date in (None, TODAY):
        with pytest.raises(ZeroDivisionError):
            tiny.chat([{"role": "user", "content": "hi"}], date=date)
    assert [options["date"] for options in seen] == [datetime.date.today(), TODAY]


def test_load_engine_takes_the_models_own_settings(tmp_path, model, tokenizer):
    save_model(model, tokenizer, tmp_path)
    loaded = load_engine(tmp_path)
    assert loaded.params == PUBLISHED
    file = tmp_path / "generation_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"temperature": 0.25, "top_k": 7, "top_p": None}))
    loaded = load_engine(tmp_path)
    assert loaded.params == SamplingParams(0.25, 7, 1.0, 0.0, repetition_penalty=1.0)
    sampled = SamplingParams(temperature=0.25, top_k=7, top_p=1.0, max_tokens=9)
    [own], [given_] = (
        loaded.generate([[5, 6]], p) for p in (SamplingParams(max_tokens=9), sampled)
    )
    assert own == given_
    file.write_text(json.dumps(values | {"do_sample": False}))
    assert model_params(tmp_path).temperature == 0
    for bad in (values | {"top_p": 1.5}, [1]):
        file.write_text(json.dumps(bad))
        with pytest.raises(UserError, match=r"generation_config\.json"):
            model_params(tmp_path)


def test_tokenizer_larger_than_the_model(tokenizer):
    small = Transformer(replace(CONFIG, vocab_size=100))
    with pytest.raises(UserError, match="292 entries, the model only 100"):
        Engine(small, tokenizer)


# the sampler


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"min_p": -0.5}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 2.0}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_params_that_make_no_sense(changes, name):
    with pytest.raises(UserError, match=f"^{name}: "):
        SamplingParams(**changes)


def test_draws_are_keyed_by_seed_and_place(tiny):
    def ask(seed, batch):
        params = SamplingParams(temperature=1.5, max_tokens=10, seed=seed)
        return [a.ids for a in tiny.generate(batch, params)]

    [alone] = ask(4, [[5, 6]])
    assert ask(4, [[9] * 12, [5, 6], [1]])[1] == alone
    assert ask(4, [[5, 6], [5, 6]]) == [alone, alone]
    assert ask(5, [[5, 6]]) != [alone]
    numbers = [uniform(seed, place) for seed in range(40) for place in range(50)]
    assert len(set(numbers)) == 2000
    assert sum(numbers) / 2000 == pytest.approx(0.5, abs=0.02)
    assert all(0 <= x < 1 for x in numbers)


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([2.0, 0.5, 1.0, -3.0, 0.0])
    n, temperature = 20_000, 0.7
    params = [SamplingParams(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)] * n
    tokens, logprobs = sample(logits.expand(n, 5), params, range(n))
    counts = Counter(tokens)
    for token, p in enumerate((logits / temperature).softmax(-1).tolist()):
        assert counts[token] / n == pytest.approx(p, abs=4 * (p / n) ** 0.5)
    expected = logits.log_softmax(-1)[torch.tensor(tokens)]
    torch.testing.assert_close(torch.tensor(logprobs), expected)


def one(probs, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> set[int]:
    """The tokens that can be drawn."""
    params = [SamplingParams(temperature, top_k, top_p, min_p)] * 400
    rows = torch.tensor(probs).log().expand(400, -1)
    return set(sample(rows, params, range(400))[0])


def test_filters():
    probs = [0.1, 0.4, 0.05, 0.3, 0.15]
    assert one(probs) == {0, 1, 2, 3, 4}
    assert one(probs, top_k=2) == {1, 3}
    assert one(probs, top_p=0.69) == {1, 3}
    assert one(probs, top_p=0.71) == {1, 3, 4}
    assert one(probs, top_p=1e-6) == {1}
    assert one(probs, min_p=0.3) == {1, 3, 4}
    # top_p counts in what top_k left: 0.4 is 0.57 of {0.4, 0.3}
    assert one(probs, top_k=2, top_p=0.56) == {1}
    assert one(probs, top_k=2, top_p=0.6) == {1, 3}
    # temperature comes first: at 0.1 nearly everything is the likeliest
    assert one(probs, temperature=0.1, min_p=0.2) == {1}
    assert one(probs, temperature=1e-30) == {1}
    assert one([0.0, 0.5, 0.5]) == {1, 2}


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-32, 2)])
def test_the_ends_of_the_distribution(monkeypatch, number, token):
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: number)
    assert one([0.0, 0.5, 0.5, 0.0]) == {token}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    V=st.sampled_from([5, 200, 1000]),
    spread=st.sampled_from([0.1, 1.0, 5.0]),
    hard=st.builds(
        SamplingParams,
        temperature=st.just(1.0),
        top_k=st.sampled_from([0, 1, 50, 150, 999]),
        top_p=st.sampled_from([0.05, 0.5, 0.95, 1.0]),
        min_p=st.sampled_from([0.0, 0.01, 0.3]),
    ),
)
def test_least_kept_is_that_of_a_full_sort(seed, V, spread, hard):
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(seed)) * spread
    probs = logits.softmax(-1)
    free = SamplingParams(1.0, 0, 1.0, 0.0)
    least = least_kept(probs, [hard, free, hard])[:, 0]
    assert least[1] == 0
    for row in (0, 2):
        top = probs[row].double().sort(descending=True).values[: hard.top_k or V]
        before = (top / top.sum()).cumsum(0) - top / top.sum()
        if ((before - hard.top_p).abs() < 1e-6).any():
            continue  # float32 sums may fall on the other side
        kept = top[(before < hard.top_p) & (top >= hard.min_p * top[0])]
        if len(kept) < V:
            assert least[row].item() == pytest.approx(kept.min().item())
        else:
            assert least[row] <= kept.min()
