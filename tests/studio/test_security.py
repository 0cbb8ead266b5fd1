"""Who gets in, from where, with what; and what every answer says."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.websockets import WebSocketDisconnect

from luthier.errors import FileProblem, UsageError
from luthier.studio.access import LOGIN_SECONDS, Access
from luthier.studio.listen import login_link, settings_for
from luthier.studio.settings import StudioSettings
from studio_case import LIVE, ORIGIN, studio


def test_a_stranger_is_sent_to_the_login_page(tmp_path: Path) -> None:
    with studio(tmp_path, logged_in=False) as client:
        answer = client.get("/", headers={"accept": "text/html"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/")
        refused = client.get("/api/v1/system")
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["code"] == "not-logged-in"
        assert client.get("/login").status_code == 200


def test_the_token_is_private_and_kept(tmp_path: Path) -> None:
    access = Access(tmp_path / "home")
    token = access.token()
    assert len(token) >= 43
    assert access.token_file.stat().st_mode & 0o777 == 0o600
    assert access.token() == token
    access.token_file.chmod(0o644)
    with pytest.raises(FileProblem, match="others may read"):
        access.token()


def test_a_link_logs_in_once(tmp_path: Path) -> None:
    access = Access(tmp_path / "studio")
    code = login_link(StudioSettings(home=access.home)).partition("#t=")[2]
    with studio(tmp_path, logged_in=False) as client:
        answer = client.post("/api/v1/login", json={"token": code})
        assert answer.status_code == 200
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert client.get("/").status_code == 200
        assert (
            client.post("/api/v1/login", json={"token": code}, headers={"origin": ORIGIN}).status_code == 401
        )


def test_a_link_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.studio.access as module

    access = Access(tmp_path)
    code = access.login_code()
    now = module.time.time()
    monkeypatch.setattr(module.time, "time", lambda: now + LOGIN_SECONDS + 1)
    assert access.login(code) is None


def test_sessions_outlive_a_restart_and_end_with_the_token(tmp_path: Path) -> None:
    session = Access(tmp_path).login(Access(tmp_path).token())
    assert session is not None
    assert Access(tmp_path).is_session(session)
    assert not Access(tmp_path).is_session(session[:-2] + "xx")
    Access(tmp_path).new_token()
    assert not Access(tmp_path).is_session(session)


def test_wrong_tokens_are_refused_and_soon_slowed(tmp_path: Path) -> None:
    with studio(tmp_path, logged_in=False) as client:
        assert client.get("/api/v1/system", headers={"authorization": "Bearer nonsense"}).status_code == 401
        statuses = [client.post("/api/v1/login", json={"token": "no"}).status_code for _ in range(12)]
        assert statuses[0] == 401
        assert statuses[-1] == 429


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:7860", "", "[bad"])
def test_another_host_name_is_refused(tmp_path: Path, host: str) -> None:
    with studio(tmp_path) as client:
        assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": ORIGIN, "sec-fetch-site": "cross-site"},
        {"origin": ORIGIN, "sec-fetch-site": "same-site"},
    ],
)
def test_a_foreign_page_changes_nothing(tmp_path: Path, headers: dict[str, str]) -> None:
    with studio(tmp_path) as client:
        answer = client.post("/api/v1/logout", headers=headers)
        assert answer.status_code == 403
        assert answer.json()["code"] == "foreign-origin"


def test_a_session_without_an_origin_changes_nothing(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        del client.headers["origin"]
        assert client.post("/api/v1/logout").status_code == 403
        token = Access(tmp_path / "studio").token()
        bearer = {"authorization": f"Bearer {token}"}
        client.cookies.clear()
        assert client.post("/api/v1/logout", headers=bearer).status_code == 200


def test_a_foreign_page_gets_no_live_updates(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        with client.websocket_connect(LIVE):
            pass
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(LIVE, headers={"origin": "http://evil.example"}),
        ):
            pass
        client.cookies.clear()
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(LIVE):
            pass


def test_a_key_for_inference_does_nothing_else(tmp_path: Path) -> None:
    key = Access(tmp_path / "studio").add_key("notebook", "infer")
    with studio(tmp_path, logged_in=False) as client:
        answer = client.get("/api/v1/system", headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "wrong-scope")
    assert key not in (tmp_path / "studio" / "keys.json").read_text()
    assert (tmp_path / "studio" / "keys.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["/", "/login", "/api/v1/system", "/static/studio.css", "/nowhere"])
def test_every_answer_is_locked_down(tmp_path: Path, path: str) -> None:
    with studio(tmp_path) as client:
        headers = client.get(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path", ["/static/../access.py", "/static/..%2faccess.py", "/static/%2e%2e/%2e%2e/api.py"]
)
def test_static_files_stay_in_their_folder(tmp_path: Path, path: str) -> None:
    with studio(tmp_path) as client:
        assert client.get(path).status_code == 404


def test_the_login_page_goes_nowhere_else(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        for target in ("https://evil.example", "//evil.example", "/\\evil.example"):
            assert 'data-next="/"' in client.get("/login", params={"next": target}).text
        assert 'data-next="/runs?q=a"' in client.get("/login", params={"next": "/runs?q=a"}).text


def test_listening_beyond_the_machine_is_refused_unless_asked_for() -> None:
    with pytest.raises(UsageError, match="in the clear"):
        settings_for("0.0.0.0", 0)
    with pytest.raises(UsageError, match="does not know its name"):
        settings_for("0.0.0.0", 0, insecure=True)
    assert "studio.lan" in settings_for("0.0.0.0", 0, insecure=True, names=("studio.lan",)).hosts


def test_a_failure_is_a_page_for_people_and_a_document_for_programs(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        page = client.get("/nowhere", headers={"accept": "text/html"})
        assert (page.status_code, "nothing at /nowhere" in page.text) == (404, True)
        document = client.get("/api/v1/nowhere").json()
        assert document["code"] == "not-found"
        assert document["status"] == 404
        wrong = client.post("/api/v1/login", json={"tokn": 1}).json()
        assert wrong["code"] == "invalid-request"
