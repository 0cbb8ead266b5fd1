"""Serving from the studio: priced before, really answering, outliving the studio, its key kept to itself."""

import os
import time

import httpx2
import pytest

from luthier.runs.directory import RunDirectory
from luthier.runs.process import alive
from luthier.runs.servers import find_server, list_servers, stop_server
from luthier.schema.server import ServedModel
from luthier.studio.services.serving import snippets
from runs.test_deploying import finished
from studio_case import studio

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDirectory:
    """A finished chat run with one tiny GGUF file."""
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    for name in ("SERVERS", "REGISTRY"):
        monkeypatch.setenv(f"LUTHIER_{name}", str(tmp_path / name.lower()))
    yield finished(tmp_path)
    for server in list_servers():
        stop_server(server, patience=5)


def ready(server, seconds=60):
    until = time.monotonic() + seconds
    while (status := server.status).state == "loading":
        assert time.monotonic() < until, server.log_tail()
        time.sleep(0.05)
    assert status.state == "ready", f"{status}\n{server.log_tail()}"
    return status


def test_a_server_is_priced_started_asked_and_goes_on_without_the_studio(tmp_path, run):
    with studio(tmp_path) as client:
        page = client.get(f"/serve?model={run.id}&context=64&slots=2").text
        assert "2 × 64 tokens" in page
        form = {"model": run.id, "name": "tiny", "context": "64", "slots": "1"}
        made = client.post("/serve", data=form)
        assert made.status_code == 303
        server = find_server(made.headers["location"].rpartition("/")[2])
        status = ready(server)
    assert alive(status.worker)
    assert os.getsid(status.worker.pid) == status.worker.pid  # a session of its own
    with studio(tmp_path) as client:
        page = client.get(f"/serve/{server.id}").text
        assert f"base_url=&#34;{status.url}/v1&#34;" in page
        assert run.id in page
        body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
        bearer = {"authorization": f"Bearer {server.key}"}
        url = f"{status.url}/v1/chat/completions"
        answer = httpx2.post(url, json=body, headers=bearer, trust_env=False)
        assert answer.status_code == 200, answer.text
        page = client.get(f"/serve/{server.id}").text
        assert "/v1/chat/completions</td>" in page
        values = client.get(f"/api/v1/servers/{server.id}").json()
        assert [note["status"] for note in values["requests"]] == [200]
        assert server.key not in str(client.get("/api/v1/servers").json())
        assert client.delete(f"/api/v1/servers/{server.id}").status_code == 409
        assert client.post(f"/serve/{server.id}/stop").status_code == 303
        assert client.get(f"/api/v1/servers/{server.id}").json()["state"] == "stopped"
        assert client.post(f"/serve/{server.id}/forget").status_code == 303
        assert client.get(f"/serve/{server.id}").status_code == 404
    assert not alive(status.worker)


def test_what_does_not_fit_or_is_not_there_is_refused_before_a_process_is_started(tmp_path, run):
    with studio(tmp_path) as client:
        for data, status in (
            ({"model": run.id, "context": "99999999"}, 422),
            ({"model": run.id, "context": "much"}, 422),
            ({"model": run.id, "gguf": "Q9"}, 422),
            ({"model": "nobody"}, 404),
            ({"model": "../runs"}, 404),
            ({"model": "/etc/passwd"}, 404),
            ({"model": run.id, "name": "a=b"}, 422),
            ({}, 422),
        ):
            refused = client.post("/serve", data=data)
            assert refused.status_code == status, data
            assert 'role="alert"' in refused.text
        outside = client.post("/api/v1/servers", json={"models": ["/etc/passwd"]})
        assert outside.status_code == 404
        for path in ("/serve/..%5c..", "/serve/...", "/serve/nobody", "/serve/" + "a" * 300):
            assert client.get(path).status_code == 404, path
    assert list_servers() == []


@pytest.mark.parametrize("kind", ["chat", "embed", "rerank", "classify"])
def test_snippets_name_the_key_and_are_python(kind):
    found = snippets("http://127.0.0.1:1", ServedModel(name="m", kind=kind, weights="0"))
    assert "$LUTHIER_API_KEY" in found["curl"]
    compile(found["Python"], "snippet", "exec")
