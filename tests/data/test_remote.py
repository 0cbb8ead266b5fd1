"""Data sets of the Hub, from a Hub of our own on the loopback: pinned, measured, and offline in words."""

# ruff: noqa: E501 - answers stand in one line; the server names its methods
from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from luthier.data.remote import parse_name
from luthier.errors import RecipeError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROWS = "".join(
    json.dumps({"prompt": f"Question {n}?", "completion": f"Answer {n}."}) + "\n" for n in range(12)
)
FILES = {
    "README.md": "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: one/train.jsonl\n"
    "  - split: test\n    path: one/test.jsonl\n- config_name: two\n  data_files:\n  - split: train\n"
    "    path: two.jsonl\n---\n# Questions\n",
    "one/train.jsonl": ROWS,
    "one/test.jsonl": ROWS[: ROWS.index("Question 3") - 12],
    "two.jsonl": ROWS,
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(body)

    def answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/datasets/some/questions/resolve/"):
            return self.content(path.split("/", 6)[-1])
        parts = path.removeprefix("/api/datasets/some/questions").strip("/").split("/")
        if not path.startswith("/api/datasets/some/questions"):
            return self.send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        entries = [
            {"type": "file", "path": name, "size": len(text), "oid": f"{number:040x}"}
            for number, (name, text) in enumerate(FILES.items())
        ]
        if parts[0] == "tree":
            under = "/".join(parts[2:])
            inside = [one for one in entries if one["path"].startswith(under)]
            folders = [{"type": "directory", "path": "one", "oid": "f" * 40}] if not under else []
            return self.send(200, inside + folders)
        if parts[0] == "paths-info":
            asked = json.loads(body)["paths"] if body.startswith(b"{") else []
            folder = [{"type": "directory", "path": "one", "oid": "f" * 40}] if "one" in asked else []
            return self.send(200, [one for one in entries if one["path"] in asked] + folder)
        if parts[0] in ("", "revision") and (len(parts) < 2 or parts[1] in ("main", COMMIT)):
            siblings = [{"rfilename": name} for name in FILES]
            return self.send(
                200,
                {"id": "some/questions", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []},
            )
        return self.send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})

    def content(self, name: str) -> None:
        if name not in FILES:
            return self.send(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        text = FILES[name].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("ETag", f'"{abs(hash(text)):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text)
        return None

    def send(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, said in (headers or {}).items():
            self.send_header(name, said)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(code: str, home: Path, address: str, **more: str) -> dict:
    """Run code in a process of its own: the library reads its settings once, when it is imported."""
    env = {
        **os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5", **more,
    }  # fmt: skip
    before = (
        "import json, sys\nfrom pathlib import Path\nfrom luthier.errors import LuthierError\n"
        "from luthier.data.read import read_rows\nfrom luthier.data.remote import fetch, pin\n"
        "def rows(name):\n    return [row.value for row in read_rows((name,), base=Path('/'))]\n"
        "def told(name):\n    try:\n        fetch(name)\n    except LuthierError as error:\n"
        "        return [type(error).__name__, error.message, error.hint]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{before}\nprint('\\n' + json.dumps({code}))"],
        env=env, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_split_is_read_pinned_and_found_again_offline(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    online = """{
        "rows": rows("hub:some/questions[one]/train"), "test": rows("hub:some/questions[one]/test"),
        "note": fetch("hub:some/questions[one]/train").note,
        "pinned": str(fetch("hub:some/questions[one]/test").pinned),
        "config": told("hub:some/questions"), "near": told("hub:some/questions[on]/train"),
        "split": told("hub:some/questions[one]/tset"), "missing": told("hub:some/nothing"),
    }"""
    found = ask(online, tmp_path, hub)
    assert found["rows"] == [json.loads(line) for line in ROWS.splitlines()]
    assert found["test"] == found["rows"][:3]
    assert "12 rows" in found["note"]
    assert COMMIT[:12] in found["note"]
    assert found["pinned"] == f"hub:some/questions@{COMMIT}[one]/test"
    assert found["config"][0] == found["near"][0] == found["split"][0] == "RecipeError"
    assert "one, two" in found["config"][2]
    assert "did you mean one" in found["near"][2]
    assert "did you mean test" in found["split"][2]
    assert found["missing"][0] == "FileProblem"
    nobody = "http://127.0.0.1:9"
    offline = """{
        "rows": rows("hub:some/questions[one]/train"), "note": fetch("hub:some/questions[one]/train").note,
        "never": told("hub:some/other"),
    }"""
    again = ask(offline, tmp_path, nobody)
    assert again["rows"] == found["rows"]
    assert "the copy on disk" in again["note"]
    assert again["never"][0] == "Unreachable"
    assert "local files never need the network" in again["never"][2]


def test_names_of_the_hub() -> None:
    for text, parts in {
        "hub:squad": ("squad", None, None, "train"),
        "hub:a/b": ("a/b", None, None, "train"),
        "hub:a/b/test": ("a/b", None, None, "test"),
        "hub:a/b[c]/test": ("a/b", None, "c", "test"),
        "hub:a/b@abc[c]": ("a/b", "abc", "c", "train"),
    }.items():
        found = parse_name(text)
        assert (found.name, found.revision, found.config, found.split) == parts
        assert parse_name(str(found)) == found
    for wrong in ("hub:", "hub:a/b/c/d", "hub:a[", "hub:a/b/train[:10%]"):
        with pytest.raises(RecipeError, match="names no data set"):
            parse_name(wrong)
