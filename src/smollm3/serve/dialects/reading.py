"""Texts that are only read: embeddings, and how well documents answer a query."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from fastapi import APIRouter, Request, Response
from pydantic import Field
from torch import Tensor

from smollm3 import turn
from smollm3.serve.ask import Ask
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.fields import Body, Prompts, Text, Whole, limit, prompts_of
from smollm3.serve.dialects.replies import ApiReply, replies
from smollm3.serve.errors import refused
from smollm3.serve.service import Service, new_id

MOST = 2048  # texts in a request, as OpenAI has it


class EmbeddingBody(Body):
    """Texts, or the same as tokens. dimensions: that many of the first, again of length 1."""

    input: Prompts
    model: str | None = None
    dimensions: Whole | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class RerankDocument(Body):
    text: str


class RerankBody(Body):
    """Documents, each judged by itself. return_documents: their texts stand in the answer."""

    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1, max_length=MOST)]
    model: str | None = None
    top_n: Whole | None = None
    return_documents: bool = False


class EmbeddingUsage(ApiReply):
    prompt_tokens: int
    total_tokens: int


class Embedding(ApiReply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(ApiReply):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class RankedText(ApiReply):
    text: str


class Ranked(ApiReply):
    index: int
    relevance_score: float
    document: RankedText = RankedText(text="")


class Reranked(ApiReply):
    id: str
    object: Literal["list"]
    model: str
    results: list[Ranked]
    usage: EmbeddingUsage


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.post("/v1/embeddings", responses=replies(Embeddings))
    async def embeddings(body: EmbeddingBody, request: Request) -> Response:
        """Vectors of texts: the mean over a text's tokens of the last layer's states, of length 1.
        The model is a decoder that was not trained for this."""
        model = service.check_model(body.model)
        given = prompts_of(body.input)
        limit(len(given), MOST, "input")
        vectors, tokens = await embed(service, request, given, model, body.dimensions)
        data = [
            Embedding(object="embedding", index=i, embedding=_coded(vector, body.encoding_format))
            for i, vector in enumerate(vectors)
        ]
        told = Embeddings(object="list", model=model, data=data, usage=_usage(tokens))
        return told.response()

    async def rerank(body: RerankBody, request: Request) -> Response:
        """Documents by how likely the model finds it that they answer the query: its probability
        of "yes" against "no"."""
        model = service.check_model(body.model)
        texts = [d if isinstance(d, str) else d.text for d in body.documents]
        scores, tokens = await _relevance(service, request, model, body.query, texts)
        order = sorted(range(len(texts)), key=lambda i: (-scores[i], i))[: body.top_n]
        results = []
        for i in order:
            shown = {"document": RankedText(text=texts[i])} if body.return_documents else {}
            results.append(Ranked(index=i, relevance_score=scores[i], **shown))
        ranked = Reranked(
            id=new_id("rerank-"), object="list", model=model, results=results, usage=_usage(tokens)
        )
        return ranked.response()

    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        routes.post(path, responses=replies(Reranked))(rerank)
    return routes


async def embed(
    service: Service,
    request: Request,
    texts: Sequence[str | Sequence[int]],
    model: str | None,
    dimensions: int | None = None,
) -> tuple[list[list[float]], int]:
    """A vector of length 1 for each text, and the tokens that were read."""
    engine = service.engine
    if dimensions is not None and dimensions > engine.config.hidden:
        raise refused(f"dimensions: at most {engine.config.hidden} here", "dimensions")
    ids = await service.prompts(request, Ask([turn.Request(prompt=text) for text in texts]))
    adapter = service.adapter_of(model)
    found = await service.read(
        request, ids, lambda salt: engine.submit_embeddings(ids, salt, adapter)
    )
    return [_unit(state_E[:dimensions]) for state_E in found], sum(map(len, ids))


def _unit(vector: Tensor) -> list[float]:
    unit: list[float] = torch.nn.functional.normalize(vector, dim=0).tolist()
    return unit


def _coded(vector: Sequence[float], form: str) -> list[float] | str:
    if form == "float":
        return list(vector)
    return base64.b64encode(torch.tensor(vector).numpy().astype("<f4").tobytes()).decode()


_JUDGE = (
    "Judge whether the document answers the query. The answer can only be 'yes' or 'no'.\n\n"
    "Query: {query}\n\nDocument: {document}\n\nDoes the document answer the query?"
)
_ANSWERS = ("yes", "no")


async def _relevance(
    service: Service, request: Request, model: str, query: str, documents: Sequence[str]
) -> tuple[list[float], int]:
    engine, adapter = service.engine, service.adapter_of(model)
    tokenizer = engine.tokenizer
    answers = [tokenizer.encode(answer) for answer in _ANSWERS]
    size = sum(map(len, documents)) + len(documents) * len(query)
    if size > service.settings.max_body_bytes:  # a long query stands before each document
        raise refused("documents: too long together with the query; send fewer", "documents")

    def judged() -> list[list[int]]:
        prompts = []
        for document in documents:
            asked = [{"role": "user", "content": _JUDGE.format(query=query, document=document)}]
            prompts.append(turn.Request(asked, enable_thinking=False).ids(tokenizer))
        return prompts

    prompts = await service.tokenised(request, size, judged)
    texts = [[*prompt, *answer] for prompt in prompts for answer in answers]
    firsts = [len(prompt) for prompt in prompts for _ in answers]
    found = await service.read(
        request, prompts, lambda salt: engine.submit_scores(texts, firsts, salt, adapter)
    )
    sums = [float(pair_R2[:, 0].sum()) for pair_R2 in found]
    scores = [
        1 / (1 + math.exp(min(no - yes, 700.0)))
        for yes, no in zip(sums[::2], sums[1::2], strict=True)
    ]
    return scores, sum(map(len, prompts))


def _usage(tokens: int) -> EmbeddingUsage:
    return EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
