"""What pages refer to is there, comes from here alone, and needs no exception from the policy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from luthier.studio.pages import PAGES
from luthier.studio.web import HERE, NAV, STATIC, templates
from studio_case import studio

TEMPLATES = sorted((HERE / "templates").glob("*.html"))
SCRIPTS = sorted(STATIC.glob("*.js"))
STYLES = sorted(STATIC.glob("*.css"))


def referred() -> set[str]:
    """Every static file that a template, a script or a style names."""
    found: set[str] = set()
    for path in TEMPLATES:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"asset\('([^']+)'\)", text))
        found |= set(re.findall(r'"/static/([^"?]+)', text))
    for path in SCRIPTS:
        found |= set(re.findall(r'(?:from|import\() ?"\./([^"]+)"', path.read_text(encoding="utf-8")))
    for path in STYLES:
        found |= set(re.findall(r'url\("([^"?]+)', path.read_text(encoding="utf-8")))
    return found


def test_every_file_that_is_referred_to_is_there() -> None:
    names = referred()
    assert {"studio.css", "vendor/htmx.min.js", "vendor/uPlot.iife.min.js", "core.js"} <= names
    brought = (STATIC / "vendor" / "versions.txt").is_file()
    own = {name for name in names if not name.startswith("vendor/")}
    assert [name for name in sorted(names if brought else own) if not (STATIC / name).is_file()] == []
    if not brought:
        pytest.skip("the studio's third-party files are not here: make assets")


@pytest.mark.parametrize("path", [*TEMPLATES, *SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_nothing_is_asked_of_anybody_else(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    loads = re.findall(r"""(?:src|href|action)=["'](?:https?:)?//[^"']+""", text)
    links = [one for one in loads if not one.startswith(("href", "action"))]
    assert links == []
    assert not re.findall(r"url\(['\"]?https?:", text)
    assert not re.findall(r"(?:fetch|import)\(['\"]https?:", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_needs_an_exception_from_the_policy(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.findall(r"\sstyle=", text)
    assert not re.findall(r"\son[a-z]+=", text)
    assert "hx-on" not in text
    assert not re.findall(r"<script(?![^>]*\ssrc=)[^>]*>", text)
    assert "|safe" not in text
    templates().get_template(path.name)  # compiles


def test_every_page_of_the_sidebar_opens(tmp_path: Path) -> None:
    assert {one.page for one in NAV} <= set(PAGES)
    with studio(tmp_path) as client:
        for one in NAV:
            answer = client.get(one.href, headers={"accept": "text/html"})
            assert answer.status_code == 200, one.href
            assert f'href="{one.href}" aria-current="page"' in answer.text


def test_pages_are_packed_and_streams_are_not(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        assert client.get("/models", headers={"accept": "text/html"}).headers["content-encoding"] == "gzip"
        assert client.get("/static/studio.css").headers["content-encoding"] == "gzip"
        assert "content-encoding" not in client.get("/api/v1/openapi.json").headers
