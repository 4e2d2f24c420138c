"""A hub on this machine: as much of its HTTP API as `huggingface_hub` and `datasets` ask for, by $HF_ENDPOINT.

Repositories live in memory, one commit after another; files above SMALL, and tensors, go the way of Git LFS. Written
from what the installed clients send and read: the real hub was not asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

SMALL = 10_000
TOKENS = {"hf_writes": "writer", "hf_reads": "reader"}
"""Token -> who it is; only the first may write, and only under its own name."""

Files = dict[str, bytes]


@dataclass
class Repository:
    """Its commits, each with all of its files."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return next(reversed(self.commits))

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def commit(self, files: Mapping[str, bytes]) -> str:
        content = json.dumps([len(self.commits), {k: hashlib.sha1(v).hexdigest() for k, v in sorted(files.items())}])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        return sha


@dataclass
class Hub:
    """What the server holds: repositories by kind and id, such as "models/writer/my-sft", LFS objects, and what was
    asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: Files = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, path: str, files: Mapping[str, bytes], private: bool = False) -> Repository:
        repository = self.repositories.setdefault(path, Repository(private))
        repository.commit(files)
        return repository

    def environment(self, token: str | None = None) -> dict[str, str]:
        """What sends a client here. Without Xet, which is a protocol of its own beside the hub's."""
        more = {"HF_TOKEN": token} if token else {}
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}


def is_large(path: str, size: int) -> bool:
    return path.endswith(".safetensors") or size > SMALL


class Handler(BaseHTTPRequestHandler):
    """One request. The hub is the server's."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        return hub

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_PUT(self) -> None:
        self.answer()

    def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"} | (
            {"X-Error-Code": code} if code else {}
        )
        self.send(status, json.dumps({"error": message}).encode(), headers)

    @property
    def who(self) -> str | None:
        """Who asks; None for nobody, "?" for a token that is not known."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return TOKENS.get(token, "?") if token else None

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self.chunked()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.who == "?":
            return self.refuse(401, "Invalid credentials in Authorization header")
        routes = {
            r"PUT /lfs/([0-9a-f]{64})": self.store,
            r"POST /api/validate-yaml": lambda: self.json({"errors": [], "warnings": []}),
            r"POST /api/repos/create": lambda: self.create(json.loads(body)),
            r"POST /(\w+/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"POST /api/(\w+)/([^/]+/[^/]+)/preupload/[^/]+": self.preupload,
            r"POST /api/(\w+)/([^/]+/[^/]+)/commit/[^/]+": self.commit,
            r"POST /api/(\w+)/([^/]+/[^/]+)/paths-info/([^/]+)": self.paths_info,
            r"GET /api/(\w+)/([^/]+/[^/]+)/tree/([^/]+)/?(.*)": self.tree,
            r"GET /api/(\w+)/([^/]+/[^/]+?)(?:/revision/([^/]+))?": self.info,
            r"(?:GET|HEAD) /(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)": self.resolve,
        }
        for pattern, act in routes.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                self.body, self.found = body, [group or "" for group in found.groups()]
                return act()
        return self.refuse(404, f"no such page: {path}")

    def chunked(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    # ---- who may see and write what ----------------------------------------------------------------------------------

    def repository(self, kind: str, name: str) -> Repository | None:
        """As the hub has it, it does not tell what is missing from what one may not see."""
        found = self.hub.repositories.get(f"{kind}/{name}")
        if found is None or (found.private and self.who != name.partition("/")[0]):
            self.refuse(404 if self.who else 401, "Repository not found", "RepoNotFound")
            return None
        return found

    def files(self, repository: Repository, revision: str) -> tuple[str, Files] | None:
        sha = repository.head if revision in ("", "main", "HEAD") else revision
        sha = next((known for known in repository.commits if known.startswith(sha)), sha)
        if sha not in repository.commits:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return sha, repository.commits[sha]

    def create(self, wanted: dict[str, Any]) -> None:
        if self.who is None:
            return self.refuse(401, "Invalid username or password.")
        owner = wanted.get("organization") or self.who
        if owner not in TOKENS.values() and owner != "writer":
            return self.refuse(404, f"no namespace {owner}")
        if self.who != "writer" or owner != self.who:
            return self.refuse(403, "You don't have the rights to create a model under this namespace")
        name = f"{owner}/{wanted['name']}"
        path = f"{wanted.get('type', 'model')}s/{name}"
        if path in self.hub.repositories:
            return self.json({"url": f"{self.hub.url}/{name}", "error": "You already created this repo"}, 409)
        self.hub.add(path, {".gitattributes": b""}, wanted.get("visibility") == "private")
        return self.json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    # ---- writing -----------------------------------------------------------------------------------------------------

    def preupload(self) -> None:
        files = json.loads(self.body)["files"]
        modes = {file["path"]: "lfs" if is_large(file["path"], file["size"]) else "regular" for file in files}
        self.json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            there = wanted["oid"] in self.hub.objects  # then there is nothing to do
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append(wanted if there else {**wanted, "actions": upload})
        self.json({"transfer": "basic", "objects": objects})

    def store(self) -> None:
        if hashlib.sha256(self.body).hexdigest() != self.found[0]:
            return self.refuse(400, "the content has another digest")
        self.hub.objects[self.found[0]] = self.body
        return self.send(200, b"", {})

    def commit(self) -> None:
        kind, name = self.found
        repository = self.repository(kind, name)
        if repository is None:
            return None
        files = dict(repository.files)
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        return self.json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    # ---- reading -----------------------------------------------------------------------------------------------------

    def info(self) -> None:
        kind, name, revision = self.found
        repository = self.repository(kind, name)
        found = repository and self.files(repository, revision)
        if repository and found:
            sha, files = found
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files.items()]
            self.json(
                {
                    "id": name,
                    "sha": sha,
                    "private": repository.private,
                    "siblings": siblings,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "lastModified": "2026-01-01T00:00:00.000Z",
                }
            )

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}}
        return {"type": "file", "path": path, "size": len(content), "oid": oid} | (
            large if is_large(path, len(content)) else {}
        )

    def tree(self) -> None:
        kind, name, revision, folder = self.found
        repository = self.repository(kind, name)
        found = repository and self.files(repository, revision)
        if not found:
            return
        start = f"{folder.rstrip('/')}/" if folder else ""
        inside = {path: content for path, content in found[1].items() if path.startswith(start)}
        if folder and not inside:
            return self.refuse(404, f"{folder} does not exist", "EntryNotFound")
        folders = {start + path[len(start) :].split("/")[0] for path in inside if "/" in path[len(start) :]}
        recursive = "recursive=true" in self.path.lower() or "recursive=1" in self.path
        files = [self.entry(p, c) for p, c in inside.items() if recursive or "/" not in p[len(start) :]]
        self.json([*({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders), *files])

    def paths_info(self) -> None:
        kind, name, revision = self.found
        repository = self.repository(kind, name)
        found = repository and self.files(repository, revision)
        if found:
            wanted = json.loads(self.body)["paths"] if self.body.startswith(b"{") else []
            self.json([self.entry(path, found[1][path]) for path in wanted if path in found[1]])

    def resolve(self) -> None:
        kind, name, revision, path = self.found
        repository = self.repository(kind.rstrip("/") or "models", name)
        found = repository and self.files(repository, revision)
        if not found:
            return
        sha, files = found
        if path not in files:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        entry = self.entry(path, files[path])
        tag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self.send(200, files[path], {"ETag": f'"{tag}"', "X-Repo-Commit": sha, "Accept-Ranges": "none"})


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that serves inside the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
