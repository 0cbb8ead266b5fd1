"""Settings: secrets are written and never shown again."""

import pytest

from luthier.studio.services.secrets import set_token, token_file, token_state
from studio_case import studio

TOKEN = "hf_abcDEF0123456789"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_it_lies_where_the_hub_looks_for_it():
    from huggingface_hub import constants

    names = token_file().parts[-2:]
    assert names == ("hf", "token")
    assert constants.HF_TOKEN_PATH.endswith("token")


def test_the_token_is_written_for_its_owner_alone_and_never_shown(tmp_path):
    with studio(tmp_path) as client:
        assert "not set" in client.get("/settings").text
        token_file().parent.mkdir(parents=True)
        token_file().write_text("old")
        token_file().chmod(0o644)
        assert "Others may read the file" in client.get("/settings").text
        assert client.post("/settings/token", data={"token": f" {TOKEN}\n"}).status_code == 303
        assert token_file().read_text() == TOKEN
        assert token_file().stat().st_mode & 0o777 == 0o600
        page = client.get("/settings").text
        assert TOKEN not in page
        assert "Others may read" not in page
        assert client.post("/settings/token", data={"deed": "remove"}).status_code == 303
        assert not token_file().exists()
        refused = client.post("/settings/token", data={"token": "a b <script>"})
        assert refused.status_code == 422
        assert "a b" not in refused.text
        assert list(token_file().parent.iterdir()) == []


def test_an_environment_variable_is_named_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    set_token("hf_another12345")
    assert token_state().variable == "HF_TOKEN"
    with studio(tmp_path) as client:
        page = client.get("/settings").text
    assert "from HF_TOKEN" in page
    assert TOKEN not in page


def test_a_key_is_shown_once_and_taken_back(tmp_path):
    with studio(tmp_path) as client:
        made = client.post("/settings/keys", data={"name": "notebook", "scope": "infer"})
        secret = next(part for part in made.text.split(">") if part.startswith("lut-")).partition("<")[0]
        page = client.get("/settings").text
        assert "notebook" in page
        assert secret not in page
        assert client.get("/api/v1/system", headers={"authorization": f"Bearer {secret}"}).status_code == 403
        access = client.app.state.access
        assert client.post("/settings/keys", data={"remove": access.keys()[0].id}).status_code == 303
        assert access.keys() == []
        assert client.post("/settings/keys", data={"name": " "}).status_code == 422


def test_folders_and_versions_are_named(tmp_path):
    with studio(tmp_path) as client:
        page = client.get("/settings").text
    assert str(tmp_path / "runs") in page
    assert "LUTHIER_REGISTRY" in page
    assert "fastapi" in page
