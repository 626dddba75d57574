"""Endpoints without an answer of the model: what is here, and how it is."""

from __future__ import annotations

import datetime
from typing import Any

from fastapi import APIRouter, Response

from smollm3.serve.ask import can_think
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects import replies as said
from smollm3.serve.dialects.replies import replies
from smollm3.serve.metrics import TYPE
from smollm3.serve.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)

    @routes.get("/v1/models", responses=replies(said.ServedModels))
    async def models() -> Response:
        """What is served: the model and its adapters, as OpenAI's and Anthropic's clients want to
        read it."""
        names = [service.model, *service.engine.adapters.folders]
        ends: Any = {"has_more": False, "first_id": names[0], "last_id": names[-1]}
        data = [_model(service, name) for name in names]
        return said.ServedModels(object="list", data=data, **ends).response()

    @routes.get("/v1/models/{name:path}", responses=replies(said.ServedModel))
    async def model(name: str) -> Response:
        """The model, under this name."""
        service.check_model(name)
        return _model(service, name).response()

    @routes.get("/health", responses=replies(said.Health))
    async def health() -> Response:
        """The process lives."""
        return said.Health(status="ok").response()

    @routes.get("/ready", responses=replies(said.Health))
    async def ready() -> Response:
        """It takes requests."""
        service.check_open()
        return said.Health(status="ready").response()

    @routes.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=TYPE)

    return routes


def _model(service: Service, name: str) -> said.ServedModel:
    engine = service.engine
    thinks = can_think(engine)
    details = said.ModelDetails(
        context=engine.config.context,
        modes=["think", "no_think"] if thinks else ["no_think"],
        thinking=thinks,
        think_by_default=thinks and service.settings.think,
        chat=bool(engine.tokenizer.template),
        tools=["xml", "python"],
        engine=engine.backend.name,
        vocab_size=engine.config.vocab_size,
    )
    created = datetime.datetime.fromtimestamp(service.created, datetime.UTC)
    return said.ServedModel(
        id=name,
        object="model",
        created=service.created,
        owned_by="smollm3",
        parent=service.model if service.adapter_of(name) else None,
        max_model_len=engine.config.context,
        smollm3=details,
        type="model",
        display_name=name,
        created_at=created.isoformat(),
    )
