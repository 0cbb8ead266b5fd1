"""The registry in the studio: versions, aliases, the way back, what differs."""

import pytest

from luthier.schema.results import Artifact
from studio_case import made_run, studio


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_REGISTRY", str(tmp_path / "registry"))
    for name, rate in (("first", 1e-4), ("second", 2e-4)):
        run = made_run(tmp_path, name, training={"learning_rate": rate})
        made = Artifact(kind="merged", path="artifacts/merged", bytes=10, sha256="0" * 64)
        run.save_stage("artifacts", "", [made.model_dump(mode="json")])
    made_run(tmp_path, "nothing")


def test_a_model_is_registered_promoted_rolled_back_and_forgotten(tmp_path):
    with studio(tmp_path) as client:

        def post(path, **data):
            return client.post(path, data=data)

        assert "Nothing is registered" in client.get("/registry").text
        for run in ("first", "second"):
            made = post("/registry", run=run, name="orders")
            assert (made.status_code, made.headers["location"]) == (303, "/registry/orders")
        assert post("/registry/orders/promote", version="1", alias="production").status_code == 303
        assert post("/registry/orders/promote", version="2", alias="production").status_code == 303
        page = client.get("/registry/orders?diff=1,2").text
        assert "Roll back to 1" in page
        assert "training.learning_rate" in page
        assert post("/registry/orders/forget", version="2").status_code == 422
        assert post("/registry/orders/rollback", alias="production").status_code == 303
        assert client.get("/api/v1/registry/orders").json()["aliases"] == {"production": 1}
        assert post("/registry/orders/rollback", alias="production").status_code == 422
        assert post("/registry/orders/forget", version="2").status_code == 303
        assert post("/registry/orders/unalias", alias="production").status_code == 303
        assert [v["version"] for v in client.get("/api/v1/registry/orders").json()["versions"]] == [1]


def test_what_cannot_be_is_refused_on_the_page(tmp_path):
    with studio(tmp_path) as client:
        for data, status in (
            ({"run": "nothing"}, 422),
            ({"run": "nobody"}, 404),
            ({"run": "first", "name": "no name"}, 422),
        ):
            answer = client.post("/registry", data=data)
            assert answer.status_code == status
            assert 'role="alert"' in answer.text
        client.post("/registry", data={"run": "first", "name": "orders"})
        assert client.post("/registry/orders/promote", data={"version": "9", "alias": "a"}).status_code == 422
        assert client.post("/registry/orders/promote", data={"version": "1", "alias": "1"}).status_code == 422
        assert client.post("/registry/orders/burn", data={"version": "1"}).status_code == 422
        assert client.get("/registry/..%5corders").status_code == 404
        assert client.get("/registry/orders?diff=1,99").status_code == 404
        for name in ("nobody", "n" * 300):
            assert client.get(f"/registry/{name}").status_code == 404
        assert client.post("/registry", data={"run": "first", "name": "n" * 300}).status_code == 422


def test_the_api_does_the_same(tmp_path):
    with studio(tmp_path) as client:
        for run in ("first", "second"):
            assert client.post("/api/v1/registry", json={"run": run, "name": "orders"}).status_code == 201
        url = "/api/v1/registry/orders/aliases/production"
        assert client.put(url, json={"version": 2}).json()["version"] == 2
        assert client.put(url, json={"version": 3}).status_code == 404
        assert client.put(url, json={}).status_code == 422
        assert client.put(url, json={"deed": "rollback"}).status_code == 422
        found = client.get("/api/v1/registry/orders/diff/1/2").json()["differences"]
        assert found["training.learning_rate"] == {"first": "0.0001", "second": "0.0002"}
        assert client.put(url, json={"deed": "drop"}).json()["version"] is None
        assert "path" not in client.get("/api/v1/registry").json()["models"][0]["versions"][0]
