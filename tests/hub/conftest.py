"""A Hub of our own on the loopback: what huggingface_hub asks for, and the faults that happen."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_tests_only"


@dataclass
class Repo:
    """One repository: commit -> files; names point at commits."""

    commits: dict[str, dict[str, bytes]]
    refs: dict[str, str]
    gated: str | bool = False
    members: set[str] = field(default_factory=set)
    """Tokens whose account was given access."""
    card: dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeHub:
    """What tests set and look at."""

    address: str = ""
    cdn: str = ""
    """Another host name, as large files have on the real Hub."""
    repos: dict[str, Repo] = field(default_factory=dict)
    cut: dict[str, list[int]] = field(default_factory=dict)
    """File name -> how many bytes each next transfer delivers before the connection drops."""
    wrong: dict[str, bytes] = field(default_factory=dict)
    """File name -> content to serve instead of the right one."""
    status: int | None = None
    """Answer everything with this."""
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of all requests."""

    def add(self, model_id: str, files: dict[str, bytes], *, ref: str = "main", **more: Any) -> str:
        """Put a new commit into a repository and return its hash."""
        digest = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        repo = self.repos.setdefault(model_id, Repo({}, {}))
        repo.commits[digest] = files
        repo.refs[ref] = digest
        for name, value in more.items():
            setattr(repo, name, value)
        return digest

    def sent(self, name: str) -> list[str | None]:
        """The Range header of each GET of a file's content."""
        return [
            h.get("range")
            for m, p, h in self.asked
            if m == "GET" and p.startswith("/cdn/") and p.endswith(name)
        ]


def is_large(name: str, content: bytes) -> bool:
    return name.endswith((".safetensors", ".bin")) or len(content) > 10_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        query = parse_qs(urlsplit(self.path).query)
        self.hub.asked.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.status:
            return self.fail(self.hub.status)
        if path.startswith("/cdn/"):
            return self.content(path.removeprefix("/cdn/"))
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree|refs|auth-check)(?:/(.+))?)?", path)
        if api:
            return self.api(*api.groups(), query)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        return self.resolve(*file.groups()) if file else self.fail(404)

    def repo(self, model_id: str) -> Repo | None:
        repo = self.hub.repos.get(model_id)
        if repo is None:
            self.fail(401, "RepoNotFound")
        return repo

    def may(self, repo: Repo) -> bool:
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repo.gated and token not in repo.members:
            self.fail(403 if token else 401, "GatedRepo")
            return False
        return True

    def commit(self, repo: Repo, revision: str) -> str | None:
        digest = repo.refs.get(revision, revision)
        if digest not in repo.commits:
            self.fail(404, "RevisionNotFound")
            return None
        return digest

    def api(self, model_id: str, what: str | None, rest: str | None, query: dict[str, list[str]]) -> None:
        repo = self.repo(model_id)
        if repo is None:
            return None
        if what == "auth-check":
            return self.json({}) if self.may(repo) else None
        if what == "refs":
            names = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.refs.items()]
            return self.json({"branches": names, "tags": [], "converts": []})
        digest = self.commit(repo, rest or "main")
        if digest is None:
            return None
        files = repo.commits[digest]
        if what == "tree":
            return self.json(
                [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            )
        siblings = []
        for name, content in files.items():
            entry: dict[str, Any] = {"rfilename": name}
            if query.get("blobs"):
                entry |= {
                    "size": len(content),
                    "blobId": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
                }
                if is_large(name, content):
                    digest256 = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"size": len(content), "sha256": digest256, "pointerSize": 134}
            siblings.append(entry)
        tags = [f"license:{repo.card['license']}"] if "license" in repo.card else []
        return self.json(
            {
                "id": model_id,
                "sha": digest,
                "gated": repo.gated,
                "siblings": siblings,
                "cardData": repo.card,
                "tags": tags,
            }
        )

    def resolve(self, model_id: str, revision: str, name: str) -> None:
        repo = self.repo(model_id)
        if repo is None or not self.may(repo):
            return None
        digest = self.commit(repo, revision)
        if digest is None:
            return None
        content = repo.commits[digest].get(name)
        if content is None:
            return self.fail(404, "EntryNotFound")
        sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        headers = {"X-Repo-Commit": digest, "ETag": f'"{sha1}"'}
        if is_large(name, content):
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.hub.cdn}/cdn/{model_id}@{digest}/{name}"
            return self.reply(302, b"", headers)
        return self.reply(200, content, headers)

    def content(self, path: str) -> None:
        where, name = path.split("/", 2)[0] + "/" + path.split("/", 2)[1], path.split("/", 2)[2]
        model_id, digest = where.split("@")
        content = self.hub.wrong.get(name) or self.hub.repos[model_id].commits[digest][name]
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("range", "")) or [0, 0])[1])
        body = content[start:]
        headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.reply(206 if start else 200, body, headers, cut=self.hub.cut.get(name))

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def fail(self, status: int, code: str | None = None) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code} if code else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str], cut: list[int] | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.wfile.write(body[: cut.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running Hub, named by HF_ENDPOINT, with empty caches and no token."""
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": fake}))
    server.daemon_threads = True
    fake.address = f"http://127.0.0.1:{server.server_address[1]}"
    fake.cdn = f"http://localhost:{server.server_address[1]}"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", fake.address)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "luthier"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield fake
    server.shutdown()
    server.server_close()
    thread.join()
