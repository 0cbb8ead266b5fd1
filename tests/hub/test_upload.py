"""Folders go to a Hub of our own: created, committed in one go, large files through LFS."""

import base64
import hashlib
import json
import re

import pytest

from loopback import JsonHandler, listening
from luthier.errors import GatedModel, UsageError
from luthier.hub.upload import Upload, check_repo_id, reachable, send


class Taking(JsonHandler):
    """As much of the Hub's API as an upload needs."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer(200, {})

    def do_POST(self):
        raw = self.body()
        if self.server.refuse:
            return self.answer(403, {"error": "no"})
        if self.path == "/api/repos/create":
            asked = json.loads(raw)
            self.server.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            return self.answer(200, {"url": f"{self.server.address}/{name}", "name": name})
        if self.path.endswith("/api/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(raw)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".gguf") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for f in files
            ]
            return self.answer(200, {"files": modes})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = []
            for wanted in json.loads(raw)["objects"]:
                upload = {"upload": {"href": f"{self.server.address}/lfs/{wanted['oid']}"}}
                missing = wanted["oid"] not in self.server.blobs
                objects.append({**wanted, **({"actions": upload} if missing else {})})
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if re.search(r"/commit/main", self.path):
            self.server.commits.append([json.loads(line) for line in raw.splitlines()])
            return self.answer(
                200, {"commitUrl": f"{self.server.address}/o/n/commit/1", "commitOid": "1" * 40}
            )
        return self.answer(404, {})


@pytest.fixture
def taking(tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_tests_only")
    # read from the environment when huggingface_hub is imported, which another test may have done
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with listening(Taking, created=[], commits=[], blobs={}, refuse=False) as httpd:
        monkeypatch.setenv("HF_ENDPOINT", httpd.address)
        yield httpd


def folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("---\ntags: [luthier]\n---\n# n\n")
    (out / "m.gguf").write_bytes(b"GGUF" * 1000)
    (out / "secret.txt").write_text("stays here")
    files = tuple((name, (out / name).stat().st_size) for name in ("README.md", "m.gguf"))
    return Upload("o/n", "gguf", out, files)


# huggingface_hub sends large files in a way that its HTTP library no longer likes
@pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
def test_only_the_named_files_are_sent_and_large_ones_once(taking, tmp_path):
    upload = folder(tmp_path)
    assert reachable()
    assert send(upload, private=True, message="a run").endswith("/commit/1")
    send(upload, private=True, message="a run")
    assert [(c["name"], c["organization"]) for c in taking.created] == [("n", "o")] * 2
    # huggingface_hub 2 says it with another word than 1
    assert all(c.get("private") or c.get("visibility") == "private" for c in taking.created)
    digest = hashlib.sha256(b"GGUF" * 1000).hexdigest()
    assert list(taking.blobs) == [digest]
    header, *entries = taking.commits[0]
    assert header["value"]["summary"] == "a run"
    assert {e["key"]: e["value"]["path"] for e in entries} == {"file": "README.md", "lfsFile": "m.gguf"}
    plain = next(e["value"] for e in entries if e["key"] == "file")
    assert base64.b64decode(plain["content"]) == (upload.folder / "README.md").read_bytes()


def test_a_token_that_may_not_write(taking, tmp_path):
    taking.refuse = True
    with pytest.raises(GatedModel, match="refused access"):
        send(folder(tmp_path), private=True, message="m")


def test_names():
    assert check_repo_id("hub:owner/name.v1") == "owner/name.v1"
    for bad in ("name", "a/b/c", "hub:/x", "../x"):
        with pytest.raises(UsageError, match="not the id"):
            check_repo_id(bad)


def test_nobody_there(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert not reachable()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not reachable()
