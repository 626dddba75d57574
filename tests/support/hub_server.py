"""A stand-in for the Hugging Face Hub on 127.0.0.1: what uploading and downloading a model needs.

Repositories live in memory. `requests` is the log; `cut` makes one download break off half-way;
`fail` makes paths that contain it answer 403.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.support.servers import running

TOKEN = "hf_stand_in"
Files = dict[str, bytes]


@dataclass
class Hub:
    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    commits: dict[str, list[tuple[str, Files]]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    cut: str = ""
    fail: str = ""

    def commit(self, repo: str, files: Files) -> str:
        history = self.commits.setdefault(repo, [])
        listing = repr((len(history), sorted(files.items())))
        history.append((hashlib.sha1(listing.encode()).hexdigest(), files))
        return history[-1][0]

    def files(self, repo: str, revision: str = "main") -> Files:
        return self.at(repo, revision)[1]

    def at(self, repo: str, revision: str) -> tuple[str, Files]:
        history = self.commits[repo]
        if revision == "main":
            return history[-1]
        return next(entry for entry in history if entry[0] == revision)

    def asked(self, method: str, word: str) -> list[str]:
        """Ranges of the requests whose path contains `word`."""
        return [r for m, path, r in self.requests if m == method and word in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.body()
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.fail and self.hub.fail in path:
            return self.json({"error": "not now"}, 403)
        writes = self.command in ("POST", "PUT") and "/storage/" not in path
        if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.json({"error": "Invalid username or password."}, 401)
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, path):
                try:
                    return method(self, *match.groups(), body)
                except (KeyError, StopIteration):
                    break
        return self.json({"error": "Repository not found"}, 404)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def json(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # uploading

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.commits:
            return self.json({"error": "exists", "url": f"{self.hub.url}/{repo}"}, 409)
        self.hub.private[repo] = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.commit(repo, {".gitattributes": b""})
        return self.json({"url": f"{self.hub.url}/{repo}"})

    def validate(self, body: bytes) -> None:
        good = json.loads(body)["content"].startswith("---\n")
        errors = [] if good else [{"message": "no metadata"}]
        self.json({"errors": errors, "warnings": []}, 200 if good else 400)

    def preupload(self, repo: str, body: bytes) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.json({"files": files})

    def batch(self, repo: str, body: bytes) -> None:
        objects = [
            {
                **wanted,
                "actions": {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}},
            }
            for wanted in json.loads(body)["objects"]
        ]
        self.json({"transfer": "basic", "objects": objects})

    def store(self, oid: str, body: bytes) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.blobs[oid] = body
        self.send(b"", 200, {})

    def accept(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.files(repo))
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = self.hub.commit(repo, files)
        self.json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    # downloading

    def info(self, repo: str, revision: str, body: bytes) -> None:
        sha, files = self.hub.at(repo, revision)
        siblings = [{"rfilename": name} for name in files]
        self.json({"id": repo, "sha": sha, "siblings": siblings, "tags": []})

    def head(self, repo: str, body: bytes) -> None:
        self.info(repo, "main", body)

    def tree(self, repo: str, revision: str, body: bytes) -> None:
        entries = [
            {
                "type": "file",
                "path": name,
                "size": len(data),
                "oid": hashlib.sha1(data).hexdigest(),
                "lfs": {
                    "oid": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                },
            }
            for name, data in self.hub.files(repo, revision).items()
        ]
        self.json(entries)

    def resolve(self, repo: str, revision: str, name: str, body: bytes) -> None:
        sha, files = self.hub.at(repo, revision)
        data = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
        }
        if self.command == "GET" and self.hub.cut == name:
            self.hub.cut = ""
            self.send(data[: len(data) // 2], 200, headers | {"Content-Length": str(len(data))})
            self.close_connection = True
            return
        if asked := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(data[start:], 206, headers)
            return
        self.send(data, 200, headers)


ROUTES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (r"/api/models/(.+)/preupload/main", Handler.preupload),
    (r"/(.+)\.git/info/lfs/objects/batch", Handler.batch),
    (r"/storage/(\w+)", Handler.store),
    (r"/api/models/(.+)/commit/main", Handler.accept),
    (r"/api/models/(.+)/revision/(.+)", Handler.info),
    (r"/api/models/(.+)/tree/(.+)", Handler.tree),
    (r"/api/models/([^/]+/[^/]+)", Handler.head),
    (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def stand_in() -> Iterator[Hub]:
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    with running(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as hub.url:
        yield hub
