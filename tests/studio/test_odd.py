"""Odd input to every operation of the API: refused in words, never a fault of the studio."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from luthier.runs.queue import Queue
from luthier.studio.app import create_app
from studio_case import made_run, settings_in, studio

ODD = ("nope", "%2e%2e%2fx", "a%00b", "%ff", "🙂", "~x", "~%F2%BA%97%B2", "x" * 300)
BODIES: tuple[bytes, ...] = (b"", b"null", b"[]", b"{}", b'{"kind": 1e999}', b"\xff\xfe", b'{"a": "\\ud800"}')
NUMBERS = ("-1", "0", "99999999999999999999", "x", "nan", "1e9")


def operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of every operation."""
    document = create_app(settings_in(Path("/nonexistent"))).openapi()
    return [
        (method.upper(), path, about)
        for path, methods in sorted(document["paths"].items())
        for method, about in methods.items()
    ]


@pytest.fixture(autouse=True)
def nobody_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No scheduler, and folders of this test alone."""
    monkeypatch.setattr(Queue, "wake", lambda self: None)
    for name in ("SERVERS", "REGISTRY", "CACHE", "RUNS"):
        monkeypatch.setenv(f"LUTHIER_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("kind", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_odd_input_is_refused_in_words(tmp_path: Path, kind: str) -> None:
    made_run(tmp_path, "done", steps=3)
    faults = []
    assert len(operations()) > 40
    with studio(tmp_path) as client:
        for method, path, about in operations():
            if method != kind or path.endswith("/logout"):
                continue
            names = [one["name"] for one in about.get("parameters", []) if one["in"] == "path"]
            queries = [one["name"] for one in about.get("parameters", []) if one["in"] == "query"]
            for odd, body in product(ODD if names else ("",), BODIES if method != "GET" else (b"",)):
                address = path
                for name in names:
                    address = address.replace("{" + name + "}", odd).replace("{" + name + ":path}", odd)
                answer = client.request(method, address, content=body)
                if answer.status_code >= 500:
                    faults.append((method, address, body, answer.text[:200]))
            for name, value in product(queries, NUMBERS):
                address = path
                for one in names:
                    address = address.replace("{" + one + "}", "done")
                answer = client.request(method, address, params={name: value})
                if answer.status_code >= 500:
                    faults.append((method, address, name, value, answer.text[:200]))
    assert faults == []
