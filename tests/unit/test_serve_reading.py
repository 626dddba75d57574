"""Embeddings and reranking over HTTP: what the engine reads, as clients want it."""

import base64
import math

import numpy as np
import openai
import pytest
import torch
from tests.support.fake_backend import FakeBackend
from tests.support.serving import Settings, listening, local, post, speaking

from smollm3.infer import Engine, SamplingParams
from smollm3.infer.backends.torch import TorchBackend
from smollm3.model import ModelConfig, Transformer, nope_pattern

CONFIG = ModelConfig(
    vocab_size=292, layers=4, hidden=32, heads=2, kv_heads=1, head_dim=16, ffn=48,
    uses_rope=nope_pattern(4, 4), rope_theta=1e4, context=512,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    model = Transformer(CONFIG)
    model.init_weights(0)
    return model


@pytest.fixture(scope="module")
def engine(model, tokenizer):
    with Engine(TorchBackend(model, blocks=60), tokenizer, max_num_batched_tokens=48) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine):
    with local(engine) as client:
        yield client


def test_the_mean_of_the_last_states(engine, model):
    """Alone, together, in chunks, beside an answer and after a preemption."""
    texts = [[1, 2, 3], list(range(100)), [5], list(range(20, 280))]
    with torch.no_grad():
        expected = [model.hidden(torch.tensor([ids]))[0].mean(0) for ids in texts]
    beside = engine.submit([1, 2, 3])
    for _ in range(2):  # again, when prefixes are cached
        for found, mean in zip(engine.submit_embeddings(texts), expected, strict=True):
            torch.testing.assert_close(found.result(), mean, atol=1e-5, rtol=0)
    beside.cancel()


def test_a_preempted_text_is_summed_once(tokenizer):
    """Each token's state tells what stands before it: twice in the sum would be seen."""
    text = list(range(90))
    options = {"max_num_batched_tokens": 16}
    with Engine(FakeBackend(blocks=4), tokenizer, **options) as engine:
        alone = engine.submit_embeddings([text])[0].result()
        with engine.together():  # whose answer needs a second block while the text is read
            params = SamplingParams(max_tokens=50, ignore_eos=True)
            running = engine.submit(list(range(100, 128)), params)
            found = engine.submit_embeddings([text])[0]
        assert torch.equal(found.result(), alone)
        assert engine.stats().preemptions == 1
        running.result()


def test_embeddings(client, engine):
    tokens = [engine.tokenizer.encode(text) for text in ("the model", "été 日本")]
    told = post(client, "/v1/embeddings", input=["the model", "été 日本"])
    assert [one["index"] for one in told["data"]] == [0, 1]
    assert told["usage"] == {
        "prompt_tokens": sum(map(len, tokens)),
        "total_tokens": sum(map(len, tokens)),
    }
    vectors = [one["embedding"] for one in told["data"]]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)
    assert [len(vector) for vector in vectors] == [CONFIG.hidden] * 2
    for given in (tokens, "the model", tokens[0]):
        again = post(client, "/v1/embeddings", input=given, model="tiny", user="u")["data"]
        assert again[0]["embedding"] == pytest.approx(vectors[0], abs=1e-5)
    short = post(client, "/v1/embeddings", input="the model", dimensions=5)["data"][0]["embedding"]
    cut = np.array(vectors[0][:5])
    assert short == pytest.approx((cut / np.linalg.norm(cut)).tolist(), abs=1e-5)
    coded = post(client, "/v1/embeddings", input="the model", encoding_format="base64")
    bits = base64.b64decode(coded["data"][0]["embedding"])
    assert np.frombuffer(bits, "<f4").tolist() == pytest.approx(vectors[0], abs=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 33}, "dimensions: at most 32"),
        ("/v1/embeddings", {"input": "x", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": [9999]}, "token ids"),
        ("/v1/embeddings", {"input": "x" * 600}, "do not fit"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["x" * 600]}, "do not fit"),
    ],
)
def test_what_is_wrong_is_said(client, path, body, said):
    error = post(client, path, status=400, **body)["error"]
    assert said in error["message"]


def test_a_full_queue_says_so(engine):
    with local(engine, Settings(running=1, queue=0)) as client:
        assert len(post(client, "/v1/embeddings", input=["a", "b", "c"])["data"]) == 3
        client.service.admission._room = 0
        assert (
            post(client, "/v1/embeddings", status=429, input="a")["error"]["code"] == "queue_full"
        )
        client.service.admission._room = 1
        client.service.drain()
        post(client, "/v1/rerank", status=503, query="a", documents=["b"])


def test_rerank_by_the_models_own_yes(tokenizer):
    """A model that says yes to one kind of document and no to the others."""
    end = "Does the document answer the query?"
    script = {f"Document: cats\n\n{end}": "yes", f"Document: {end}": "no", f"dogs\n\n{end}": "no"}
    with speaking(tokenizer, script) as engine, local(engine) as client:
        body = {"query": "what purrs", "documents": ["dogs", {"text": "cats"}, "dogs"]}
        told = post(client, "/v1/rerank", **body, return_documents=True)
        assert [one["index"] for one in told["results"]] == [1, 0, 2]
        best, *rest = told["results"]
        assert best["document"] == {"text": "cats"}
        assert best["relevance_score"] > 0.9
        assert all(one["relevance_score"] < 0.1 for one in rest)
        first = post(client, "/rerank", **body, top_n=1)["results"]
        assert first == [{"index": 1, "relevance_score": best["relevance_score"]}]
        assert told["usage"]["total_tokens"] > 0


def test_openais_client(engine):
    with (
        listening(engine) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        answer = client.embeddings.create(model="tiny", input=["a", "b"], dimensions=8)
        assert [len(one.embedding) for one in answer.data] == [8, 8]
        plain = client.embeddings.create(
            model="tiny", input="a", dimensions=8, encoding_format="float"
        )
        assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)
