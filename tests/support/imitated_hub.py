"""As much of the Hugging Face hub's API as reading a data set takes, on loopback."""

import hashlib
import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(/.*)?)?")
_FILE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """A data set on the imitated hub.

    Attributes:
        versions: The files of each commit, the newest last.
        tags: Names of commits.
        opened_by: The token that opens it; None if it is not gated.
        status: What every request for it is answered with, if that is an error.
        unlisted: Commits whose files are not listed, as if the hub broke off.
        gone: Whether every request for it is hung up on.
    """

    versions: Mapping[str, Mapping[str, bytes]]
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    opened_by: str | None = None
    status: int | None = None
    unlisted: frozenset[str] = frozenset()
    gone: bool = False

    def commit(self, revision: str) -> str | None:
        if revision in self.versions:
            return revision
        return [*self.versions][-1] if revision == "main" else self.tags.get(revision)


@dataclass
class ImitatedHub:
    """The hub while it runs.

    Attributes:
        repositories: Data sets by owner and name.
        url: Its address.
        asked: Method and path of all requests so far.
    """

    repositories: Mapping[str, Repository]
    url: str = ""
    asked: list[str] = field(default_factory=list[str])

    def fetched(self) -> set[str]:
        """Names of the files that were read, or a piece of them."""
        gets = (line.removeprefix("GET ") for line in self.asked if line.startswith("GET "))
        return {found[3] for path in gets if (found := _FILE.fullmatch(path))}


@contextmanager
def imitated_hub(repositories: Mapping[str, Repository]) -> Generator[ImitatedHub]:
    """A hub with these data sets while it is needed."""
    hub = ImitatedHub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: ImitatedHub
    protocol_version = "HTTP/1.1"
    timeout = 5  # a connection that is kept open must not keep the server from ending

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if found := _API.fullmatch(path):
            self._api(found[1], found[2], (found[3] or "").strip("/"), body)
        elif found := _FILE.fullmatch(path):
            self._file(found[1], found[2], found[3])
        else:
            self._refuse(404, "EntryNotFound")

    do_HEAD = do_POST = do_GET  # noqa: N815  # the names that the base class looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def _api(self, name: str, what: str | None, rest: str, body: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        if what == "auth-check":
            if self._may_read(repository):
                self._send(200, b"{}")
            return
        if what == "revision":
            revision, below = rest, ""
        else:
            revision, _, below = rest.partition("/")
        commit = repository.commit(revision or "main")
        if commit is None:
            self._refuse(404, "RevisionNotFound")
            return
        files = repository.versions[commit]
        match what:
            case "tree" if commit in repository.unlisted:
                self._refuse(400, None)
            case "tree":
                self._send_json(_listed(files, below))
            case "paths-info":
                self._send_json([_entry(p, files[p]) for p in parse_qs(body)["paths"]])
            case _:
                gated = "manual" if repository.opened_by else False
                siblings = [{"rfilename": path} for path in files]
                about = {"id": name, "sha": commit, "gated": gated, "siblings": siblings}
                self._send_json({**about, "private": False, "tags": []})

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None or not self._may_read(repository):
            return
        commit = repository.commit(revision)
        data = repository.versions[commit].get(path) if commit else None
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": str(commit)}
        first, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self._send(status, data, **headers)

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            # What the hub answers to who is not logged in, as it may be private.
            self._refuse(401, "RepoNotFound")
            return None
        if repository.gone:
            self.close_connection = True
            return None
        if repository.status:
            self._refuse(repository.status, None)
            return None
        return repository

    def _may_read(self, repository: Repository) -> bool:
        given = self.headers.get("Authorization")
        if repository.opened_by in (None, (given or "").removeprefix("Bearer ")):
            return True
        self._refuse(403 if given else 401, "GatedRepo")
        return False

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, b'{"error": "no"}', **({"X-Error-Code": code} if code else {}))

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _listed(files: Mapping[str, bytes], folder: str) -> list[dict[str, Any]]:
    """What lies in a folder, without what lies below."""
    before = f"{folder}/" if folder else ""
    below = {path.removeprefix(before): path for path in files if path.startswith(before)}
    folders = {rest.partition("/")[0] for rest in below if "/" in rest}
    here = [_entry(path, files[path]) for rest, path in below.items() if "/" not in rest]
    return here + [
        {"type": "directory", "path": before + name, "oid": "0" * 40} for name in sorted(folders)
    ]


def _entry(path: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "size": len(data), "oid": oid}
