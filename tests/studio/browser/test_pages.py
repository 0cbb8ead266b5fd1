"""Every page in Chromium: accessible, within the screen, light, and asking nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
AXE = ROOT / ".cache" / "axe" / "axe.min.js"
PAGES = (
    "/",
    "/models",
    "/advise",
    "/datasets",
    "/runs/new",
    "/runs",
    "/runs/diff?ids=done,stopped",
    "/runs/done",
    "/runs/done?tab=samples",
    "/runs/done?tab=checkpoints",
    "/runs/done?tab=config",
    "/runs/done?tab=log",
    "/runs/done?tab=environment",
    "/runs/failed",
    "/runs/working",
    "/evals",
    "/compare",
    "/exports",
    "/registry",
    "/serve",
    "/settings",
)
LIGHT = 250_000
"""Bytes of a page with an empty cache."""


def go(page: Any, server: Any, path: str) -> None:
    page.goto(server.url + path)
    page.wait_for_function("() => document.readyState === 'complete'")
    page.wait_for_timeout(100)


def sideways(page: Any) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


@pytest.mark.skipif(not AXE.is_file(), reason="make test-browser brings axe")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_no_barrier_and_nobody_else_is_asked(tab: Any, server: Any, path: str, theme: str) -> None:
    page = tab(theme=theme)
    page.watch.complaints.clear()
    go(page, server, path)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    result = page.evaluate("axe.run({resultTypes: ['violations']})")
    found = [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}: {one['nodes'][0]['failureSummary'][:300]}"
        for one in result["violations"]
    ]
    assert found == []
    assert page.watch.foreign == []
    assert page.watch.complaints == []


@pytest.mark.parametrize("path", PAGES)
def test_a_phone_and_twice_the_size_scroll_one_way(tab: Any, server: Any, path: str) -> None:
    page = tab(phone=True)
    go(page, server, path)
    assert sideways(page) <= 0
    page.set_viewport_size({"width": 360, "height": 780})
    page.wait_for_timeout(50)
    narrow = sideways(page)
    page.set_viewport_size({"width": 680, "height": 450})  # what 200 % leaves of 1360
    page.wait_for_timeout(50)
    wide = sideways(page)
    page.set_viewport_size({"width": 390, "height": 844})
    assert narrow <= 0
    assert wide <= 0


@pytest.mark.parametrize("path", PAGES)
def test_a_cold_page_is_light_and_stands_still(tab: Any, server: Any, path: str) -> None:
    page = tab(theme="dark", phone=True)  # nobody else's, so that the cache can be off
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    sizes: list[int] = []
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    page.set_viewport_size({"width": 1360, "height": 900})
    go(page, server, path)
    page.wait_for_timeout(200)
    shift = page.evaluate(
        "new Promise((done) => { let sum = 0; new PerformanceObserver((list) => { for (const e of"
        " list.getEntries()) sum += e.value; }).observe({type: 'layout-shift', buffered: true});"
        " setTimeout(() => done(sum), 100); })"
    )
    session.detach()
    assert sum(sizes) <= LIGHT
    # 0 on a machine with time; a long table whose rows arrive in pieces settles its columns on a busy one.
    assert shift <= 0.05


def test_the_keyboard_reaches_the_content_first(opened: Any, server: Any) -> None:
    page = opened()
    go(page, server, "/runs")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_the_theme_is_kept(opened: Any, server: Any) -> None:
    page = opened()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    page.click("#theme")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != dark
    go(page, server, "/models")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
