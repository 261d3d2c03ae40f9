"""A small Hugging Face hub on loopback: the routes that snapshot_download uses, and the faults of a network.

Weights are served by another host, as the hub does: /resolve answers with a redirect to it.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class Request(NamedTuple):
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repository:
    """Commits → their files; branches and tags → commits. With `token`, only that one may read it."""

    commits: dict[str, Files] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False


class Hub:
    """The repositories, and every request. `drop_at` ends connections after so many bytes of a file."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.drop_at: int | None = None
        self.drops = 0  # connections that are still dropped
        self.half_sent = threading.Event()
        self.go_on: threading.Event | None = None  # where set, a file's second half waits for it
        self.url = ""

    def push(self, name: str, files: Files | Path, branch: str = "main") -> str:
        """Make a commit with these files, or those of a directory; its hash."""
        if isinstance(files, Path):
            directory = files
            paths = [path for path in directory.rglob("*") if path.is_file()]
            files = {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault(name, Repository())
        commit = hashlib.sha1(f"{name} {branch} {len(repository.commits)}".encode()).hexdigest()
        repository.commits[commit] = files
        repository.revisions[branch] = commit
        return commit

    def fetched(self) -> list[str]:
        """The names of the files whose bytes were asked for, in order, since the last call."""
        found = [
            r.path.rpartition("/")[2] for r in self.requests if r.method == "GET" and "/api/" not in r.path
        ]
        self.requests.clear()
        return found


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """A client that has gone is part of a test."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range"), token))
        if path.startswith("/storage/"):
            return self._send_file(self._stored(path.split("/")[2]))
        found = re.fullmatch(r"(?:/api/models)?/([^/]+/[^/]+)(?:/(revision|tree|resolve)/(.+))?", path)
        repository = self.hub.repositories.get(found[1]) if found else None
        if found is None or repository is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        if repository.token and token != repository.token:
            if token is None:
                return self._refuse(401, "RepoNotFound", "Invalid username or password.")
            return self._refuse(401, "", "Invalid credentials in Authorization header")
        if repository.gated and token != "member":
            return self._refuse(403, "GatedRepo", "Access to this model is restricted")
        return self._answer(repository, found[1], found[2] or "revision", found[3] or "main")

    def _answer(self, repository: Repository, name: str, what: str, rest: str) -> None:
        named, _, file = rest.partition("/") if what == "resolve" else (rest, "", "")
        commit = repository.revisions.get(named, named)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound", "Invalid rev id")
        files = repository.commits[commit]
        if what == "revision":
            return self._send_json({"id": name, "modelId": name, "sha": commit, "siblings": []})
        if what == "tree":
            return self._send_json([_entry(path, data) for path, data in files.items()])
        if file not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(files[file]).hexdigest()
        about = {"X-Repo-Commit": commit, "ETag": f'"{etag}"'}
        if not file.endswith(".safetensors"):
            return self._send_file(files[file], about)
        port = self.server.server_address[1]
        linked = {
            "Location": f"http://localhost:{port}/storage/{etag}/{file}",
            "X-Linked-ETag": f'"{etag}"',
            "X-Linked-Size": str(len(files[file])),
        }
        return self._send(302, b"", about | linked)

    def _stored(self, digest: str) -> bytes:
        commits = (files for each in self.hub.repositories.values() for files in each.commits.values())
        return next(
            data for files in commits for data in files.values() if hashlib.sha256(data).hexdigest() == digest
        )

    def _send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        begin = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        extra = {"Accept-Ranges": "bytes", **(headers or {})}
        if begin:
            extra["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        self._send(206 if begin else 200, data[begin:], extra)

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub, stored = self.hub, "/storage/" in self.path
        if stored and hub.drops and hub.drop_at is not None:
            hub.drops -= 1
            self.wfile.write(body[: hub.drop_at])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif stored and hub.go_on is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            hub.half_sent.set()
            hub.go_on.wait(60)
            self.close_connection = True
        else:
            self.wfile.write(body)


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """The hub, answering at `hub.url`."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        if hub.go_on is not None:
            hub.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
