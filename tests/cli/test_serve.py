"""`luthier serve` as a person starts it, asked by OpenAI's own client."""

import json
import os
import signal
import subprocess
import sys

import pytest

from llamacpp.conftest import speaking

pytest.importorskip("xllamacpp", reason="pip install 'luthier[serve]'")
openai = pytest.importorskip("openai", reason="pip install openai")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """Two names over one tiny model, on a free port, with a key."""
    folder = tmp_path_factory.mktemp("serve")
    file = speaking(folder / "m.gguf")
    (folder / "runs").mkdir()
    words = ["serve", f"first={file}", f"second={file}", "--port", "0", "--slots", "2", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "luthier", *words],
        stdout=subprocess.PIPE,
        # As a pipe is for most people: nothing comes through before it is flushed.
        env={
            **os.environ,
            "LUTHIER_API_KEY": "a key",
            "PYTHONUNBUFFERED": "",
            "LUTHIER_RUNS": str(folder / "runs"),
        },
        text=True,
    ) as child:
        assert child.stdout is not None
        text = ""
        while not text.rstrip().endswith("\n}"):
            line = child.stdout.readline()
            assert line, f"ended before it served: {text}"
            text += line
        yield child, {**json.loads(text), "folder": folder}
        if child.poll() is None:
            child.kill()


@pytest.fixture
def client(started):
    return openai.OpenAI(base_url=started[1]["url"], api_key="a key", max_retries=0)


HELLO = [{"role": "user", "content": "hello"}]


def test_the_client_chats_streams_and_is_told_its_mistakes(client, started):
    assert [model.id for model in client.models.list()] == ["first", "second"]
    settings = {"model": "first", "messages": HELLO, "max_tokens": 6, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**settings)
    pieces = [
        event.choices[0].delta.content or ""
        for event in client.chat.completions.create(**settings, stream=True)
        if event.choices
    ]
    assert "".join(pieces) == whole.choices[0].message.content
    text = client.completions.create(model="second", prompt="a", max_tokens=3)
    assert text.model == "second"
    with pytest.raises(openai.NotFoundError, match="first"):
        client.chat.completions.create(model="frist", messages=HELLO)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="first", messages=[{"role": "user", "content": 4}])
    with pytest.raises(openai.BadRequestError, match="does not answer"):
        client.embeddings.create(model="first", input="a")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=started[1]["url"], api_key="other", max_retries=0).models.list()


def test_it_is_listed_with_its_requests_while_it_runs(client, started, monkeypatch):
    from luthier.runs.servers import list_servers

    monkeypatch.setenv("LUTHIER_RUNS", str(started[1]["folder"] / "runs"))
    client.chat.completions.create(model="first", messages=HELLO, max_tokens=1)
    (server,) = list_servers()
    status = server.status
    assert (status.state, f"{status.url}/v1", server.key) == ("ready", started[1]["url"], "a key")
    assert [one.name for one in status.models] == ["first", "second"]
    assert server.requests()[0].path == "/v1/chat/completions"


def test_it_ends_well_when_asked_and_leaves_nobody_behind(started):
    import psutil

    child, facts = started
    children = psutil.Process(child.pid).children(recursive=True)
    assert len(children) == 2
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=20) == 0
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert not (facts["folder"] / "servers").exists()
