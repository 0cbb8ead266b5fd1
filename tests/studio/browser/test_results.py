"""Results in Chromium: pages with something on them, a comparison by keyboard, a model that is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.runs import registry
from luthier.runs.servers import list_servers, stop_server
from runs.test_deploying import finished
from studio.browser.conftest import Server
from studio.test_evals import judge
from studio.test_sweeps import made
from studio_case import made_run

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")
pytestmark = pytest.mark.timeout(240)
AXE = Path(__file__).parents[3] / ".cache" / "axe" / "axe.min.js"
PAGES = (
    "/evals",
    "/evals/judged",
    "/evals/judged?only=improved&against=other",
    "/evals/judged/slices",
    "/sweeps",
    "/sweeps/orders-sweep",
    "/compare",
    "/exports",
    "/exports/{demo}",
    "/serve",
    "/registry",
    "/registry/orders",
    "/settings",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio over a judged run, a sweep, and a run with a tiny GGUF file that answers."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RUNS", "REGISTRY", "SERVERS"):
            patch.setenv(f"LUTHIER_{name}", str(folder / name.lower()))
        judge(made_run(folder, "judged"))
        made(folder)
        demo = finished(folder)
        registry.add(demo, name="orders")
        registry.promote("orders:1", "production")
        server = Server(folder)
        server.demo = demo.id  # type: ignore[attr-defined]
        server.start()
        yield server
        server.stop()
        for one in list_servers():
            stop_server(one, patience=5)


def barriers(page: Any) -> list[str]:
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [f"{one['id']}: {[node['html'][:160] for node in one['nodes'][:3]]}" for one in found]


def sideways(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.skipif(not AXE.is_file(), reason="make test-browser brings axe")
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_pages_with_something_on_them_have_no_barrier(opened: Any, server: Any, look: str) -> None:
    page = opened(theme="dark" if look == "dark" else "light", phone=look == "phone")
    for path in PAGES:
        page.goto(server.url + path.format(demo=server.demo))
        page.wait_for_timeout(150)
        assert barriers(page) == [], path
        assert sideways(page) <= 0, path


def test_a_model_answers_by_keyboard_alone_and_a_reload_loses_nothing(opened: Any, server: Any) -> None:
    page = opened()
    page.goto(f"{server.url}/compare")
    page.focus("#prompt")
    page.keyboard.type("a prompt <b>with</b> marks")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("#turns:not([data-stream])", timeout=120_000)
    assert page.locator("[data-weights]").inner_text().startswith("weights ")
    assert page.locator(".words").inner_text() == "a prompt <b>with</b> marks"
    assert "tokens/s" in page.locator("[data-meta]").inner_text()
    said = page.locator("[data-answer]").inner_text()
    page.reload()
    assert page.locator("[data-answer]").inner_text() == said
    # One more turn, and a reload in the middle of it: nothing is lost.
    page.focus("#prompt")
    page.keyboard.type("and again")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#turn-2")
    page.reload()
    page.wait_for_selector("#turns:not([data-stream])", timeout=120_000)
    assert page.locator("#turn-2 [data-weights]").inner_text().startswith("weights ")
    if AXE.is_file():
        assert barriers(page) == []


def test_a_model_is_priced_served_asked_and_stopped(opened: Any, server: Any) -> None:
    page = opened(theme="dark")
    page.goto(f"{server.url}/serve")
    page.fill("#context", "64")
    page.fill("#slots", "1")
    page.keyboard.press("Tab")
    page.wait_for_function("() => document.getElementById('price').textContent.includes('1 × 64 tokens')")
    page.focus("form[action='/serve'] button[type=submit]")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{server.url}/serve/*")
    page.wait_for_selector("textarea#prompt", timeout=120_000)
    assert "curl http://127.0.0.1:" in page.locator("pre.code").first.inner_text()
    if AXE.is_file():
        assert barriers(page) == []
    address = page.url
    page.fill("#prompt", "a")
    page.keyboard.press("Control+Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("#turns:not([data-stream])", timeout=120_000)
    assert page.locator(".error").count() == 0
    # The served model and the run's own file, side by side: not to be told apart until one is picked.
    page.goto(
        f"{server.url}/compare?side=gguf:{server.demo}:F16&side=server:{address.rpartition('/')[2]}:demo"
    )
    page.fill("#prompt", "a")
    page.check("input[name=blind]")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare/2*")
    page.wait_for_selector("form.pick-bar", timeout=120_000)
    heads = page.locator(".column h2").all_inner_texts()
    assert heads == ["Model A", "Model B"]
    assert page.locator("[data-weights]").count() == 0
    if AXE.is_file():
        assert barriers(page) == []
    page.focus("form.pick-bar button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=your pick")
    digests = {text.split(",")[0] for text in page.locator("[data-weights]").all_inner_texts()}
    assert len(digests) == 1, "both columns are the same file"
    assert page.locator(".column.picked h2").count() == 1
    page.goto(address)
    page.wait_for_selector("#log >> text=completions")
    page.click("text=Stop")
    page.wait_for_selector("text=Start again")
