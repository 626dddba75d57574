"""Pages for people: the chat at /, where it was built, and what the API takes at /docs."""

from __future__ import annotations

import html
import shlex
import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

STATIC = Path(__file__).with_name("static")
CHECKOUT = Path(__file__).parents[3]  # of an editable installation
_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><h1>{title}</h1>"""


def how_to_get(static: Path = STATIC, checkout: Path = CHECKOUT) -> str:
    """In a line, the command that makes the chat page; nothing where the page is."""
    if (static / "index.html").exists():
        return ""
    if (checkout / "ui" / "page.py").exists():
        command = f"make -C {shlex.quote(str(checkout))} ui"
    else:
        command = "pip install --force-reinstall --no-deps --no-binary smollm3 smollm3"
    return f"no chat page in this installation; where npm is, this makes it: {command}"


def add(app: FastAPI, static: Path = STATIC) -> None:
    """The chat page's files lie in `static`; without them / says how to get them."""

    lock = threading.Lock()

    def document() -> dict[str, Any]:
        """Made at the first request, in half a second: on a thread, for others wait on the loop."""
        with lock:
            return app.openapi()

    @app.get("/openapi.json", include_in_schema=False)
    def openapi() -> JSONResponse:
        return JSONResponse(document())

    @app.get("/docs", include_in_schema=False)
    def docs() -> HTMLResponse:
        return HTMLResponse(describe(document()))

    @app.get("/", include_in_schema=False)
    def index() -> Response:  # looks each time: a page that is built now is there on reload
        if missing := how_to_get(static):
            note = f"<p>{html.escape(missing)}</p><p><a href='/docs'>The API</a></p>"
            return HTMLResponse(_HEAD.format(title="smollm3") + note)
        return FileResponse(static / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/assets", StaticFiles(directory=static / "assets", check_dir=False))


def describe(document: dict[str, Any]) -> str:
    """An OpenAPI document as a page without a script."""
    parts = [_HEAD.format(title="smollm3: the API")]
    parts.append("<p>The same for programs: <a href='/openapi.json'>/openapi.json</a></p>")
    schemas = document.get("components", {}).get("schemas", {})
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
            content = operation.get("requestBody", {}).get("content", {})
            reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
            if body := schemas.get(reference.rpartition("/")[2]):
                parts.append(_fields(body, schemas))
    return "\n".join(parts)


def _fields(body: dict[str, Any], schemas: dict[str, Any]) -> str:
    rows = []
    required = body.get("required", ())
    for name, schema in body.get("properties", {}).items():
        mark = " (required)" if name in required else ""
        rows.append(f"<tr><td><code>{html.escape(name)}</code>{mark}<td>{_kind(schema, schemas)}")
    said = html.escape(body.get("description", ""))
    return f"<p>{said}</p><table><tr><th>field<th>value{''.join(rows)}</table>"


def _kind(schema: dict[str, Any], schemas: dict[str, Any], depth: int = 0) -> str:
    """A value in words."""
    if "$ref" in schema:
        inner = schemas[schema["$ref"].rpartition("/")[2]]
        if depth >= 3 or "properties" not in inner:
            return _kind(inner, schemas, depth + 1) if depth < 3 else "object"
        fields = (
            f"{html.escape(k)}: {_kind(v, schemas, depth + 1)}"
            for k, v in inner["properties"].items()
        )
        return f"{{{', '.join(fields)}}}"
    if "anyOf" in schema:
        kinds = (_kind(s, schemas, depth) for s in schema["anyOf"] if s.get("type") != "null")
        return " or ".join(kinds)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " | ".join(html.escape(repr(value)) for value in values)
    if schema.get("type") == "array":
        return f"[{_kind(schema.get('items', {}), schemas, depth)}]"
    return html.escape(str(schema.get("type", "anything")))
