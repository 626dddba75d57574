"""/v1/files and /v1/batches: requests in a file, answered beside everything else."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from smollm3.config import problems
from smollm3.serve.batches import Batches, Finished, Limits, MakeAsk
from smollm3.serve.bodies import BodyRoute
from smollm3.serve.dialects import openai_chat, openai_chat_body, openai_completions
from smollm3.serve.dialects.fields import Body, Metadata
from smollm3.serve.dialects.replies import ApiReply, replies
from smollm3.serve.errors import ApiError, refused
from smollm3.serve.file_store import OWNER, FileStore
from smollm3.serve.service import Json, Service, new_id, salt_of

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
Limit = Annotated[int, Query(ge=1, le=10_000)]


class BatchBody(Body):
    """input_file_id: of a file with `custom_id`, `url` and `body` in each line. All that is in it
    is answered, however long that takes."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


class StoredFile(ApiReply):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]


class StoredFiles(ApiReply):
    object: Literal["list"]
    data: list[StoredFile]
    has_more: bool
    first_id: str | None
    last_id: str | None


class DeletedFile(ApiReply):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class BatchError(ApiReply):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(ApiReply):
    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(ApiReply):
    total: int
    completed: int
    failed: int


class Batch(ApiReply):
    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal["validating", "in_progress", "cancelling", "completed", "failed", "cancelled"]
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(ApiReply):
    object: Literal["list"]
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None


_CONTENT = {status: told for status, told in replies(StoredFile).items() if status != 200}
_CONTENT[200] = {
    "description": "The file",
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string"},
                    },
                }
            }
        },
    }
}


def router(service: Service) -> APIRouter:
    routes = APIRouter(route_class=BodyRoute)
    kept = _Kept(service)
    if service.settings.files is not None:
        kept.batches  # noqa: B018  what was begun goes on at once

    @routes.post("/v1/files", responses=replies(StoredFile), openapi_extra=_FORM)
    async def upload(request: Request) -> Response:
        """Keep a file, sent as multipart/form-data with `file` and `purpose`."""
        service.check_open()
        store = kept.store
        async with request.form(max_files=1, max_fields=8) as form:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise refused("file: send the file as multipart/form-data", "file")
            if not isinstance(purpose, str) or not 0 < len(purpose) <= 100:
                raise refused("purpose: must say what the file is for, as batch", "purpose")
            name = Path((file.filename or "file").replace("\\", "/")).name[:200] or "file"
            record = await asyncio.to_thread(
                store.add, new_id("file-"), name, purpose, salt_of(request), _pieces(file.file)
            )
        return StoredFile(**_bare(record)).response()

    @routes.get("/v1/files", responses=replies(StoredFiles))
    def files(
        request: Request, purpose: str | None = None, after: str | None = None, limit: Limit = 100
    ) -> Response:
        """One's own files, the newest first."""
        mine = [r for r in _mine(kept.store, "files", request) if purpose in (None, r["purpose"])]
        page, more = _page(mine, after, limit)
        data = [StoredFile(**_bare(record)) for record in page]
        return StoredFiles(object="list", data=data, has_more=more, **_ends(page)).response()

    @routes.get("/v1/files/{name}", responses=replies(StoredFile))
    def file(name: str, request: Request) -> Response:
        """What is known of a file."""
        return StoredFile(**_bare(kept.store.get("files", name, salt_of(request)))).response()

    @routes.get("/v1/files/{name}/content", response_class=FileResponse, responses=_CONTENT)
    def content(name: str, request: Request) -> Response:
        """A file as it was sent, or made."""
        record = kept.store.get("files", name, salt_of(request))
        return FileResponse(
            kept.store.path("files", record["id"]), media_type="application/octet-stream"
        )

    @routes.delete("/v1/files/{name}", responses=replies(DeletedFile))
    def delete(name: str, request: Request) -> Response:
        """Forget a file."""
        kept.store.get("files", name, salt_of(request))
        kept.store.drop(name)
        return DeletedFile(id=name, object="file", deleted=True).response()

    @routes.post("/v1/batches", responses=replies(Batch))
    def create(body: BatchBody, request: Request) -> Response:
        """Answer the requests of a file, after those of the batches before it."""
        service.check_open()
        source = kept.store.get("files", body.input_file_id, salt_of(request))
        record = kept.batches.create(source, body.endpoint, body.metadata, salt_of(request))
        return Batch(**_bare(record)).response()

    @routes.get("/v1/batches", responses=replies(BatchList))
    def batches(request: Request, after: str | None = None, limit: Limit = 20) -> Response:
        """One's own batches, the newest first."""
        page, more = _page(list(_mine(kept.store, "batches", request)), after, limit)
        data = [Batch(**_bare(record)) for record in page]
        return BatchList(object="list", data=data, has_more=more, **_ends(page)).response()

    @routes.get("/v1/batches/{name}", responses=replies(Batch))
    def batch(name: str, request: Request) -> Response:
        """How far a batch is."""
        return Batch(**_bare(kept.store.get("batches", name, salt_of(request)))).response()

    @routes.post("/v1/batches/{name}/cancel", responses=replies(Batch))
    def cancel(name: str, request: Request) -> Response:
        """Answer no more of it; what is answered is kept."""
        record = kept.store.get("batches", name, salt_of(request))
        return Batch(**_bare(kept.batches.cancel(record))).response()

    return routes


def _pieces(content: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: content.read(1 << 20), b"")


class _Kept:
    """The folder's store and the thread of its batches, made once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._store: FileStore | None = None
        self._batches: Batches | None = None

    @property
    def store(self) -> FileStore:
        settings = self._service.settings
        if settings.files is None:
            raise ApiError(
                400, "this server keeps no files; start it with --files FOLDER", code="no_files"
            )
        with self._lock:
            if self._store is None:
                folder = Path(settings.files).expanduser()
                most = settings.max_files_bytes, settings.max_files
                self._store = FileStore(folder, *most, keys=max(len(self._service.keys), 1))
            return self._store

    @property
    def batches(self) -> Batches:
        store, service = self.store, self._service
        with self._lock:
            if self._batches is None:
                settings = service.settings
                self._batches = Batches(
                    store,
                    service.engine,
                    _makers(service),
                    Limits(
                        settings.max_batches, settings.max_body_bytes, max(len(service.keys), 1)
                    ),
                    settings.batch_running,
                    lambda: service.admission.waiting > 0,
                )
                service.at_end(self._batches.close)
            return self._batches


def _makers(service: Service) -> dict[str, MakeAsk]:
    def chat(values: Json) -> Any:
        body = _checked(openai_chat_body.ChatBody, values)
        model, ask = service.check_model(body.model), openai_chat_body.ask_of(service, body)
        service.admission.check(ask.count)

        def tell(finished: Finished) -> Json:
            return openai_chat.completion(service, body, model, finished).dumped()

        return ask, tell

    def text(values: Json) -> Any:
        body = _checked(openai_completions.CompletionBody, values)
        if body.echo:
            raise refused("echo: not in a batch")
        model, ask = service.check_model(body.model), openai_completions.ask_of(service, body)
        service.admission.check(ask.count)
        echoes = [openai_completions.Echo()] * ask.count

        def tell(finished: Finished) -> Json:
            return openai_completions.completion(service, body, model, finished, echoes).dumped()

        return ask, tell

    return dict(zip(ENDPOINTS, (chat, text), strict=True))


def _checked(kind: Any, values: Json) -> Any:
    """A body of a line, by the rules of the endpoint."""
    try:
        body = kind.model_validate(values)
    except ValidationError as e:
        first = problems(e.errors(), values)[0]
        raise refused(f"{first.key}: {first.message}" if first.key else first.message) from None
    if body.stream:
        raise refused("stream: not in a batch")
    return body


def _bare(record: Json) -> Json:
    return {key: value for key, value in record.items() if key != OWNER}


def _mine(store: FileStore, kind: str, request: Request) -> Any:
    owner = salt_of(request)
    return (record for record in store.all(kind) if record[OWNER] == owner)


def _page(records: list[Json], after: str | None, limit: int) -> tuple[list[Json], bool]:
    place = next((i + 1 for i, r in enumerate(records) if r["id"] == after), 0)
    return records[place : place + limit], len(records) > place + limit


def _ends(page: list[Json]) -> Json:
    return {
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
