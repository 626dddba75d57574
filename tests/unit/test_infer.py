import datetime
import json
from dataclasses import replace

import pytest
import torch

from smollm3 import load_engine
from smollm3.checkpoint import save_model
from smollm3.errors import UserError
from smollm3.infer import Engine, SamplingParams, TorchBackend
from smollm3.infer.params import PUBLISHED, model_params
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
    return Engine(TorchBackend(model), tokenizer)


@pytest.fixture(scope="module")
def roomy(model, tokenizer):
    """The same weights, with a context that takes our template byte by byte."""
    wide = Transformer(replace(CONFIG, context=2048))
    wide.load_state_dict(model.state_dict())
    return Engine(TorchBackend(wide), tokenizer)


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


def test_answers_end_at_different_steps(tiny):
    """Requests really leave at different steps in the tests here."""
    ends = tiny.generate(prompts(40), SamplingParams(max_tokens=50, temperature=2.0))
    assert len({len(a.ids) for a in ends}) > 5
    assert {a.finish_reason for a in ends} == {"stop", "length"}


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


# what ends an answer


def test_stop_tokens(tiny, tokenizer, model):
    first = tiny.generate([[9, 8]], SamplingParams(temperature=0, max_tokens=5))[0].ids
    ending = Engine(TorchBackend(model), tokenizer)
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
    # Each with a salt of its own: on PyTorch the last bits tell what a prefix-cache hit has saved.
    asked = {"a": text, "b": tokenizer.encode(text)}
    a, b = (tiny.submit(p, GREEDY, cache_salt=salt).result() for salt, p in asked.items())
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
        Engine(TorchBackend(small), tokenizer)
