"""The queue over the API and on its pages, and OpenAI's API over what is served."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from openai import NotFoundError, OpenAI

from luthier.runs.process import identity
from luthier.runs.queue import Queue
from luthier.runs.servers import make_server
from luthier.schema.run import Status
from luthier.schema.server import ServedModel, ServerStatus, ServerWish
from luthier.studio.access import Access
from studio_case import ORIGIN, made_run, studio

HTML = {"accept": "text/html"}


@pytest.fixture(autouse=True)
def nobody_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No scheduler, and servers of this test alone."""
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    monkeypatch.setenv("LUTHIER_SERVERS", str(tmp_path / "servers"))


def test_jobs_are_ordered_and_cancelled(tmp_path: Path) -> None:
    for name in "abc":
        made_run(tmp_path, name, steps=1, status=Status(state="stopped", step=1))
    with studio(tmp_path) as client:
        ids = {
            name: client.post("/api/v1/jobs", json={"kind": "resume", "run": name}).json()["id"]
            for name in "abc"
        }
        assert client.patch(f"/api/v1/jobs/{ids['c']}", json={"position": 0}).status_code == 200
        found = client.get("/api/v1/jobs").json()["jobs"]
        assert [one["run"] for one in found] == ["c", "a", "b"]
        page = client.get("/runs", headers=HTML).text
        assert page.index(f'id="job-{ids["c"]}"') < page.index(f'id="job-{ids["a"]}"')
        assert "Move b down" in page
        assert client.post(f"/api/v1/jobs/{ids['a']}/cancel").json()["state"] == "cancelled"
        again = client.post(f"/api/v1/jobs/{ids['a']}/cancel")
        assert (again.status_code, again.json()["code"]) == (409, "already-busy")
        assert client.get(f"/jobs/{ids['b']}").headers["location"] == "/runs/b"


def test_a_key_makes_a_request_happen_once(tmp_path: Path) -> None:
    made_run(tmp_path, "a", steps=1, status=Status(state="stopped", step=1))
    with studio(tmp_path) as client:
        headers = {"idempotency-key": "k1"}
        first = client.post("/api/v1/jobs", json={"kind": "resume", "run": "a"}, headers=headers)
        second = client.post("/api/v1/jobs", json={"kind": "resume", "run": "a"}, headers=headers)
        assert first.status_code == second.status_code == 202
        assert first.json()["id"] == second.json()["id"]
        third = client.post("/api/v1/jobs", json={"kind": "resume", "run": "a"})
        assert third.status_code == 409


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"kind": "train"}, 422),
        ({"kind": "train", "recipe_yaml": "[1, 2"}, 422),
        ({"kind": "train", "recipe": {}, "recipe_yaml": "a: 1"}, 422),
        ({"kind": "resume", "run": "nope"}, 422),
        ({"kind": "resume", "run": "done"}, 422),
        ({"kind": "evaluate", "run": "done"}, 422),
        ({"kind": "evaluate", "run": "done", "data": ["x.jsonl"]}, 422),
        ({"kind": "export", "run": "done"}, 422),
        ({"kind": "dance"}, 422),
        ({"kind": "train", "colour": 1}, 422),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, asked: dict[str, Any], status: int) -> None:
    made_run(tmp_path, "done", steps=1)
    with studio(tmp_path) as client:
        answer = client.post("/api/v1/jobs", json=asked)
        assert answer.status_code == status
        assert answer.json()["detail"]
        assert client.get("/api/v1/jobs/j0").status_code == 404


def test_a_recipe_that_cannot_be_prepared_says_why_on_its_page(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        text = "model: {id: a/b}\ndata: {train: x.jsonl}\nmethd: {}\n"
        job = client.post("/api/v1/jobs", json={"kind": "train", "recipe_yaml": text}).json()
        assert job["state"] == "preparing"
        until = time.monotonic() + 60
        while client.get(f"/api/v1/jobs/{job['id']}").json()["state"] != "failed":
            assert time.monotonic() < until
            time.sleep(0.2)
        assert "methd" in client.get(f"/jobs/{job['id']}", headers=HTML).text


class Backend(BaseHTTPRequestHandler):
    """A server of models that notes what it was asked and answers as llama.cpp does."""

    asked: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append((self.path, self.headers["authorization"], body))
        message = {"role": "assistant", "content": "hello"}
        if body.get("stream"):
            parts = [
                {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": message}]},
                {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {}}]},
            ]
            text = "".join(f"data: {json.dumps(part)}\n\n" for part in parts) + "data: [DONE]\n\n"
            self.answer(text.encode(), "text/event-stream")
        else:
            values = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
            self.answer(json.dumps(values).encode(), "application/json")

    def answer(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A model that is served; gives its server's key."""
    Backend.asked.clear()
    backend = HTTPServer(("127.0.0.1", 0), Backend)
    thread = threading.Thread(target=backend.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server = make_server(ServerWish(models=("tone=x",)))
    model = ServedModel(name="tone", kind="chat", weights="9f2c" * 16, facts={"run": "tone-1", "step": 600})
    url = f"http://127.0.0.1:{backend.server_address[1]}"
    server.set_status(ServerStatus(state="ready", worker=identity(), url=url, models=(model,), created=1.0))
    yield server.key
    backend.shutdown()
    backend.server_close()
    thread.join()


def test_openais_client_asks_what_is_served(tmp_path: Path, served: str) -> None:
    key = Access(tmp_path / "studio").add_key("notebook", "infer")
    with studio(tmp_path, logged_in=False) as client:
        client.headers.pop("accept")
        asking = OpenAI(base_url=f"{ORIGIN}/v1", api_key=key, http_client=client)  # type: ignore[arg-type]
        assert [one.id for one in asking.models.list()] == ["tone"]
        chat: Any = [{"role": "user", "content": "hi"}]
        answer = asking.chat.completions.create(model="run:tone@600", messages=chat)
        assert answer.choices[0].message.content == "hello"
        assert answer.system_fingerprint == "fp_" + "9f2c" * 4
        parts = list(asking.chat.completions.create(model="tone", messages=chat, stream=True))
        assert parts[0].choices[0].delta.content == "hello"
        assert parts[0].system_fingerprint == answer.system_fingerprint
        path, bearer, body = Backend.asked[0]
        assert (path, bearer, body["model"]) == ("/v1/chat/completions", f"Bearer {served}", "tone")
        with pytest.raises(NotFoundError, match="not served"):
            asking.chat.completions.create(model="run:tone@5", messages=chat)


@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b"{}", 400), (b'{"model": "x"}', 404)]
)
def test_odd_questions_get_openais_errors(tmp_path: Path, body: bytes, status: int) -> None:
    with studio(tmp_path) as client:
        answer = client.post("/v1/chat/completions", content=body)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"
        assert client.post("/v1/unheard", content=body).status_code == 404
