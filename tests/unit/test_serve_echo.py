"""Options scored over HTTP: by lm-evaluation-harness' own client, and by ours."""

import os

import pytest
from tests.support.noise import save_noise
from tests.support.serving import listening, speaking

from smollm3.eval.remote import UrlTarget
from smollm3.eval.target import Prompt, Settings
from smollm3.infer import load_engine

PAIRS = [
    ("What is the answer?", " the model"),
    ("été", " 日本"),  # whose characters are several tokens
    ("a long question of many words, so that it fills a block of the cache", " a"),
    ("", "the whole of it"),
]


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    made = tmp_path_factory.mktemp("echo") / "model"
    save_noise(made, tokenizer, spread=3)
    return made


@pytest.fixture(scope="module")
def served(folder):
    with load_engine(folder) as engine, listening(engine) as (url, _):
        yield engine, f"{url}/v1"


def harness(url, tokenizer, **options):
    for package in ("lm_eval", "transformers", "aiohttp", "tenacity"):
        pytest.importorskip(package)
    os.environ.setdefault("OPENAI_API_KEY", "none")
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model="tiny",
        tokenizer=str(tokenizer),
        tokenizer_backend="huggingface",
        max_length=1024,
        **options,
    )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_harness_scores_options_as_the_engine_does(served, folder, batch_size):
    from lm_eval.api.instance import Instance

    engine, url = served
    client = harness(url, folder, batch_size=batch_size)
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(PAIRS)]
    found = client.loglikelihood(asked, disable_tqdm=True)
    for (context, option), (logprob, greedy) in zip(PAIRS, found, strict=True):
        before, whole = (
            client._encode_pair(context, option)
            if context
            else ([client.prefix_token_id], client.tok_encode(option))
        )
        ids = [*before, *whole]
        scores = engine.submit_scores([ids], [len(before)])[0].result().tolist()
        assert logprob == sum(own for own, _ in scores)  # the bits
        assert greedy == all(own == best for own, best in scores)


def test_an_answer_that_ends_at_once_costs_the_option_nothing(tokenizer):
    """The harness leaves out the last figure, as that of the token that is made; the token that
    ends an answer is one."""
    with speaking(tokenizer, {"x": ""}) as engine, listening(engine) as (url, _):
        target = UrlTarget(f"{url}/v1", Settings())
        body = {"prompt": "x", "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
        choice = target._ask("completions", body)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["token_logprobs"]) == len(tokenizer.encode("x")) + 1


def test_ours_scores_as_the_engine_does(served, folder):
    engine, url = served
    target = UrlTarget(url, Settings())
    for context, option in PAIRS:
        before = engine.tokenizer.encode(context)
        ids = engine.tokenizer.encode(context + option)
        assert ids[: len(before)] == before
        first = max(1, len(before))
        scores = engine.submit_scores([ids], [first])[0].result().tolist()
        expected = [sum(own for own, _ in scores), all(own == best for own, best in scores)]
        assert target.score(Prompt(context), option).result() == expected
