"""Servers outlive whoever starts them, say how they are, and end with their models."""

import json
import time

import httpx2
import psutil
import pytest

from llamacpp.conftest import speaking
from luthier.errors import UsageError
from luthier.runs.process import alive, identity
from luthier.runs.servers import (
    NOTES_BYTES,
    ServerDirectory,
    find_server,
    forget_server,
    list_servers,
    make_server,
    start_server,
    stop_server,
)
from luthier.schema.server import RequestNote, ServerWish

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_SERVERS", str(tmp_path / "servers"))
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def file(tmp_path):
    return speaking(tmp_path / "some-F16.gguf")


def wait_for(server, *states, seconds=60):
    until = time.monotonic() + seconds
    while (status := server.status).state not in states:
        assert time.monotonic() < until, f"{status}\n{server.log_tail()}"
        time.sleep(0.05)
    return status


def test_a_server_answers_with_its_key_notes_requests_and_ends(file):
    server = start_server(ServerWish(models=(f"m={file}",), slots=1, context=64))
    status = wait_for(server, "ready", "failed")
    assert status.state == "ready", server.log_tail()
    assert (server.path / "key").stat().st_mode & 0o077 == 0
    assert [one.name for one in status.models] == ["m"]
    assert status.models[0].plan.context == 64
    assert server.memory() > 10_000_000
    body = {"model": "m", "prompt": "a", "max_tokens": 2}
    with httpx2.Client(base_url=status.url, trust_env=False) as http:
        assert http.post("/v1/completions", json=body).status_code == 401
        bearer = {"authorization": f"Bearer {server.key}"}
        answer = http.post("/v1/completions", json=body, headers=bearer)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-luthier-weights"] == status.models[0].weights
    assert answer.headers["x-luthier-adapter"] == "none"
    assert [(n.model, n.path, n.status) for n in server.requests()] == [("m", "/v1/completions", 200)]
    children = psutil.Process(status.worker.pid).children(recursive=True)
    with pytest.raises(UsageError, match="still running"):
        forget_server(server)
    stop_server(server)
    assert server.status.state == "stopped"
    assert not alive(status.worker)
    assert not [one for one in children if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    forget_server(server)
    assert list_servers() == []


def test_nobody_asking_ends_a_server_of_a_comparison(file):
    server = start_server(ServerWish(models=(f"m={file}",), slots=1, context=64, idle=0.5))
    assert wait_for(server, "stopped", "failed").state == "stopped"


def test_what_cannot_be_served_fails_with_its_reason(tmp_path):
    server = start_server(ServerWish(models=("no-such-run",)))
    status = wait_for(server, "failed", "ready")
    assert "no-such-run" in status.failure.message
    assert status.failure.kind == "UsageError"


def test_a_server_whose_process_is_gone_is_lost():
    server = make_server(ServerWish(models=("a",)))
    gone = identity().model_copy(update={"started": 1.0})
    server.set_status(server.status.model_copy(update={"state": "ready", "worker": gone}))
    assert server.status.state == "lost"
    assert json.loads((server.path / "status.json").read_text())["state"] == "lost"
    assert server.memory() is None


def test_names_that_are_none_are_refused():
    made = make_server(ServerWish(models=("x=some.gguf",)))
    assert find_server(made.id).path == made.path
    assert made.id.startswith("some-")
    for name in ("..", "../x", "nothing", f"{made.id}/../{made.id}"):
        with pytest.raises(UsageError):
            find_server(name)


def test_the_log_of_requests_stays_small_and_the_last_are_read_first():
    server = ServerDirectory(make_server(ServerWish()).path)
    for i in range(60):
        server.note(RequestNote(at=i, model="m", path="/v1/x", status=200, seconds=0.1))
    assert [note.at for note in server.requests(3)] == [59, 58, 57]
    with (server.path / "requests.jsonl").open("ab") as file:
        file.write(b" " * NOTES_BYTES)
    server.note(RequestNote(at=99, model="m", path="/v1/x", status=200, seconds=0.1))
    assert [note.at for note in server.requests()] == [99]
    assert (server.path / "requests.1.jsonl").is_file()
