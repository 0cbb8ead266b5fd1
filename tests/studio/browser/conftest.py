"""The studio in Chromium. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.runs.process import identity
from luthier.schema.run import Failure, Status
from studio_browser import CHROMIUM, FLAGS, Server, logged_in
from studio_case import made_run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here opens Chromium."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="no Chromium here (CHROMIUM=PATH names one)"))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium for all tests."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A studio over runs in every state."""
    folder = tmp_path_factory.mktemp("studio")
    made_run(folder, "done", steps=40)
    failure = Failure(kind="DoesNotFit", message="out of memory at step 3", hint="halve it", exit_code=3)
    made_run(folder, "failed", steps=3, status=Status(state="failed", step=3, failure=failure))
    made_run(folder, "stopped", steps=9, status=Status(state="stopped", step=9))
    working = Status(state="running", stage="train", step=20, total_steps=400, worker=identity())
    made_run(folder, "working", steps=20, status=working)
    made = Server(folder)
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def tab(chromium: Any, server: Server) -> Iterator[Any]:
    """Pages that the tests of a module share: ``tab(theme="dark")`` is one, ``tab(phone=True)`` another."""
    pages: dict[tuple[str, bool], Any] = {}

    def of(*, theme: str = "light", phone: bool = False) -> Any:
        if (theme, phone) not in pages:
            pages[theme, phone] = logged_in(chromium, server, theme=theme, phone=phone)
        return pages[theme, phone]

    yield of
    for page in pages.values():
        page.context.close()


@pytest.fixture
def opened(chromium: Any, server: Server) -> Iterator[Any]:
    """Open a logged-in page: ``opened(theme="dark", phone=True)``; every complaint of it fails the test."""
    pages: list[Any] = []

    def open_page(**how: Any) -> Any:
        pages.append(logged_in(chromium, server, **how))
        return pages[-1]

    yield open_page
    for page in pages:
        page.context.close()
    for page in pages:
        assert page.watch.foreign == []
        assert page.watch.complaints == []
