"""Adapters that come and go while the server runs, in vLLM's words."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import Field

from smollm3.checkpoint import locate_adapter
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects.fields import Body
from smollm3.serve.dialects.replies import ErrorReply, replies
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.service import Service

_TEXT = replies(ErrorReply) | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
Name = Annotated[str, Field(min_length=1, max_length=200)]


class LoadAdapter(Body):
    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]


class UnloadAdapter(Body):
    lora_name: Name


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    adapters, most = service.engine.adapters, service.settings.max_adapters
    one_by_one = asyncio.Lock()  # threads are left for others' bodies, and the count is right

    @routes.post("/v1/load_lora_adapter", response_class=Response, responses=_TEXT)
    async def load(body: LoadAdapter) -> Response:
        """Serve an adapter, a folder in PEFT's format on the server's machine, under a name that
        requests give as `model`."""
        _check_key(service)
        if service.is_own(body.lora_name):
            raise refused(f"lora_name: {body.lora_name!r} is the model itself", "lora_name")

        if not Path(body.lora_path).expanduser().is_dir():  # nothing is fetched for a request
            raise refused(f"lora_path: there is no folder {body.lora_path!r:.200}", "lora_path")

        def read() -> None:
            adapters.load(body.lora_name, locate_adapter(body.lora_path))

        async with one_by_one:
            if len(adapters.folders) >= most:
                raise refused(f"{most} adapters are loaded already; unload one", "lora_name")
            await asyncio.to_thread(read)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter", response_class=Response, responses=_TEXT)
    async def unload(body: UnloadAdapter) -> Response:
        """Serve an adapter no more; answers in progress end as they would have."""
        _check_key(service)
        if body.lora_name not in adapters.folders:
            raise ApiError(
                404, f"the adapter {body.lora_name!r:.100} is not here", param="lora_name"
            )
        await asyncio.to_thread(adapters.unload, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes


def _check_key(service: Service) -> None:
    """It reads files of the machine, and changes what others are answered by."""
    if not service.keys:
        raise ApiError(403, "adapters are loaded and unloaded only where the server has a key")
