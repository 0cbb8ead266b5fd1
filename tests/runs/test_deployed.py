"""A deployment at work: started, asked, held to its file, stopped, removed."""

import pytest

from luthier.errors import UsageError
from luthier.runs.deployed import check, remove, running, start, stop
from luthier.runs.deploying import Wish, deploy, deployments_root, find_deployment
from runs.test_deploying import finished, quiet

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")


@pytest.fixture
def deployed(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("LUTHIER_SERVERS", str(tmp_path / "servers"))
    monkeypatch.setenv("LUTHIER_DEPLOYMENTS", str(tmp_path / "deployments"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    return deploy(finished(tmp_path), Wish("llama.cpp"), say=quiet)


def test_it_is_started_held_to_its_file_and_stopped(deployed):
    name = deployed.name
    assert deployed.parity is not None
    assert deployed.parity.prompts > 3
    with pytest.raises(UsageError, match="nothing answers"):
        check(name)
    with pytest.raises(UsageError, match="nothing runs"):
        stop(name)
    server = start(name)
    try:
        assert server.status.state == "ready"
        assert [one.name for one in server.status.models] == [name]
        with pytest.raises(UsageError, match="runs already"):
            start(name)
        found = check(name)
        assert found.prompts == deployed.parity.prompts
        assert find_deployment(name).parity == found
        # the fixture's tokenizer is not the file's: what is read otherwise is told, not passed over
        assert found.passed == (not found.problems)
        assert found.equal_token_ids == found.prompts or "the endpoint reads" in found.problems[0]
        assert "the server at http://127.0.0.1" in stop(name)
        assert running(find_deployment(name)) is None
    finally:
        if running(find_deployment(name)) is not None:
            stop(name)
    remove(name)
    assert not (deployments_root() / name).exists()
